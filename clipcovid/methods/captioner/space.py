"""ClipCap, a decoder on a frozen encoder's embeddings: the hyperparameters to search."""

from clipcovid.search_space import IntUniform, LogUniform, Space, Uniform

SPACE: Space = {
    "optim.lr": LogUniform(1e-5, 3e-3),
    "optim.weight_decay": LogUniform(1e-4, 0.3),
    "prefix": IntUniform(2, 16),
    "dropout": Uniform(0, 0.4),
}
