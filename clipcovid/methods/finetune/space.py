"""CLIP fine-tuned on captions: the hyperparameters to search."""

from clipcovid.search_space import Choice, LogUniform, Space

SPACE: Space = {
    "optim.lr": LogUniform(1e-6, 1e-3),
    "optim.weight_decay": LogUniform(1e-3, 0.5),
    "optim.batch_size": Choice((32, 64, 128)),
    "method": Choice(("full", "lora", "vision")),
    "loss": Choice(("clip", "multi-positive", "siglip")),
}
