"""Fine-tune CLIP on images and captions.

    clipcovid finetune --data data/phantom --clip.model tiny --clip.pretrained none --method full
    clipcovid finetune --data data/quex --clip.model ViT-B-32 --clip.pretrained openai --method lora
    clipcovid finetune --data data/quex --captions dataset --loss siglip --positives label --wise-ft

Trains all of it, low-rank adapters, or one tower, judged by zero-shot classification. Zero-shot before and after, and after
against the texts as they were before, stand side by side: where the first two agree and the third is poor, the image tower
has drifted away from the words. Killed and run again, it goes on where it was.
"""
