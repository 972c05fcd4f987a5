"""Linear and MLP probes: the hyperparameters to search."""

from clipcovid.search_space import Choice, LogUniform, Space, Uniform

SPACE: Space = {
    "optim.lr": LogUniform(1e-3, 1e-1),
    "head": Choice(("linear", "mlp")),
    "hidden": Choice((64, 256, 1024)),
    "label_smoothing": Uniform(0, 0.2),
}
