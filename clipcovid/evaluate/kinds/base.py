"""What every kind of predictions says of itself: its columns, headline metrics, scores, tables, figures, differences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate import bootstrap
from clipcovid.evaluate.calibration import WeightedMetricFn
from clipcovid.evaluate.draws import Draws, Resampler, resampled_table_draws, weighted_table_draws
from clipcovid.evaluate.examples import ExampleGroup
from clipcovid.evaluate.hits import Hits
from clipcovid.evaluate.pairs import compare_pairs, differences_to_first
from clipcovid.evaluate.scores import Comparison, DecisionAnalysis, Scores
from clipcovid.evaluate.text_table import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipcovid.data.packed import PackedImages

ScoresT = TypeVar("ScoresT", bound=Scores)


class Kind(ABC, Generic[ScoresT]):
    """A kind of predictions. An object without state; its name stands in the metadata of every predictions table."""

    name: ClassVar[str]
    title: ClassVar[str]
    """What several such predictions are called in a sentence."""
    scores_type: type[ScoresT]
    key_metrics: ClassVar[Mapping[str, str]]
    """Metric → its name in figures: what runs, folds and baselines are judged by, the one that ranks methods first."""
    figure_metrics: ClassVar[Mapping[str, str]] = {}
    """Metric → its name in the figure of a comparison's scores; {}: the key metrics."""
    table_metrics: ClassVar[Mapping[str, str]]
    """Metric → its head in tables of folds and of comparisons."""
    truth_column: ClassVar[str]
    """What an image is scored by, and what methods that are compared must agree on."""
    key_columns: ClassVar[tuple[str, ...]] = ("image_id",)
    """The columns whose values together stand in one row of a predictions table."""
    gap_metrics: ClassVar[tuple[str, ...]] = ()
    """The `table_metrics` that are shown of external sets; (): the key metrics."""
    paired_metrics: ClassVar[tuple[str, ...]] = ()
    """The metrics whose differences to the best are shown; (): all of `draws`."""
    pair_metrics: ClassVar[tuple[str, ...]] = ()
    """The metrics that all pairs are compared by; (): all of `draws`."""
    group_metrics: ClassVar[tuple[str, ...]] = ()
    """The metrics of subgroups; (): the key metrics."""
    detail_metrics: ClassVar[Mapping[str, str]] = {}
    """Metric → head of a second table of a comparison, which is not printed."""
    has_correctness_tests: ClassVar[bool] = False
    """Whether McNemar's and Cochran's tests are made of `hits`, right and wrong being more than a cut through a score."""
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

    def resampler(self, tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> Resampler:
        """The metrics whose differences count, of several tables of the same images in the same order, on any resample.

        Indices are of images, in the order in which they stand in the tables. What is undefined is left out or NaN. A kind
        whose metrics follow from weights of the images defines `weighted_metrics` in its place, which is faster.
        """
        raise NotImplementedError(f"{self.name} has neither a resampler nor weighted metrics")

    def weighted_metrics(
        self, tables: Sequence[pd.DataFrame], classes: Sequence[str], subset: np.ndarray | None
    ) -> list[WeightedMetricFn]:
        """The metrics of each table, of all images or of `subset`, bool (n,), as functions of the images' weights."""
        return []

    def draws(
        self,
        tables: Sequence[pd.DataFrame],
        classes: Sequence[str],
        *,
        subsets: Sequence[np.ndarray] = (),
        samples: int = 1000,
        seed: int = 0,
    ) -> list[Draws]:
        """The metrics of tables of the same images in the same order: of all images, then of each of `subsets`, bool (n,).

        Resamples are of patients, and the same for all tables and subsets.
        """
        groups = bootstrap.image_groups(tables[0])
        if weighted := self.weighted_metrics(tables, classes, None):
            of_subsets = [weighted, *(self.weighted_metrics(tables, classes, subset) for subset in subsets)]
            cells = len(classes) ** 2
            return weighted_table_draws(of_subsets, groups, samples=samples, seed=seed, cells=cells)
        masks = [np.ones(len(groups), bool), *subsets]
        resample = self.resampler(tables, classes)
        return resampled_table_draws(resample, masks, groups, len(tables), samples=samples, seed=seed)

    def differences(
        self, tables: Mapping[str, pd.DataFrame], classes: Sequence[str], *, samples: int = 1000, seed: int = 0
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Each method minus the first, which is left out: metric → value, and low and high of its 95 % interval.

        `tables`: method → predictions of the same images in the same order. Intervals are percentiles over resamples of
        patients that all methods share; there are none for fewer than two patients or images.
        """
        predictions = list(tables.values())
        draws = self.draws(predictions, classes, samples=samples, seed=seed)[0]
        hits = self.hits(predictions, classes) if self.has_correctness_tests else None
        metrics = self.paired_metrics or draws.values
        pairs = compare_pairs(
            draws,
            {name: at for at, name in enumerate(tables)},
            metrics,
            intervals=bootstrap.count_units(bootstrap.image_groups(predictions[0])) > 1,
            correct=dict(zip(tables, hits.correct, strict=True)) if hits else {},
        )
        return differences_to_first(pairs, metrics)

    def hits(self, tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> Hits | None:
        """Which images each table has right, and what counts as right; None where nothing does."""
        return None

    def analyze_decisions(
        self,
        predictions: Mapping[str, tuple[pd.DataFrame | None, pd.DataFrame]],
        classes: Sequence[str],
        *,
        sensitivity: float,
        coverage: float,
        samples: int,
    ) -> DecisionAnalysis | None:
        """What predictions of validation images (None for none) and of test images together say; None where nothing does."""
        return None

    def describe_predictions(self, table: pd.DataFrame, image_ids: Sequence[str], classes: Sequence[str]) -> list[str]:
        """What a table predicts for some of its images, a few words each."""
        return ["" for _ in image_ids]

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

    def score_with(self, table: pd.DataFrame, classes: Sequence[str], intervals: bootstrap.Intervals) -> ScoresT:
        """The scores of a table where the `intervals` of some metrics are known, so that they need not be found again."""
        return self.score(table, classes)

    def pool_scores(self, scores: Sequence[ScoresT], intervals: bootstrap.Intervals) -> ScoresT:
        """The scores of a method of which there are runs of several seeds: the means of the metrics that all of them have."""
        common = [name for name in scores[0].metrics if all(name in entry.metrics for entry in scores)]
        return replace(
            scores[0],
            metrics={name: float(np.mean([entry.metrics[name] for entry in scores])) for name in common},
            intervals=intervals,
            alarms=list(dict.fromkeys(alarm for entry in scores for alarm in entry.alarms)),
            notes=list(dict.fromkeys(note for entry in scores for note in entry.notes)),
            folds=[],
        )

    def ranking_metric(self, scores: Mapping[str, Scores]) -> str:
        """The first of the key metrics that all methods have, by which they are ranked; none: `UserError`."""
        for metric in self.key_metrics:
            if all(metric in entry.metrics for entry in scores.values()):
                return metric
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

    def class_metrics(self, comparison: Comparison) -> dict[str, dict[str, str]]:
        """Of each class, by the title of its table: metric → head; none where there are no classes to be scored."""
        return {}

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
        """Figures by name: scores with intervals, differences to the best and of all pairs, groups, and decisions."""
        from clipcovid.evaluate import comparison_plots  # matplotlib: what only prints a comparison starts without it

        labels = {
            metric: label
            for metric, label in (self.figure_metrics or self.key_metrics).items()
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
        head = self.key_metrics[comparison.judged_by]
        if len(comparison.methods) > 2:
            figures["pairs"] = comparison_plots.pairs_figure(comparison, head)
        for column in dict.fromkeys(group.column for group in comparison.subgroups):
            figures[f"groups_{column}"] = comparison_plots.groups_figure(comparison, column, head)
        if comparison.decisions:
            figures |= comparison.decisions.figures(comparison.split)
        return figures

    def curve_figures(
        self, tables: Mapping[str, pd.DataFrame], classes: Sequence[str], *, split: str
    ) -> dict[str, Figure]:
        """Figures by name that show all methods' predictions at once. `tables`: as in `differences`."""
        return {}

    def examples(self, tables: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> list[ExampleGroup]:
        """Images that show what the first of several methods does well and badly. `tables`: as in `differences`."""
        return []
