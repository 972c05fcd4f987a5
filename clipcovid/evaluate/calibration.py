"""How far probabilities are from the frequencies that they promise: Brier score and calibration errors.

Expected calibration error (Naeini et al. 2015; Guo et al. 2017): rows are grouped into bins by their confidence, and the
differences between a bin's mean confidence and its share of right predictions are averaged, weighted by the bin's rows. Two
kinds are told apart. Top-label: of the most probable class alone. Class-wise (Kull et al. 2019): of each class's probability
against whether the image is of it, averaged over classes. Bins are of equal width, or of equal numbers of rows ("mass"),
which a model whose confidences crowd near 1 asks for. The last bin has its upper end, so a probability of 1 is in it.
"""

import numpy as np

BINS = 15
SUM_TOLERANCE = 1e-3


def are_probabilities(values: np.ndarray) -> bool:
    """Whether the rows of (n, k) lie in [0, 1] and sum to 1, and so can be calibrated; other scores only rank."""
    return bool(values.min() >= 0 and values.max() <= 1 and np.abs(values.sum(axis=1) - 1).max() <= SUM_TOLERANCE)


def bin_indices(confidence: np.ndarray, *, equal_mass: bool = False, bins: int = BINS) -> np.ndarray:
    """The bin of each confidence (n,) in [0, 1], (n,) int64: (low, high], and the first with its lower end.

    Of equal mass, ends are quantiles, and equal confidences share a bin: where many rows have the same, bins are fewer.
    """
    if equal_mass:
        ends = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    else:
        ends = np.linspace(0, 1, bins + 1)[1:-1]
    return np.searchsorted(ends, confidence, side="left").astype(np.int64)


def calibration_draws(truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`brier`, `ece`, `ece_equal_mass`, `classwise_ece` and `classwise_ece_equal_mass` under row weightings, (m,) each.

    `truth` (n,) int64: the true class. `probabilities` (n, k), as `are_probabilities` asks. `weights` (m, n) >= 0, with a
    positive sum each. The Brier score is the mean squared distance from the true class's one-hot row, in [0, 2] (Brier
    1950). A calibration error is the sum over bins of |sum of w (outcome - confidence)|, by the sum of w, in [0, 1]; bins
    are those of all rows.
    """
    outcomes = truth[:, None] == np.arange(probabilities.shape[1])
    totals = weights.sum(axis=1)
    draws = {"brier": weights @ ((probabilities - outcomes) ** 2).sum(axis=1) / totals}
    rows, top = np.arange(len(truth)), probabilities.argmax(axis=1)
    confidences = np.column_stack([probabilities[rows, top], probabilities])
    gaps = np.column_stack([outcomes[rows, top], outcomes]) - confidences
    for suffix, equal_mass in (("", False), ("_equal_mass", True)):
        errors = _calibration_errors(confidences, gaps, weights, equal_mass=equal_mass) / totals[:, None]
        draws |= {f"ece{suffix}": errors[:, 0], f"classwise_ece{suffix}": errors[:, 1:].mean(axis=1)}
    return draws


def _calibration_errors(
    confidences: np.ndarray, gaps: np.ndarray, weights: np.ndarray, *, equal_mass: bool
) -> np.ndarray:
    """Sums over bins of each column's |sum of w gap|, (m, c): one product with a sparse (c bins, n) matrix of the gaps."""
    from scipy import sparse  # a second's import that a training's first step does not wait for

    n, columns = confidences.shape
    bins = [column * BINS + bin_indices(confidences[:, column], equal_mass=equal_mass) for column in range(columns)]
    places = (np.concatenate(bins), np.tile(np.arange(n), columns))
    matrix = sparse.csr_array((gaps.T.ravel(), places), shape=(columns * BINS, n))
    sums: np.ndarray = np.abs(matrix @ np.ascontiguousarray(weights.T)).reshape(columns, BINS, -1).sum(axis=1).T
    return sums


def calibration_metrics(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The metrics of `calibration_draws` of all rows, each once; none for scores that are no probabilities."""
    if not are_probabilities(probabilities):
        return {}
    draws = calibration_draws(truth, probabilities, np.ones((1, len(truth))))
    return {name: float(values[0]) for name, values in draws.items()}
