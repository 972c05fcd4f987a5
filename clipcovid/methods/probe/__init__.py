"""Train a linear or MLP head on a frozen CLIP's embeddings.

    clipcovid probe --data data/phantom --clip.model tiny --clip.pretrained none
    clipcovid probe --data data/quex --clip.pretrained outputs/finetune-lora-1a2b3c4d --head mlp
    clipcovid probe --data data/quex --clip.pretrained openai --shots 1 2 4 8 16 all

Embeddings are made first where they are missing. The penalty is chosen on the validation split. Several numbers of shots
train a run for each, and draw the curve.
"""
