"""How far probabilities are from the frequencies that they promise: Brier score and calibration errors.

Expected calibration error (Naeini et al. 2015; Guo et al. 2017): rows are grouped into bins by their confidence, and the
differences between a bin's mean confidence and its share of right predictions are averaged, weighted by the bin's rows. Two
kinds are told apart. Top-label: of the most probable class alone. Class-wise (Kull et al. 2019): of each class's probability
against whether the image is of it, averaged over classes. Bins are of equal width, or of equal numbers of rows ("mass"),
which a model whose confidences crowd near 1 asks for. The last bin has its upper end, so a probability of 1 is in it.
"""

from collections.abc import Callable

import numpy as np

BINS = 15
PROBABILITY_SUM_TOLERANCE = 1e-3  # of the sum of an image's probabilities, which may have been rounded
WeightedMetricFn = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Takes row weightings (m, n) >= 0, with a positive sum each, and gives each metric's values (m,)."""


def improper_rows(matrix: np.ndarray) -> np.ndarray:
    """Which rows of (n, k) are negative or do not sum to 1, bool (n,); rows with NaN are not among them."""
    wrong: np.ndarray = (matrix < 0).any(axis=1) | (np.abs(matrix.sum(axis=1) - 1) > PROBABILITY_SUM_TOLERANCE)
    return wrong


def are_probabilities(values: np.ndarray) -> bool:
    """Whether finite rows (n, k) are probabilities, and so can be calibrated; other scores only rank."""
    return bool(values.max() <= 1 and not improper_rows(values).any())


def bin_indices(confidence: np.ndarray, *, equal_mass: bool = False, bins: int = BINS) -> np.ndarray:
    """The bin of each confidence (n,) in [0, 1], (n,) int64: (low, high], and the first with its lower end.

    Of equal mass, ends are quantiles, and equal confidences share a bin: where many rows have the same, bins are fewer.
    """
    if equal_mass:
        ends = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    else:
        ends = np.linspace(0, 1, bins + 1)[1:-1]
    return np.searchsorted(ends, confidence, side="left").astype(np.int64)


def weighted_calibration_metrics(truth: np.ndarray, probabilities: np.ndarray) -> WeightedMetricFn:
    """A function from row weightings to `brier`, `ece`, `classwise_ece`, and both errors with `_equal_mass`.

    `truth` (n,) int64: the true class. `probabilities` (n, k), as `are_probabilities` asks. The Brier score is the mean
    squared distance from the true class's one-hot row, in [0, 2] (Brier 1950). A calibration error is the sum over bins of
    |sum of w (outcome - confidence)|, by the sum of w, in [0, 1]; bins are those of all rows.
    """
    from scipy import sparse  # a second's import that a training's first step does not wait for

    n = len(truth)
    outcomes = truth[:, None] == np.arange(probabilities.shape[1])
    squares = ((probabilities - outcomes) ** 2).sum(axis=1)
    rows, top = np.arange(n), probabilities.argmax(axis=1)
    confidences = np.column_stack([probabilities[rows, top], probabilities])
    gaps = np.column_stack([outcomes[rows, top], outcomes]) - confidences
    bins = np.stack([bin_indices(values, equal_mass=mass) for mass in (False, True) for values in confidences.T])
    bins += BINS * np.arange(len(bins))[:, None]  # a bin of a row is a row of the matrix
    places = (bins.ravel(), np.tile(rows, len(bins)))
    matrix = sparse.csr_array((np.tile(gaps.T, (2, 1)).ravel(), places), shape=(BINS * len(bins), n))

    def draw(weights: np.ndarray) -> dict[str, np.ndarray]:
        totals = weights.sum(axis=1)
        sums = np.abs(matrix @ np.ascontiguousarray(weights.T)).reshape(2, len(bins) // 2, BINS, -1).sum(axis=2)
        draws = {"brier": weights @ squares / totals}
        for suffix, errors in zip(("", "_equal_mass"), sums / totals, strict=True):
            draws |= {f"ece{suffix}": errors[0], f"classwise_ece{suffix}": errors[1:].mean(axis=0)}
        return draws

    return draw


def calibration_metrics(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The metrics of `weighted_calibration_metrics` of all rows, each once; none for scores that are no probabilities."""
    if not are_probabilities(probabilities):
        return {}
    draws = weighted_calibration_metrics(truth, probabilities)(np.ones((1, len(truth))))
    return {name: float(values[0]) for name, values in draws.items()}
