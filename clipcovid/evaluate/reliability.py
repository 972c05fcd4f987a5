"""How far promised probabilities are from what happened: scores with intervals, and the points of reliability diagrams."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipcovid.evaluate.calibration import BINS, bin_indices, weighted_calibration_metrics
from clipcovid.evaluate.resamples import Estimate, Resamples


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Calibration of a method's probabilities on the test images."""

    metrics: dict[str, Estimate]
    """Those of `weighted_calibration_metrics`: brier, ece, classwise_ece, and both errors with _equal_mass."""
    top_label: list[list[float]]
    """A bin of equal width each, of images by the probability of their most probable class: mean probability, share of right
    predictions, images. Empty bins are left out."""
    classes: dict[str, list[list[float]]]
    """Class → bins by its probability: mean probability, share of images that are of the class, images."""


def reliability(
    truth: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], resamples: Resamples
) -> Reliability:
    """The calibration of `probabilities` (n, k) against `truth` (n,) int64, both of the images of `resamples`."""
    once = weighted_calibration_metrics(truth, probabilities)(np.ones((1, len(truth))))
    right = probabilities.argmax(axis=1) == truth
    outcomes = np.column_stack([right, truth[:, None] == np.arange(len(classes))])
    confidences = np.column_stack([probabilities.max(axis=1), probabilities])
    squares = ((probabilities - outcomes[:, 1:]) ** 2).sum(axis=1)
    gaps = [_gaps_by_bin(*pair) for pair in zip(confidences.T, outcomes.T, strict=True)]
    sums = resamples.sums(np.column_stack([np.ones(len(truth)), squares, *gaps]))
    errors = np.abs(sums[:, 2:]).reshape(len(sums), len(gaps), BINS).sum(axis=2) / sums[:, :1]
    draws = {"brier": sums[:, 1] / sums[:, 0], "ece": errors[:, 0], "classwise_ece": errors[:, 1:].mean(axis=1)}
    return Reliability(
        metrics=resamples.estimates({name: float(value[0]) for name, value in once.items()}, draws),
        top_label=reliability_bins(confidences[:, 0], right),
        classes={name: reliability_bins(probabilities[:, at], truth == at) for at, name in enumerate(classes)},
    )


def _gaps_by_bin(confidence: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Outcome - confidence of each row in the column of its bin, (n, BINS) float64."""
    gaps = np.zeros((len(confidence), BINS))
    gaps[np.arange(len(confidence)), bin_indices(confidence)] = outcome - confidence
    return gaps


def reliability_bins(confidence: np.ndarray, outcome: np.ndarray) -> list[list[float]]:
    """[mean confidence, share of outcomes, rows] of each bin of equal width that has rows; both (n,), outcome bool."""
    bins = bin_indices(confidence)
    counts = np.bincount(bins)
    with np.errstate(invalid="ignore"):
        means, shares = (np.bincount(bins, values) / counts for values in (confidence, outcome))
    return np.stack([means, shares, counts], axis=1)[counts > 0].tolist()
