"""The dual encoder of images and captions: the hyperparameters to search."""

from clipcovid.search_space import Choice, LogUniform, Space

SPACE: Space = {
    "optim.lr": LogUniform(1e-5, 3e-3),
    "optim.weight_decay": LogUniform(1e-4, 0.3),
    "optim.batch_size": Choice((32, 64, 128)),
    "loss": Choice(("soft", "clip", "multi-positive", "siglip")),
    "projection": Choice(("linear", "mlp")),
}
