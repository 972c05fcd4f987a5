"""Learn the words of CLIP's prompts as vectors (CoOp).

    clipcovid coop --data data/phantom --clip.model tiny --clip.pretrained none
    clipcovid coop --data data/quex --clip.pretrained openai --init "a chest X-ray of" --shots 1 2 4 8 16 all

Works on the embeddings of a frozen CLIP, made first where missing: no image is encoded in training. Several numbers of
shots train a run for each, and draw the curve.
"""
