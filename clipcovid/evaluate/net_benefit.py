"""Decision curves: what calling images positive is worth, when a false positive costs a share of what a true one gains.

Vickers & Elkin, Decision curve analysis: a novel method for evaluating prediction models, Med. Decis. Making 26 (2006).
Who would act from a probability pt on weighs a false positive as pt / (1 - pt) of a true positive:
net benefit = TP / n - FP / n x pt / (1 - pt). Acting on nobody has 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipcovid.evaluate.resamples import Estimate, Resamples

THRESHOLDS = np.arange(1, 100) / 100
"""Probabilities of the curves."""
TABLE_THRESHOLDS = (0.1, 0.25, 0.5)
"""Probabilities whose net benefit is given with intervals."""


@dataclass(frozen=True, kw_only=True)
class NetBenefit:
    """One class against the rest."""

    curve: list[float]
    """The net benefit at `THRESHOLDS`."""
    at: dict[str, Estimate]
    """Of `TABLE_THRESHOLDS`, such as 0.25 → net benefit."""


def net_benefit(positive: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The net benefit (t,) of acting on images that are at least as probable as each threshold (t,) in (0, 1).

    `positive` (n,) bool, `probabilities` (n,). Acting on all images is acting on probabilities of 1.
    """
    n = len(positive)
    true, false = (
        np.count_nonzero(side) - np.searchsorted(np.sort(probabilities[side]), thresholds, side="left")
        for side in (positive, ~positive)
    )
    benefit: np.ndarray = true / n - false / n * thresholds / (1 - thresholds)
    return benefit


def net_benefits(
    truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], resamples: Resamples
) -> dict[str, NetBenefit]:
    """Class → net benefit, of the true class (n,) int64 and probabilities (n, k) of the images of `resamples`."""
    one = np.ones(len(truth))
    parts = {}
    for at, name in enumerate(classes):
        for threshold in TABLE_THRESHOLDS:
            gains = np.where(truth == at, 1.0, -threshold / (1 - threshold))
            parts[f"{threshold}/{name}"] = (np.where(probabilities[:, at] >= threshold, gains, 0.0), one)
    estimates = resamples.ratios(parts)
    return {
        name: NetBenefit(
            curve=net_benefit(truth == at, probabilities[:, at], THRESHOLDS).tolist(),
            at={str(threshold): estimates[f"{threshold}/{name}"] for threshold in TABLE_THRESHOLDS},
        )
        for at, name in enumerate(classes)
    }
