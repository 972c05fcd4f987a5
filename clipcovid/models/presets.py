"""Small text encoders and decoders of random weights, by name: layers, width, heads. No torch here."""

TEXT_ENCODERS = {"mini": (2, 256, 4), "small": (4, 512, 8), "base": (12, 768, 12)}  # of BERT's make
DECODERS = {"mini": (2, 256, 4), "small": (4, 512, 8)}  # of GPT-2's
