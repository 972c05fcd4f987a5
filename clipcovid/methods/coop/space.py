"""CoOp, learned prompts: the hyperparameters to search."""

from clipcovid.search_space import Choice, LogUniform, Space

SPACE: Space = {
    "optim.lr": LogUniform(1e-4, 1e-1),
    "words": Choice((1, 4, 8, 16)),
    "per_class": Choice((False, True)),
}
