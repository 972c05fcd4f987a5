"""The parts of search spaces that several methods share."""

from clipcovid.search_space import Choice, LogUniform, Space, Uniform

OPTIM_SPACE: Space = {
    "optim.lr": LogUniform(1e-5, 1e-2),
    "optim.weight_decay": LogUniform(1e-4, 0.3),
    "optim.batch_size": Choice((16, 32, 64)),
}
AUGMENT_SPACE: Space = {
    "augment.rotate": Uniform(0, 20),
    "augment.scale": Uniform(0, 0.3),
    "augment.intensity": Uniform(0, 0.4),
}
