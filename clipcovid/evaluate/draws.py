"""Metrics of several predictions tables of the same images, in resamples that all of them share.

Runs that differ in their seed alone are draws of one method. Its score is their mean, whose interval comes of resampling
seeds beside patients. As many as there are, s, would show too little spread, by (s - 1) / s in variance: s - 1 are drawn
(Rao & Wu, Resampling inference with complex survey data, J. Am. Statist. Ass. 83, 1988).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipcovid.evaluate import bootstrap
from clipcovid.evaluate.calibration import WeightedMetricFn

Resampler = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From indices of images (m,), those drawn twice standing twice, to metrics of k tables, (k,) float64 each."""


@dataclass(frozen=True)
class Draws:
    """Metrics of k tables; NaN where undefined."""

    values: dict[str, np.ndarray]
    """Metric → of all images, (k,) float64."""
    samples: dict[str, np.ndarray]
    """Metric → in each resample, (k, samples) float64."""

    def pool(self, members: Sequence[Sequence[int]], seed: int = 0) -> "Draws":
        """The draws of methods, each the tables of one or several seeds."""
        picks = [_seed_picks(len(tables), self._count, [seed, at]) for at, tables in enumerate(members)]
        values = {
            name: np.array([of_tables[list(tables)].mean() for tables in members])
            for name, of_tables in self.values.items()
        }
        samples = {
            name: np.stack([_pool(of[list(tables)], drawn) for tables, drawn in zip(members, picks, strict=True)])
            for name, of in self.samples.items()
        }
        return Draws(values, samples)

    @property
    def _count(self) -> int:
        return next((of.shape[1] for of in self.samples.values()), 0)


def _seed_picks(seeds: int, samples: int, seed: list[int]) -> np.ndarray:
    """Which seeds stand in each resample, (seeds - 1 or 1, samples) int64."""
    return np.random.default_rng(seed).integers(0, seeds, (max(1, seeds - 1), samples))


def _pool(samples: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """The mean over seeds (s, samples) in each resample of patients and seeds, (samples,); NaN where any seed's is."""
    drawn = np.take_along_axis(samples, picks, axis=0).mean(axis=0)
    return np.where(np.isnan(samples).any(axis=0), np.nan, drawn)


def weighted_table_draws(
    of_subsets: Sequence[Sequence[WeightedMetricFn]], groups: Sequence[str], *, samples: int, seed: int, cells: int = 1
) -> list[Draws]:
    """For each subset of the images: the draws of a metric function of row weights for each table."""
    flat = [draw for of_tables in of_subsets for draw in of_tables]
    drawn = bootstrap.weighted_draws(flat, groups, samples=samples, seed=seed, cells=cells)
    whole = [draw(np.ones((1, len(groups)))) for draw in flat]
    results, at = [], 0
    for of_tables in of_subsets:
        part = slice(at, at + len(of_tables))
        values = {name: column[:, 0] for name, column in _stack(whole[part], 1).items()}
        results.append(Draws(values, _stack(drawn[part], samples)))
        at += len(of_tables)
    return results


def _stack(entries: Sequence[Mapping[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """Metric → (k, count), NaN for entries that lack it."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    missing = np.full(count, np.nan)
    return {name: np.stack([entry.get(name, missing) for entry in entries]) for name in names}


def resampled_table_draws(
    resample: Resampler, subsets: Sequence[np.ndarray], groups: Sequence[str], tables: int, *, samples: int, seed: int
) -> list[Draws]:
    """For each subset of the images, bool (n,): the draws of any metrics, whose function takes indices of images."""

    def of_all_subsets(indices: np.ndarray) -> list[dict[str, np.ndarray]]:
        taken = [indices[subset[indices]] for subset in subsets]
        return [resample(part) if len(part) else {} for part in taken]

    drawn = [of_all_subsets(indices) for indices in bootstrap.resampled_indices(groups, samples=samples, seed=seed)]
    results = []
    for at, values in enumerate(of_all_subsets(np.arange(len(groups)))):
        missing = np.full(tables, np.nan)
        of = {name: np.stack([entry[at].get(name, missing) for entry in drawn], axis=1) for name in values}
        results.append(Draws({name: np.asarray(of_tables, float) for name, of_tables in values.items()}, of))
    return results
