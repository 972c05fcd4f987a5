"""Train an image encoder and a text encoder on captions.

    clipcovid caption --data data/medpix2 --weights none
    clipcovid caption --data data/medpix2 --arch resnet50 --text emilyalsentzer/Bio_ClinicalBERT
    clipcovid caption --data data/medpix2 --captions dataset --towers clip --clip.pretrained openai

Captions of the test images are chosen from the training split's, the honest test of captioning, and beside it from the test
split's own, as the published system does. Killed and run again, it goes on after the last epoch that it finished.
"""
