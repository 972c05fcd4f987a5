"""What every kind of predictions says of itself: its columns, headline metrics, scores, tables, figures, differences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate import bootstrap
from clipcovid.evaluate.examples import ExampleGroup
from clipcovid.evaluate.scores import Comparison, Scores
from clipcovid.evaluate.text_table import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipcovid.data.packed import PackedImages

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
    truth_column: ClassVar[str]
    """What an image is scored by, and what methods that are compared must agree on."""
    key_columns: ClassVar[tuple[str, ...]] = ("image_id",)
    """The columns whose values together stand in one row of a predictions table."""
    needs_whole_split: ClassVar[bool] = False
    """Whether an image's row depends on all images of its split, as ranks do."""

    def columns(self, classes: Sequence[str]) -> list[str]:
        """The columns that a predictions table needs."""
        return ["image_id"]

    def check_table(self, table: pd.DataFrame, classes: Sequence[str], path: object) -> None:
        """Refuse a table that is no predictions table of this kind, when it is written and when it is read: `UserError`."""
        if missing := [name for name in self.columns(classes) if name not in table]:
            raise UserError(f"The predictions for {path} lack the columns {', '.join(missing)}.")
        duplicated = table.duplicated(list(self.key_columns))
        if duplicated.any():
            image_id, *others = table.loc[duplicated, list(self.key_columns)].iloc[0]
            of = "".join(
                f" for the {column} {value}" for column, value in zip(self.key_columns[1:], others, strict=True)
            )
            raise UserError(f"Image {image_id!r} stands twice in {path}{of}; an image is predicted once.")

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
        return {}

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
        groups = bootstrap.patient_groups(tables[names[0]].drop_duplicates("image_id"))

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

    @property
    def truth_name(self) -> str:
        """What an image is scored by, in a sentence."""
        return self.truth_column

    def missing_truth(self, table: pd.DataFrame) -> pd.Series:
        """Which rows of a predictions table, bool (n,), have nothing that they could be scored by."""
        if self.truth_column not in table:
            return pd.Series(True, index=table.index)
        return table[self.truth_column].isna() | (table[self.truth_column] == "")

    def comparison_truth(self, table: pd.DataFrame) -> pd.DataFrame:
        """The truth that compared methods must share: a row an image, in the table's order; messages name the columns."""
        return pd.DataFrame({f"the {self.truth_column}": table[self.truth_column]})

    def scores_match(self, scores: ScoresT, table: pd.DataFrame, classes: Sequence[str]) -> bool:
        """Whether stored scores are those of this very table, so that it need not be scored again."""
        return False

    def rank_methods(self, scores: Mapping[str, Scores]) -> list[str]:
        """Methods from the best down, by the first of the key metrics that all of them have; none: `UserError`."""
        for metric in self.key_metrics:
            if all(metric in entry.metrics for entry in scores.values()):
                return sorted(scores, key=lambda name: (-scores[name].metrics[metric], name))
        raise UserError(
            f"The {self.title} of {', '.join(scores)} have none of {', '.join(self.key_metrics)} in common: compare methods "
            "that predict the same."
        )

    def common_baselines(self, scores: Sequence[ScoresT]) -> dict[str, dict[str, Any]]:
        """The baselines that do not depend on the method."""
        return {}

    def comparison_title(self, comparison: Comparison) -> str:
        """The title of the table of scores."""
        return f"{comparison.split}: {comparison.n:,} images"

    def comparison_headers(self, comparison: Comparison) -> dict[str, str]:
        """Metric → head of the table of scores."""
        return self.fold_metrics([scores.metrics for scores in comparison.methods.values()])

    def baseline_names(self, comparison: Comparison) -> dict[str, str]:
        """Baseline → what its row is called."""
        return {name: name for name in comparison.baselines}

    def baseline_notes(self, comparison: Comparison) -> list[str]:
        """Notes on the information that each baseline uses, such as the train split's class shares."""
        return []

    def significance_cells(self, difference: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
        """Head → cell of what a test says of a method's difference to the best."""
        return {}

    def significance_notes(self, comparison: Comparison) -> list[str]:
        """What the test is, and what it assumes."""
        return []

    def comparison_figures(self, comparison: Comparison) -> dict[str, Figure]:
        """Figures by name: the key metrics with intervals, and their differences to the best."""
        from clipcovid.evaluate import comparison_plots  # matplotlib: what only prints a comparison starts without it

        labels = {
            metric: label
            for metric, label in self.key_metrics.items()
            if all(metric in scores.metrics for scores in comparison.methods.values())
        }
        figures = {"scores": comparison_plots.scores_figure(comparison, labels)}
        labels = {
            metric: label
            for metric, label in labels.items()
            if all(metric in gaps for gaps in comparison.paired_differences.values())
        }
        if comparison.paired_differences and labels:
            figures["differences"] = comparison_plots.differences_figure(comparison, labels)
        return figures

    def curve_figures(
        self, tables: Mapping[str, pd.DataFrame], classes: Sequence[str], *, split: str
    ) -> dict[str, Figure]:
        """Figures by name that show all methods' predictions at once. `tables`: as in `differences`."""
        return {}

    def examples(self, tables: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> list[ExampleGroup]:
        """Images that show what the first of several methods does well and badly. `tables`: as in `differences`."""
        return []
