"""CLIP fine-tuned on captions."""
