"""Train a CNN beside a frozen CLIP, their features joined.

    clipcovid hybrid --data data/phantom --clip.model tiny --clip.pretrained none --weights none
    clipcovid hybrid --data data/quex --clip.model ViT-B-32 --clip.pretrained openai --join concat

Features are added and compared with the classes' texts, or read by a layer. Killed and run again, it goes on after the last
epoch that it finished.
"""
