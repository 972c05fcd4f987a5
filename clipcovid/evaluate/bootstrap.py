"""Bootstrap intervals: percentiles over resamples of patients (or of images, where patients are unknown).

Percentile method: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13. Whole clusters are drawn with
replacement, with all their rows: Field & Welsh, Bootstrapping clustered data, J. R. Statist. Soc. B 69 (2007).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate.calibration import are_probabilities, calibration_draw
from clipcovid.evaluate.metrics import Predictions, confusion_rates, encode_labels, nan_mean, predicted_indices

CHUNK_SIZE = 2_000_000
"""Numbers held at once (resamples x rows or x cells of the confusion matrix), so that memory stays at tens of MB."""


class Intervals(TypedDict):
    """Percentile intervals and what they rest on."""

    unit: str
    """What was resampled: patient, or image where no patient is known."""
    units: int
    """How many of them there are."""
    level: float
    samples: int
    intervals: dict[str, list[float]]
    """Metric → [low, high]."""


def bootstrap(
    metric_fn: Callable[[np.ndarray], dict[str, float]],
    groups: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Intervals:
    """Cluster bootstrap of any metrics.

    `metric_fn` takes row indices (m,) int64, rows drawn twice standing twice, and returns scalars; a metric may be
    missing or NaN where it is undefined. `groups`: n patient ids; a row with "" is a group of its own. For the
    difference of two methods compute both in `metric_fn`, and the resamples are paired.
    """
    unit_of_row = _units(groups)
    rows = np.arange(len(unit_of_row))
    results = [metric_fn(np.repeat(rows, weights)) for weights in _row_weights(unit_of_row, samples, seed)]
    names = dict.fromkeys(name for result in results for name in result)
    draws = {name: np.array([result.get(name, np.nan) for result in results]) for name in names}
    return percentile_intervals(draws, groups, level)


def classification_intervals(
    labels: Sequence[str],
    predictions: Predictions,
    classes: Sequence[str],
    groups: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Intervals:
    """Intervals of the metrics of `classification_draws`, which takes the same arguments."""
    draws = classification_draws(labels, predictions, classes, groups, samples=samples, seed=seed)
    return percentile_intervals(draws, groups, level)


def classification_draws(
    labels: Sequence[str],
    predictions: Predictions,
    classes: Sequence[str],
    groups: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The metrics in each resample, (samples,) float64 each, NaN where undefined: the fast way for classification.

    Metrics: all of `metrics.confusion_rates`, for scores (n, k) `macro_auroc` and `auroc/<class>`, and for those that are
    probabilities what `calibration_draw` gives. Macro
    averages run over the classes that a resample has. Equal seeds and groups give equal resamples (in `bootstrap` too),
    so the draws of two methods on the same rows can be subtracted. Errors as in `metrics.classification_metrics`.
    """
    truth, k = encode_labels(labels, classes), len(classes)
    if len(groups) != len(truth):
        raise UserError(f"There are {len(groups)} patient ids for {len(truth)} labels; give one (or none) a label.")
    cells = truth * k + predicted_indices(predictions, classes, len(truth))
    scores = predictions if isinstance(predictions, np.ndarray) and predictions.ndim == 2 else None
    calibration = calibration_draw(truth, scores) if scores is not None and are_probabilities(scores) else None
    chunks = []
    for weights in _chunks(_row_weights(_units(groups), samples, seed), max(1, CHUNK_SIZE // max(len(truth), k * k))):
        counts = np.stack([np.bincount(cells, row, minlength=k * k) for row in weights]).reshape(-1, k, k)
        draws = confusion_rates(counts, classes)
        if scores is not None:
            aurocs = np.stack([weighted_auroc(truth == i, scores[:, i], weights) for i in range(k)], axis=-1)
            draws |= calibration(weights) if calibration else {}
            draws |= {"macro_auroc": nan_mean(aurocs)} | {f"auroc/{c}": aurocs[:, i] for i, c in enumerate(classes)}
        chunks.append(draws)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def weighted_auroc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC under many row weightings at once: the Mann-Whitney share of (positive, negative) pairs in right order.

    `positive` (n,) bool, `scores` (n,), `weights` (m, n) >= 0. Gives (m,) float64, ties counting half; NaN where a
    weighting leaves no positive or no negative. Sorts once, whatever m.
    """
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    below = np.zeros((len(weights), len(negatives) + 1))
    np.cumsum(weights[:, negatives], axis=1, out=below[:, 1:])
    ordered, positives = scores[negatives], scores[positive]
    wins = (
        below[:, np.searchsorted(ordered, positives, "left")] + below[:, np.searchsorted(ordered, positives, "right")]
    )
    positive_weights = weights[:, positive]
    with np.errstate(invalid="ignore"):
        return (positive_weights * wins).sum(axis=1) / 2 / (positive_weights.sum(axis=1) * below[:, -1])


def percentile_intervals(draws: dict[str, np.ndarray], groups: Sequence[str], level: float = 0.95) -> Intervals:
    """Percentiles of `draws` at `level` in (0, 1), over the resamples where a metric is defined.

    A metric that is undefined in over half of them gets no interval, and with fewer than two units none does.
    """
    assert 0 < level < 1, level
    unit = "image" if all(map(_is_unknown, groups)) else "patient"
    units = int(_units(groups).max()) + 1
    tails = [50 * (1 - level), 50 * (1 + level)]
    intervals = {
        name: [float(bound) for bound in np.nanpercentile(values, tails)]
        for name, values in draws.items()
        if units > 1 and np.isnan(values).mean() <= 0.5
    }
    samples = len(next(iter(draws.values()), []))
    return Intervals(unit=unit, units=units, level=level, samples=samples, intervals=intervals)


def patient_groups(table: pd.DataFrame) -> list[str]:
    """The groups of a table's rows: `patient_id`, "" where it is unknown."""
    return table["patient_id"].fillna("").astype(str).tolist() if "patient_id" in table else [""] * len(table)


def _units(groups: Sequence[str]) -> np.ndarray:
    """The unit 0 … g-1 of each row, (n,) int64, numbered as they appear."""
    if len(groups) == 0:
        raise UserError("There are no rows to resample.")
    keys = [("row", row) if _is_unknown(group) else ("group", group) for row, group in enumerate(groups)]
    numbers: dict[tuple[str, object], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _is_unknown(group: object) -> bool:
    return group is None or group == "" or group != group


def _row_weights(unit_of_row: np.ndarray, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row stands in each of `samples` resamples, (n,) int64."""
    rng = np.random.default_rng(seed)
    units = int(unit_of_row.max()) + 1
    for _ in range(samples):
        yield np.bincount(rng.integers(0, units, units), minlength=units)[unit_of_row]


def _chunks(rows: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    chunk: list[np.ndarray] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield np.stack(chunk).astype(np.float64)
            chunk = []
    if chunk:
        yield np.stack(chunk).astype(np.float64)
