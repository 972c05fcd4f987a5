"""Segmentation of lungs and infections: the hyperparameters to search."""

from clipcovid.methods.spaces import OPTIM_SPACE
from clipcovid.search_space import Choice, Space, Uniform

SPACE: Space = OPTIM_SPACE | {
    "loss": Choice(("dice-bce", "dice-focal", "tversky", "dice-boundary")),
    "augment.intensity": Uniform(0, 0.4),
}
