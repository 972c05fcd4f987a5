"""Bootstrap intervals: percentiles over resamples of patients (or of images, where patients are unknown).

Percentile method: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13. Whole clusters are drawn with
replacement, with all their rows: Field & Welsh, Bootstrapping clustered data, J. R. Statist. Soc. B 69 (2007).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate.calibration import WeightedMetricFn, are_probabilities, weighted_calibration_metrics
from clipcovid.evaluate.metrics import Predictions, confusion_rates, encode_labels, nan_mean, predicted_indices

CHUNK_SIZE = 500_000
"""Numbers held at once (resamples x rows or x cells of the confusion matrix), so that they stay in a processor's cache."""


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
    results = [metric_fn(indices) for indices in resampled_indices(groups, samples=samples, seed=seed)]
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
    """Intervals of the metrics of `weighted_classification_metrics`, which says what the arguments are."""
    if len(groups) != len(labels):
        raise UserError(f"There are {len(groups)} patient ids for {len(labels)} labels; give one (or none) a label.")
    draw = weighted_classification_metrics(labels, predictions, classes)
    drawn = weighted_draws([draw], groups, samples=samples, seed=seed, cells=len(classes) ** 2)
    return percentile_intervals(drawn[0], groups, level)


def resampled_indices(groups: Sequence[str], *, samples: int, seed: int) -> Iterator[np.ndarray]:
    """The row indices of each resample, (m,) int64 from the lowest up; equal seeds and groups give equal resamples."""
    rows = np.arange(len(groups))
    for weights in _row_weights(unit_of_rows(groups), samples, seed):
        yield np.repeat(rows, weights)


def weighted_draws(
    metric_fns: Sequence[WeightedMetricFn], groups: Sequence[str], *, samples: int = 1000, seed: int = 0, cells: int = 1
) -> list[dict[str, np.ndarray]]:
    """The metrics of each of `metric_fns` in each resample, (samples,) float64 each, NaN where undefined: the fast way.

    All get the same row weights, so what two of them give can be subtracted. Equal seeds and groups give equal resamples, in
    `bootstrap` too. `cells`: how many numbers a draw makes of each resample, which bounds the memory.
    """
    units = unit_of_rows(groups)
    chunks: list[list[dict[str, np.ndarray]]] = [[] for _ in metric_fns]
    with ThreadPoolExecutor(
        min(len(metric_fns), os.cpu_count() or 1)
    ) as pool:  # NumPy lets other threads run meanwhile
        for weights in _chunks(_row_weights(units, samples, seed), max(1, CHUNK_SIZE // max(len(units), cells))):
            tasks = [pool.submit(draw, weights) for draw in metric_fns]
            for parts, task in zip(chunks, tasks, strict=True):
                parts.append(task.result())
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in chunks]


def weighted_classification_metrics(
    labels: Sequence[str], predictions: Predictions, classes: Sequence[str], rows: np.ndarray | None = None
) -> WeightedMetricFn:
    """A function from row weightings to the metrics of a classification: of all rows, or of `rows`, bool (n,).

    Metrics: all of `metrics.confusion_rates`; for scores (n, k) `auroc/<class>`, `auprc/<class>` and their macro averages,
    and for those that are probabilities, where no `rows` are given, what `weighted_calibration_metrics` gives. Macro averages
    run over the classes that a resample has. Errors as in `metrics.classification_metrics`.
    """
    truth, k = encode_labels(labels, classes), len(classes)
    cells = truth * k + predicted_indices(predictions, classes, len(truth))
    scores = predictions if isinstance(predictions, np.ndarray) and predictions.ndim == 2 else None
    calibration = None
    if rows is not None:
        truth, cells, scores = truth[rows], cells[rows], None if scores is None else scores[rows]
    elif scores is not None and are_probabilities(scores):
        calibration = weighted_calibration_metrics(truth, scores)
    ranked = [] if scores is None else [weighted_ranking_metrics(truth == i, scores[:, i]) for i in range(k)]

    def draw(weights: np.ndarray) -> dict[str, np.ndarray]:
        weights = weights if rows is None else np.compress(rows, weights, axis=1)
        counts = np.stack([np.bincount(cells, row, minlength=k * k) for row in weights]).reshape(-1, k, k)
        values = confusion_rates(counts, classes) | (calibration(weights) if calibration else {})
        by_class = [entry(weights) for entry in ranked]
        for name in by_class[0] if by_class else ():
            values[f"macro_{name}"] = nan_mean(np.stack([entry[name] for entry in by_class], axis=-1))
            values |= {f"{name}/{c}": entry[name] for c, entry in zip(classes, by_class, strict=True)}
        return values

    return draw


def weighted_ranking_metrics(positive: np.ndarray, scores: np.ndarray) -> WeightedMetricFn:
    """A function from row weightings to `auroc` and `auprc` of scores (n,); `positive` rows, bool (n,). Sorts once.

    AUROC is the Mann-Whitney share of (positive, negative) pairs in right order, ties counting half. AUPRC is the average
    precision: the mean over positives of the precision among what scores at least as high. Both are NaN where a weighting
    leaves no positive or no negative.
    """
    sides = (np.flatnonzero(~positive), np.flatnonzero(positive))
    negatives, positives = (rows[np.argsort(scores[rows], kind="stable")] for rows in sides)
    ordered, own = scores[negatives], scores[positives]
    lower, upper = (np.searchsorted(ordered, own, side) for side in ("left", "right"))
    first = np.searchsorted(own, own, "left")  # of the positives that score the same
    tied, repeated = bool((lower != upper).any()), bool((np.diff(first) == 0).any())

    def draw(weights: np.ndarray) -> dict[str, np.ndarray]:
        held = np.take(weights, positives, axis=1)
        below, before = _sums_before(np.take(weights, negatives, axis=1)), _sums_before(held)
        beaten = np.take(below, lower, axis=1)
        wins = np.einsum("ij,ij->i", held, beaten)
        wins += np.einsum("ij,ij->i", held, np.take(below, upper, axis=1)) if tied else wins
        hits = before[:, -1:] - (np.take(before, first, axis=1) if repeated else before[:, :-1])
        flagged = np.subtract(below[:, -1:], beaten, out=beaten)
        flagged += hits
        np.maximum(flagged, np.finfo(np.float64).tiny, out=flagged)  # 0 where nothing there has a weight
        hits /= flagged
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = wins / 2 / (before[:, -1] * below[:, -1])
            precision = np.einsum("ij,ij->i", held, hits) / before[:, -1]
        return {"auroc": auroc, "auprc": np.where(below[:, -1] > 0, precision, np.nan)}

    return draw


def _sums_before(weights: np.ndarray) -> np.ndarray:
    """Of (m, n): the sums of the columns before each, and of all, (m, n + 1)."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def percentile_intervals(draws: dict[str, np.ndarray], groups: Sequence[str], level: float = 0.95) -> Intervals:
    """Percentiles of `draws` at `level` in (0, 1), over the resamples where a metric is defined.

    A metric that is undefined in over half of them gets no interval, and with fewer than two units none does.
    """
    assert 0 < level < 1, level
    unit = "image" if all(map(_is_unknown, groups)) else "patient"
    units = count_units(groups)
    bounds = {name: percentile_interval(values, level) for name, values in draws.items() if units > 1}
    intervals = {name: pair for name, pair in bounds.items() if pair is not None}
    samples = len(next(iter(draws.values()), []))
    return Intervals(unit=unit, units=units, level=level, samples=samples, intervals=intervals)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> list[float] | None:
    """[low, high] of the draws (samples,) of one metric; None where over half of them are undefined."""
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < len(values) or len(defined) == 0:
        return None
    return [float(bound) for bound in np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])]


def patient_groups(table: pd.DataFrame) -> list[str]:
    """The groups of a table's rows: `patient_id`, "" where it is unknown."""
    return table["patient_id"].fillna("").astype(str).tolist() if "patient_id" in table else [""] * len(table)


def image_groups(table: pd.DataFrame) -> list[str]:
    """`patient_groups` of the images of a table, which may have several rows of each."""
    return patient_groups(table.drop_duplicates("image_id"))


def count_units(groups: Sequence[str]) -> int:
    """How many patients (or images, where they are unknown) there are to resample."""
    return int(unit_of_rows(groups).max()) + 1


def unit_of_rows(groups: Sequence[str]) -> np.ndarray:
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
    for counts in unit_counts(int(unit_of_row.max()) + 1, samples, seed):
        yield counts[unit_of_row]


def unit_counts(units: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `units` patients (or images) is drawn in each of `samples` resamples, (units,) int64."""
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(rng.integers(0, units, units), minlength=units)


def _chunks(rows: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    chunk: list[np.ndarray] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield np.stack(chunk).astype(np.float64)
            chunk = []
    if chunk:
        yield np.stack(chunk).astype(np.float64)
