"""Selective prediction: the errors that are left when a method answers only where it is most sure.

Risk-coverage curve and its area (AURC): Geifman & El-Yaniv, Selective classification for deep neural networks (NeurIPS
2017); Geifman, Uziel & El-Yaniv, Bias-reduced uncertainty estimation for deep neural classifiers (ICLR 2019). Sure is what
has the highest top probability. Of images that are as sure as each other each counts with their mean error, so that no
order of theirs matters.
"""

from dataclasses import dataclass

import numpy as np

from clipcovid.evaluate.resamples import Estimate, Resamples

COVERAGES = (1.0, 0.9, 0.8)
"""Shares of the images, the surest, that accuracy is given of."""
CURVE_POINTS = 100


@dataclass(frozen=True, kw_only=True)
class SelectivePrediction:
    """What is left of the errors of a method that may abstain."""

    accuracy: dict[str, Estimate]
    """Coverage, such as 0.9 → accuracy of that share of the images."""
    aurc: Estimate
    """Mean error over all coverages; without any use of the confidence it is 1 - accuracy."""
    curve: list[list[float]]
    """[coverage, error] of the surest hundredth, two hundredths, … of the images."""


def selective_prediction(truth: np.ndarray, probabilities: np.ndarray, resamples: Resamples) -> SelectivePrediction:
    """Of the true class (n,) int64 and probabilities (n, k) of the images of `resamples`."""
    curve = RiskCoverage(probabilities.max(axis=1), probabilities.argmax(axis=1) != truth)
    once, coverages, units = np.ones(len(truth), np.int64), np.array(COVERAGES), resamples.unit_of_row[curve.order]
    area, errors = curve.measure(once, coverages)
    names = ["aurc", *map(str, COVERAGES)]
    values = dict(zip(names, [area, *(1 - errors)], strict=True))
    drawn = []
    for counts in resamples.counts:
        area, errors = curve.measure(np.take(counts, units), coverages)
        drawn.append([area, *(1 - errors)])
    estimates = resamples.estimates(values, dict(zip(names, np.array(drawn).T, strict=True)))
    shares = np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS
    _, errors = curve.measure(once, shares)
    return SelectivePrediction(
        aurc=estimates.pop("aurc"), accuracy=estimates, curve=np.stack([shares, errors], axis=1).tolist()
    )


class RiskCoverage:
    """The errors among the surest images, for many weightings of the same rows.

    Images that are as sure as each other are a group, of which each image counts with the group's mean error. Only groups
    with errors are looked at: the j-th image of one, after c surer images, adds its mean error e to the errors of the first
    c + j, c + j + 1, … images, so e (1 / (c + j) + … + 1 / n) to n times the area.
    """

    def __init__(self, confidence: np.ndarray, wrong: np.ndarray) -> None:
        self.order = np.argsort(-confidence, kind="stable")
        """The rows (n,), the surest first."""
        ordered, wrong = confidence[self.order], wrong[self.order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        ends = np.append(starts[1:], len(ordered))
        errors_before = np.append(0, np.cumsum(wrong))
        has_errors = errors_before[ends] > errors_before[starts]
        self.starts, self.ends = starts[has_errors], ends[has_errors]
        self.first_error, self.last_error = errors_before[self.starts], errors_before[self.ends]
        self.wrong = np.flatnonzero(wrong)
        self._sums = np.zeros(1)

    def measure(self, weights: np.ndarray, shares: np.ndarray) -> tuple[float, np.ndarray]:
        """The area under the curve, and the share of errors (c,) among the surest images that are at least `shares` of all.

        `weights` (n,): how often each row stands, in the `order` of the rows; whole numbers, not all 0.
        """
        answered, errors = np.zeros(len(weights) + 1, np.int64), np.zeros(len(self.wrong) + 1, np.int64)
        np.cumsum(weights, out=answered[1:])
        np.cumsum(np.take(weights, self.wrong), out=errors[1:])
        before, after, n = answered[self.starts], answered[self.ends], int(answered[-1])
        wrong, size = errors[self.last_error] - errors[self.first_error], after - before
        rate = wrong / np.maximum(size, 1)
        sums = self._harmonic_sums(n)
        harmonic = sums[n + 1] - sums[n]
        area = (rate * (size * harmonic - (sums[after] - sums[before]))).sum() / n
        images = np.ceil(shares * n - 1e-9)
        found = (rate * np.clip(images[:, None] - before, 0, size)).sum(axis=1)
        return float(area), found / images

    def _harmonic_sums(self, n: int) -> np.ndarray:
        """H(0) + … + H(i - 1) of the harmonic numbers at each i, for i to n + 1 or more."""
        if len(self._sums) < n + 2:
            harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, 2 * n + 2)))
            self._sums = np.append(0.0, np.cumsum(harmonic))
        return self._sums
