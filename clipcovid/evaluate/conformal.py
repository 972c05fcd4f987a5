"""Conformal prediction sets: the classes that an image may be of, such that a wanted share of sets has the true one.

LAC: Sadinle, Lei & Wasserman, Least ambiguous set-valued classifiers with bounded error levels, J. Am. Stat. Assoc. 114
(2019). Class-conditional (Mondrian): Vovk, Conditional validity of inductive conformal predictors, Mach. Learn. 92 (2013).
What is promised holds on average over validation and test images that could be exchanged for each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipcovid.evaluate.resamples import Estimate, Resamples


@dataclass(frozen=True, kw_only=True)
class ConformalSets:
    """How prediction sets did on the test images."""

    coverage: Estimate
    """The share of images whose set has the true class."""
    patient_coverage: Estimate
    """The mean over patients of the share of their images whose set has the true class: each patient counts once."""
    class_coverage: dict[str, Estimate]
    """Class → coverage of its images."""
    size: Estimate
    """Mean number of classes in a set."""
    single: Estimate
    """The share of sets of one class."""
    empty: Estimate
    """The share of sets without any class: none is as probable as the true class mostly was in validation."""
    thresholds: dict[str, float]
    """Class → the least probability with which it is in a set; 0 where validation has too few images: always."""


def conformal_quantile(scores: np.ndarray, coverage: float) -> float:
    """The finite-sample quantile of scores (n,), the ceil((n + 1) coverage)-th lowest; infinite where n is too small."""
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def prediction_set_limits(truth: np.ndarray, probabilities: np.ndarray, coverage: float, by_class: bool) -> np.ndarray:
    """The greatest 1 - probability with which each class is in a set, (k,) float64: LAC's for all, or each class's own.

    `truth` (n,) int64 and `probabilities` (n, k) of validation images.
    """
    k = probabilities.shape[1]
    scores = 1 - probabilities[np.arange(len(truth)), truth]
    if by_class:
        return np.array([conformal_quantile(scores[truth == at], coverage) for at in range(k)])
    return np.full(k, conformal_quantile(scores, coverage))


def conformal_sets(
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    coverage: float,
    resamples: Resamples,
    *,
    by_class: bool,
) -> ConformalSets:
    """LAC's sets, or with `by_class` class-conditional ones, from validation to test images.

    `validation` and `test`: the true class (n,) int64 and probabilities (n, k). The test images are those of `resamples`.
    """
    limits = prediction_set_limits(*validation, coverage, by_class)
    truth, probabilities = test
    inside = 1 - probabilities <= limits
    covered, sizes, one = inside[np.arange(len(truth)), truth], inside.sum(axis=1), np.ones(len(truth))
    share = 1 / np.bincount(resamples.unit_of_row)[resamples.unit_of_row]
    parts = {
        "coverage": (covered, one),
        "patient_coverage": (covered * share, share),
        "size": (sizes, one),
        "single": (sizes == 1, one),
        "empty": (sizes == 0, one),
    }
    of_class = {f"class/{name}": (covered & (truth == at), truth == at) for at, name in enumerate(classes)}
    estimates = resamples.ratios(parts | of_class)
    return ConformalSets(
        class_coverage={name: estimates[f"class/{name}"] for name in classes},
        thresholds={name: float(max(0.0, 1 - limit)) for name, limit in zip(classes, limits, strict=True)},
        **{name: estimates[name] for name in parts},
    )
