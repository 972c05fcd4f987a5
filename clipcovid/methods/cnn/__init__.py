"""Train an image classifier: a CNN or a vision transformer.

    clipcovid cnn --data data/phantom --arch resnet18 --weights none
    clipcovid cnn --data data/quex --arch vit_base_patch16_224 --weights vit.safetensors --compute.workers 2

Any architecture of timm. Killed and run again, it goes on after the last epoch that it finished.
"""
