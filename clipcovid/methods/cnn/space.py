"""A timm image classifier: the hyperparameters to search."""

from clipcovid.methods.spaces import AUGMENT_SPACE, OPTIM_SPACE
from clipcovid.search_space import Choice, Space, Uniform

SPACE: Space = (
    OPTIM_SPACE | AUGMENT_SPACE | {"label_smoothing": Uniform(0, 0.2), "class_weights": Choice(("none", "balanced"))}
)
