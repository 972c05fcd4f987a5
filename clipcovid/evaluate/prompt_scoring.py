"""Scores of many zero-shot classifiers at once: what a search over prompts needs, a thousand times faster than one by one."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from clipcovid.evaluate.metrics import confusion_rates, nan_mean

PromptObjective = Literal["macro_f1", "macro_auroc"]


def score_candidates(
    images: np.ndarray,
    texts: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    objective: PromptObjective,
    scale: float,
) -> np.ndarray:
    """The objective of each of b zero-shot classifiers, (b,) float64.

    `images` (n, d) and `texts` (b, k, d) float32 of L2 norm 1; `labels` (n,) int64 among the k classes; `scale`: the model's
    logit scale, which the probabilities that AUROCs rank by depend on.
    """
    b, k, d = texts.shape
    similar = (images @ texts.reshape(b * k, d).T).reshape(len(images), b, k)
    if objective == "macro_f1":
        cells = labels[:, None] * k + similar.argmax(axis=2) + np.arange(b) * k * k
        counts = np.bincount(cells.ravel(), minlength=b * k * k).reshape(b, k, k)
        return np.asarray(confusion_rates(counts, classes)["macro_f1"])
    raised = np.exp(scale * (similar - similar.max(axis=2, keepdims=True)))
    shares = np.ascontiguousarray(np.moveaxis(raised / raised.sum(axis=2, keepdims=True), 0, 2))
    aurocs = np.full((b, k), np.nan)
    for number in range(k):
        positive = labels == number
        if positive.any() and not positive.all():
            aurocs[:, number] = [
                _auroc(candidate[number][positive], candidate[number][~positive]) for candidate in shares
            ]
    return np.asarray(nan_mean(aurocs))


def _auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """How probable it is that a positive has more than a negative, ties counting half: two sorts, and no ranks of all."""
    positives, negatives = np.sort(positives), np.sort(negatives)
    both = np.searchsorted(negatives, positives, "left").sum() + np.searchsorted(negatives, positives, "right").sum()
    return float(both) / (2 * len(positives) * len(negatives))
