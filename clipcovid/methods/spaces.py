"""The parts of search spaces that several methods share."""

from clipcovid.search_space import Choice, Log, Space, Uniform

OPTIM: Space = {
    "optim.lr": Log(1e-5, 1e-2),
    "optim.weight_decay": Log(1e-4, 0.3),
    "optim.batch_size": Choice((16, 32, 64)),
}
AUGMENT: Space = {
    "augment.rotate": Uniform(0, 20),
    "augment.scale": Uniform(0, 0.3),
    "augment.intensity": Uniform(0, 0.4),
}
