"""ClipCap, a decoder on a frozen encoder's embeddings: the hyperparameters to search."""

from clipcovid.search_space import Int, Log, Space, Uniform

SPACE: Space = {
    "optim.lr": Log(1e-5, 3e-3),
    "optim.weight_decay": Log(1e-4, 0.3),
    "prefix": Int(2, 16),
    "dropout": Uniform(0, 0.4),
}
