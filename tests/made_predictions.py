"""Made-up labels and the probabilities of a model that knows a little of them."""

import numpy as np

CLASSES = ("COVID-19", "Non-COVID", "Normal")


def make(n, classes=CLASSES, shares=None, signal=1.0, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(classes), n, p=shares)
    scores = np.round(rng.normal(size=(n, len(classes))) + signal * np.eye(len(classes))[truth], 1)  # rounded: ties
    odds = np.exp(scores)
    return [classes[i] for i in truth], odds / odds.sum(axis=1, keepdims=True)
