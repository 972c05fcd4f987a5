"""Tip-Adapter-F: the hyperparameters to search."""

from clipcovid.search_space import Choice, LogUniform, Space

SPACE: Space = {"optim.lr": LogUniform(1e-5, 1e-2), "optim.epochs": Choice((5, 20, 50))}
