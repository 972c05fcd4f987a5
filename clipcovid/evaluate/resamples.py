"""Resamples that are kept: the intervals of many statistics from the same draws of patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipcovid.evaluate.bootstrap import (
    Intervals,
    percentile_interval,
    percentile_intervals,
    unit_counts,
    unit_of_rows,
)

CHUNK_SIZE = 2_000_000
"""Counts that are multiplied at once, so that memory stays at tens of MB."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; None where it is undefined, or has no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)


class Resamples:
    """The resamples that every function here draws for equal groups and seed, kept for many statistics.

    `groups`: n patient ids, as in `bootstrap`. What most statistics need of a resample are sums over its rows, so that rows
    are first summed within patients, and all resamples are one product of matrices.
    """

    def __init__(self, groups: Sequence[str], *, samples: int = 1000, seed: int = 0, level: float = 0.95) -> None:
        self.unit_of_row = unit_of_rows(groups)
        """The patient 0 … g-1 of each row, (n,) int64."""
        self.rests_on: Intervals = {**percentile_intervals({}, groups, level), "samples": samples}
        """What the intervals rest on, without any."""
        drawn = list(unit_counts(self.rests_on["units"], samples, seed))
        smallest = np.min_scalar_type(max(int(counts.max()) for counts in drawn))
        self.counts = np.stack([counts.astype(smallest) for counts in drawn])
        """How often each patient stands in each resample, (samples, g), of as few bytes as they take."""

        self._order = np.argsort(self.unit_of_row, kind="stable")
        self._first = np.searchsorted(self.unit_of_row[self._order], np.arange(self.counts.shape[1]))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sums of values (n, q) over the rows of each resample, (samples, q) float64."""
        totals = np.add.reduceat(values[self._order].astype(np.float64), self._first)
        sums = np.empty((len(self.counts), values.shape[1]))
        buffer = np.empty((max(1, CHUNK_SIZE // len(totals)), len(totals)))
        for start in range(0, len(sums), len(buffer)):
            chunk = self.counts[start : start + len(buffer)]
            buffer[: len(chunk)] = chunk
            np.matmul(buffer[: len(chunk)], totals, out=sums[start : start + len(chunk)])
        return sums

    def ratios(self, parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Estimate]:
        """Of named pairs of rows (n,), the sum of the first by that of the second; None where the second's is 0."""
        columns = list({id(column): column for pair in parts.values() for column in pair}.values())
        if not columns:
            return {}
        place = {id(column): at for at, column in enumerate(columns)}
        values = np.stack(columns, axis=1)
        tops, bottoms = ([place[id(pair[side])] for pair in parts.values()] for side in (0, 1))
        totals, sums = values.sum(axis=0), self.sums(values)
        shares, draws = _divide(totals[tops], totals[bottoms]), _divide(sums[:, tops], sums[:, bottoms])
        return self.estimates(
            dict(zip(parts, shares.tolist(), strict=True)), {name: draws[:, at] for at, name in enumerate(parts)}
        )

    def estimates(self, values: Mapping[str, float], draws: dict[str, np.ndarray]) -> dict[str, Estimate]:
        """Values with the percentile intervals of their draws; NaN is undefined, and what has no draws has no interval."""
        several = self.rests_on["units"] > 1
        bounds = {name: percentile_interval(draws[name], self.rests_on["level"]) for name in draws if several}
        return {
            name: Estimate(value, *(bounds.get(name) or ())) if value == value else Estimate(None)
            for name, value in values.items()
        }


def _divide(tops: np.ndarray, bottoms: np.ndarray) -> np.ndarray:
    """Quotients; NaN where the second is 0."""
    return np.divide(tops, bottoms, out=np.full(np.shape(tops), np.nan), where=bottoms != 0)
