"""Operating points: the threshold on a class's probability that reaches a wanted sensitivity on validation images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipcovid.evaluate.resamples import Estimate, Resamples


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """One class against the rest: images are called positive from `threshold` on."""

    threshold: float
    validation_positives: int
    """Validation images of the class, which the threshold was chosen on."""
    validation_sensitivity: float
    validation_specificity: float | None
    """None where all validation images are of the class."""
    counts: dict[str, int]
    """tp, fp, fn and tn among the test images."""
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    """Positive predictive value: the share of images called positive that are of the class, at the test's prevalence."""
    npv: Estimate
    """Negative predictive value."""


def choose_threshold(positive: np.ndarray, probabilities: np.ndarray, sensitivity: float) -> float:
    """The highest threshold from which on at least `sensitivity` in (0, 1] of the positive images are called positive.

    `positive` (n,) bool with one at least, `probabilities` (n,).
    """
    descending = np.sort(probabilities[positive])[::-1]
    return float(descending[math.ceil(sensitivity * len(descending) - 1e-9) - 1])


def operating_points(
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    sensitivity: float,
    resamples: Resamples,
) -> dict[str, OperatingPoint]:
    """Class → operating point, for the classes with at least one validation and one test image.

    `validation` and `test`: the true class (n,) int64 and probabilities (n, k). The test images are those of `resamples`.
    """
    chosen = {
        name: choose_threshold(validation[0] == at, validation[1][:, at], sensitivity)
        for at, name in enumerate(classes)
        if (validation[0] == at).any() and (test[0] == at).any()
    }
    cells, parts = {}, dict[str, tuple[np.ndarray, np.ndarray]]()
    for name, threshold in chosen.items():
        cells[name] = _cells(*test, classes.index(name), threshold)
        tp, fp, fn, tn = cells[name].T
        rates = {"sensitivity": (tp, fn), "specificity": (tn, fp), "ppv": (tp, fp), "npv": (tn, fn)}
        parts |= {f"{rate}/{name}": (hits, hits + misses) for rate, (hits, misses) in rates.items()}
    estimates = resamples.ratios(parts)
    points = {}
    for name, threshold in chosen.items():
        tp, fp, fn, tn = _cells(*validation, classes.index(name), threshold).sum(axis=0).tolist()
        points[name] = OperatingPoint(
            threshold=threshold,
            validation_positives=tp + fn,
            validation_sensitivity=tp / (tp + fn),
            validation_specificity=tn / (tn + fp) if tn + fp else None,
            counts=dict(zip(("tp", "fp", "fn", "tn"), cells[name].sum(axis=0).tolist(), strict=True)),
            **{rate: estimates[f"{rate}/{name}"] for rate in ("sensitivity", "specificity", "ppv", "npv")},
        )
    return points


def _cells(truth: np.ndarray, probabilities: np.ndarray, at: int, threshold: float) -> np.ndarray:
    """Whether each image is a tp, fp, fn or tn of the class `at`, (n, 4) int64."""
    positive, called = truth == at, probabilities[:, at] >= threshold
    return np.stack([positive & called, ~positive & called, positive & ~called, ~positive & ~called], axis=1).astype(
        int
    )
