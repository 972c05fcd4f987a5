"""Train a decoder that writes captions of images.

    clipcovid captioner --data data/medpix2 --clip.pretrained outputs/caption-resnet18
    clipcovid captioner --data data/medpix2 --clip.pretrained openai --decoder gpt2 --beams 4

It reads the embeddings of a frozen encoder, which may be published, a checkpoint, or a run of clipcovid caption or
clipcovid finetune. Captions are written by beam search, and beside it by greedy search; clipcovid predict captions other
data with the run.
"""
