"""Add a cache of training images to CLIP (Tip-Adapter).

    clipcovid tip-adapter --data data/phantom --clip.model tiny --clip.pretrained none
    clipcovid tip-adapter --data data/quex --clip.pretrained openai --prompts ensemble --shots 1 2 4 8 16

Zero-shot CLIP with the cache as it is, and with it trained (Tip-Adapter-F). The cache holds the embeddings of the training
images: a few shots a class, or all of them. How much it weighs, and how near an image has to be, is chosen on the
validation split. Several numbers of shots draw a curve.
"""
