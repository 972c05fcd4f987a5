"""CLIP fine-tuned on captions: the hyperparameters to search."""

from clipcovid.search_space import Choice, Log, Space

SPACE: Space = {
    "optim.lr": Log(1e-6, 1e-3),
    "optim.weight_decay": Log(1e-3, 0.5),
    "optim.batch_size": Choice((32, 64, 128)),
    "method": Choice(("full", "lora", "vision")),
    "loss": Choice(("clip", "multi-positive", "siglip")),
}
