"""What every kind of predictions says of itself: its columns, headline metrics, scores, tables, figures, differences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate import bootstrap
from clipcovid.evaluate.bootstrap import Intervals
from clipcovid.evaluate.text_table import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipcovid.data.packed import PackedImages


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one predictions table, as an entry of metrics.json holds them; no value is NaN."""

    kind: ClassVar[str]
    marker: ClassVar[str]
    """The key that of all kinds only this one's JSON has."""
    json_order: ClassVar[tuple[str, ...]]
    """The keys of the JSON, which are fields, in their order."""

    n: int
    """Images scored."""
    metrics: dict[str, float]
    intervals: Intervals
    baselines: dict[str, dict[str, Any]]
    """What sees no image → its metrics, and texts that say what it is."""
    alarms: list[str] = field(default_factory=list)
    """Sentences on what is likely to be wrong."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what the scores rest on."""
    folds: list[dict[str, float]] = field(default_factory=list)
    """Of a cross-validation: the metrics of each fold's test images."""

    def to_json(self) -> dict[str, Any]:
        """The entry of metrics.json; without folds where there are none."""
        content = {name: getattr(self, name) for name in self.json_order}
        return content | ({"folds": self.folds} if self.folds else {})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The scores that `to_json` gave; other keys are passed over."""
        return cls(**{entry.name: content[entry.name] for entry in fields(cls) if entry.name in content})


ScoresT = TypeVar("ScoresT", bound=Scores)
Resampler = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From indices of images (m,), those drawn twice standing twice, to metrics of k tables, (k,) float64 each."""


class Kind(ABC, Generic[ScoresT]):
    """A kind of predictions. An object without state; its name stands in the metadata of every predictions table."""

    name: ClassVar[str]
    title: ClassVar[str]
    """What several such predictions are called in a sentence."""
    scores_type: type[ScoresT]
    key_metrics: ClassVar[Mapping[str, str]]
    """Metric → its name in figures: what runs, folds and baselines are judged by, the one that ranks methods first."""
    table_metrics: ClassVar[Mapping[str, str]]
    """Metric → its head in tables of folds and of comparisons."""
    needs_whole_split: ClassVar[bool] = False
    """Whether an image's row depends on all images of its split, as ranks do."""

    def columns(self, classes: Sequence[str]) -> list[str]:
        """The columns that a predictions table needs."""
        return ["image_id"]

    def check(self, table: pd.DataFrame, classes: Sequence[str], path: object) -> None:
        """Refuse a predictions table that `path` must not hold by a `UserError`."""
        if missing := [name for name in self.columns(classes) if name not in table]:
            raise UserError(f"The predictions for {path} lack the columns {', '.join(missing)}.")

    def check_images(self, rows: pd.DataFrame) -> None:
        """Refuse rows of a manifest whose truth can't be read later, before anything is predicted: `UserError`."""

    @abstractmethod
    def score(
        self,
        table: pd.DataFrame,
        classes: Sequence[str] = (),
        train_labels: Sequence[str] | None = None,
        similarities: np.ndarray | None = None,
    ) -> ScoresT:
        """The scores of a predictions table; `patient_id`, where known, is what intervals are resampled by."""

    @abstractmethod
    def tables(self, scores: ScoresT) -> list[TextTable]:
        """The scores as tables for a terminal, 80 columns wide."""

    @abstractmethod
    def figures(
        self,
        table: pd.DataFrame,
        scores: ScoresT,
        classes: Sequence[str],
        open_images: Callable[[], PackedImages],
        *,
        split: str,
    ) -> dict[str, Figure]:
        """The figures of a predictions table and its scores, by name. `open_images` gives the images it is of."""

    def fold_metrics(self, folds: Sequence[Mapping[str, float]]) -> dict[str, str]:
        """Metric → head of those `table_metrics` that any fold has."""
        return {name: head for name, head in self.table_metrics.items() if any(name in metrics for metrics in folds)}

    @abstractmethod
    def resampler(self, tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> Resampler:
        """The metrics whose differences count, of several tables of the same images in the same order, on any resample.

        Indices are of images, in the order in which they stand in the tables. What is undefined is left out or NaN.
        """

    def differences(
        self, tables: Mapping[str, pd.DataFrame], classes: Sequence[str], *, samples: int = 1000, seed: int = 0
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Each method minus the first, which is left out: metric → value, and low and high of its 95 % interval.

        `tables`: method → predictions of the same images in the same order. Intervals are percentiles over resamples of
        patients that all methods share; there are none for fewer than two patients or images.
        """
        names = list(tables)
        resample = self.resampler(list(tables.values()), classes)
        groups = bootstrap.patients(tables[names[0]].drop_duplicates("image_id"))

        def minus_first(indices: np.ndarray) -> dict[str, float]:
            return {
                f"{at}/{metric}": float(values[at] - values[0])
                for metric, values in resample(indices).items()
                for at in range(1, len(names))
            }

        values = minus_first(np.arange(len(groups)))
        bounds = bootstrap.bootstrap(minus_first, groups, samples=samples, seed=seed)["intervals"] if values else {}
        paired: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names[1:]}
        for key, value in values.items():
            at, _, metric = key.partition("/")
            interval = dict(zip(("low", "high"), bounds.get(key, ()), strict=False))
            paired[names[int(at)]][metric] = {"value": value, **interval}
        return paired
