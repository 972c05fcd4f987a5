"""Classifications: a probability of each class for every image, or a ranking or a name where other programs give no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate import bootstrap, metrics
from clipcovid.evaluate.calibration import WeightedMetricFn
from clipcovid.evaluate.decisions import Decisions, analyze_decisions
from clipcovid.evaluate.examples import ExampleGroup, classification_examples
from clipcovid.evaluate.hits import Hits
from clipcovid.evaluate.kinds.base import Kind
from clipcovid.evaluate.number_format import (
    describe_resampling,
    format_interval,
    format_number,
    format_p_value,
    format_short,
)
from clipcovid.evaluate.probabilities import (
    PROBABILITY_PREFIX,
    SIMILARITY_PREFIX,
    check_probabilities,
    class_probabilities,
    get_predictions,
    has_columns,
    rankings,
)
from clipcovid.evaluate.scores import Comparison, Scores
from clipcovid.evaluate.text_table import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipcovid.data.packed import PackedImages

PER_CLASS_METRICS = ("precision", "recall", "specificity", "npv", "f1", "auroc", "auprc")
CLASS_HEADERS = {
    "recall": "Sensitivity",
    "specificity": "Specificity",
    "precision": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "auroc": "AUROC",
    "auprc": "AUPRC",
}


@dataclass(frozen=True, kw_only=True)
class ClassificationScores(Scores):
    """Scores of a classification (`metrics.classification_metrics`), with its confusion matrix."""

    kind = "classification"
    json_marker = "confusion"
    json_order = ("n", "classes", "metrics", "confusion", "intervals", "baselines", "alarms", "notes")

    classes: list[str]
    confusion: list[list[int]]
    """Counts (k, k), a row the true class."""


class Classification(Kind[ClassificationScores]):
    """One class an image. Columns: label, prob_<class>, and patient_id where known."""

    name = "classification"
    title = "classifications"
    truth_column = "label"
    scores_type = ClassificationScores
    key_metrics: ClassVar[Mapping[str, str]] = {"macro_f1": "macro F1", "accuracy": "accuracy"}
    figure_metrics: ClassVar[Mapping[str, str]] = {**key_metrics, "macro_auroc": "macro AUROC"}
    table_metrics: ClassVar[Mapping[str, str]] = {
        "accuracy": "Acc",
        "macro_f1": "F1\n(macro)",
        "macro_precision": "Precision\n(macro)",
        "macro_recall": "Recall\n(macro)",
        "macro_auroc": "AUROC\n(macro)",
    }
    gap_metrics = ("macro_f1", "macro_auroc")
    paired_metrics = ("macro_f1", "accuracy")
    pair_metrics = (
        *("macro_f1", "accuracy", "macro_precision", "macro_recall", "macro_auroc", "macro_auprc", "kappa"),
        *("brier", "ece", "classwise_ece"),
    )
    group_metrics = ("macro_f1", "accuracy", "macro_auroc")
    detail_metrics: ClassVar[Mapping[str, str]] = {
        "kappa": "kappa",
        "macro_auprc": "AUPRC\n(macro)",
        "macro_specificity": "Specificity\n(macro)",
        "brier": "Brier",
        "ece": "ECE",
        "classwise_ece": "ECE\n(class-wise)",
    }
    has_correctness_tests = True

    def columns(self, classes: Sequence[str]) -> list[str]:
        """image_id, label, and prob_<class> of every class."""
        return ["image_id", "label", *(PROBABILITY_PREFIX + name for name in classes)]

    def check_table(self, table: pd.DataFrame, classes: Sequence[str], path: object) -> None:
        """Also refuse probabilities that are no finite numbers, are negative, or do not sum to 1."""
        super().check_table(table, classes, path)
        values = table[[PROBABILITY_PREFIX + name for name in classes]].to_numpy(np.float64)
        if bad := int((~np.isfinite(values)).any(axis=1).sum()):
            raise UserError(f"The predictions for {path} are not finite numbers for {bad} of {len(table)} images.")
        way_out = f"write them again with probabilities in the {PROBABILITY_PREFIX}<class> columns"
        check_probabilities(values, classes, path, way_out)

    def score(
        self,
        table: pd.DataFrame,
        classes: Sequence[str] = (),
        train_labels: Sequence[str] | None = None,
        similarities: np.ndarray | None = None,
    ) -> ClassificationScores:
        """Scores of label against prob_<class> (or sim_<class>, a ranking of class names, or predicted).

        `similarities` (n, k) to the classes' texts add mean_true_similarity, and so do sim_<class> columns. Baselines know
        the class shares of `train_labels`, by default of the scored labels. Errors as in `metrics`.
        """
        return self._score(table, classes, train_labels, similarities, None)

    def _score(
        self,
        table: pd.DataFrame,
        classes: Sequence[str],
        train_labels: Sequence[str] | None,
        similarities: np.ndarray | None,
        intervals: bootstrap.Intervals | None,
    ) -> ClassificationScores:
        labels, classes = table["label"].tolist(), list(classes)
        predictions = get_predictions(table, classes)
        values = _measure(table, labels, predictions, classes)
        if similarities is None and has_columns(table, SIMILARITY_PREFIX):
            similarities = class_probabilities(table, classes, SIMILARITY_PREFIX)
        if similarities is not None:
            values |= metrics.similarity_metrics(labels, similarities, classes)
        patients = bootstrap.patient_groups(table)
        alarm = metrics.collapse_alarm(predictions, labels, classes)
        return ClassificationScores(
            n=len(labels),
            classes=classes,
            metrics=values,
            confusion=metrics.confusion_matrix(labels, predictions, classes).tolist(),
            intervals=intervals or bootstrap.classification_intervals(labels, predictions, classes, patients),
            baselines=metrics.baseline_scores(train_labels, labels, classes),
            alarms=[alarm] if alarm else [],
            notes=_notes(patients, labels, classes),
        )

    def tables(self, scores: ClassificationScores) -> list[TextTable]:
        """All metrics beside the baselines', then the classes."""
        return [_overview(scores), _classes(scores)]

    def figures(
        self,
        table: pd.DataFrame,
        scores: ClassificationScores,
        classes: Sequence[str],
        open_images: Callable[[], PackedImages] | None = None,
        *,
        split: str,
    ) -> dict[str, Figure]:
        """`confusion`, `classes`, and `roc` where there are probabilities; the images are not needed."""
        from clipcovid.evaluate import plots  # matplotlib: a training's first step does not wait for its figures

        return plots.classification_figures(
            table["label"].tolist(), get_predictions(table, classes), classes, split=split
        )

    def weighted_metrics(
        self, tables: Sequence[pd.DataFrame], classes: Sequence[str], subset: np.ndarray | None
    ) -> list[WeightedMetricFn]:
        """All metrics of `bootstrap.weighted_classification_metrics`."""
        labels = tables[0]["label"].tolist()
        predictions = [class_probabilities(table, classes) for table in tables]
        return [bootstrap.weighted_classification_metrics(labels, matrix, classes, subset) for matrix in predictions]

    def hits(self, tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> Hits:
        """Right: the most probable class is the label."""
        truth = metrics.encode_labels(tables[0]["label"].tolist(), classes)
        right = np.stack([class_probabilities(table, classes).argmax(axis=1) == truth for table in tables])
        return Hits("the most probable class is the label", right)

    def analyze_decisions(
        self,
        predictions: Mapping[str, tuple[pd.DataFrame | None, pd.DataFrame]],
        classes: Sequence[str],
        **options: Any,
    ) -> Decisions | None:
        """Calibration, operating points, prediction sets, selective prediction, decision curves."""
        if all(validation is None for validation, _ in predictions.values()):
            return None
        return analyze_decisions(predictions, classes, **options)

    def describe_predictions(self, table: pd.DataFrame, image_ids: Sequence[str], classes: Sequence[str]) -> list[str]:
        """The most probable class and its probability."""
        rows = table.set_index("image_id").loc[list(image_ids)]
        probabilities = class_probabilities(rows, classes)
        best = zip(probabilities.argmax(axis=1), probabilities.max(axis=1), strict=True)
        return [f"{classes[at]} ({format_short(float(value), 2)})" for at, value in best]

    def scores_match(self, scores: ClassificationScores, table: pd.DataFrame, classes: Sequence[str]) -> bool:
        """Whether confusion matrix and metrics agree; scores that an older version made may lack some."""
        probabilities, labels = class_probabilities(table, classes), table["label"].tolist()
        metrics_now = metrics.classification_metrics(labels, probabilities, classes)
        counts = metrics.confusion_matrix(labels, probabilities, classes).tolist()
        return (scores.classes, scores.confusion) == (list(classes), counts) and all(
            math.isclose(scores.metrics[name], value, abs_tol=1e-9)
            for name, value in metrics_now.items()
            if name in scores.metrics
        )

    def score_with(
        self, table: pd.DataFrame, classes: Sequence[str], intervals: bootstrap.Intervals
    ) -> ClassificationScores:
        """Without resampling, which is what takes long."""
        return self._score(table, classes, None, None, intervals)

    def pool_scores(
        self, scores: Sequence[ClassificationScores], intervals: bootstrap.Intervals
    ) -> ClassificationScores:
        """The confusion matrix is the sum of all seeds'."""
        counts = np.sum([entry.confusion for entry in scores], axis=0).tolist()
        return replace(super().pool_scores(scores, intervals), confusion=counts)

    def common_baselines(self, scores: Sequence[ClassificationScores]) -> dict[str, dict[str, Any]]:
        """Majority and prior, by the train split's class shares where any method's scores have them."""
        baselines = [entry.baselines for entry in scores]
        of_train_split = [entry for entry in baselines if entry["majority"]["from"] == "train"]
        return (of_train_split or baselines)[0]

    def comparison_title(self, comparison: Comparison) -> str:
        """Also the number of classes."""
        return f"{super().comparison_title(comparison)}, {len(comparison.classes)} classes"

    def comparison_headers(self, comparison: Comparison) -> dict[str, str]:
        """All of the metrics, defined or not."""
        return dict(self.table_metrics)

    def baseline_names(self, comparison: Comparison) -> dict[str, str]:
        """The majority with its class."""
        return {"majority": f"majority ({comparison.baselines['majority']['class']})", "prior": "prior"}

    def baseline_notes(self, comparison: Comparison) -> list[str]:
        """Whose class shares the baselines know."""
        return [f"The baselines see no image and know the class shares of the {_shares(comparison.baselines)}."]

    def class_metrics(self, comparison: Comparison) -> dict[str, dict[str, str]]:
        """Sensitivity, specificity and predictive values at the most probable class, and what all thresholds give."""
        confusion = np.array(cast(ClassificationScores, comparison.methods[comparison.best]).confusion)
        shares = confusion.sum(axis=1) / confusion.sum()
        return {
            f"{name}: {share:.0%} of the images": {f"{metric}/{name}": head for metric, head in CLASS_HEADERS.items()}
            for name, share in zip(comparison.classes, shares, strict=True)
            if share > 0
        }

    def significance_cells(self, gap: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
        """McNemar's test: counts and p-values; empty for a method of several seeds."""
        heads = ("only best\nright", "only this\nright", "p", "p\n(Holm)")
        test = gap.get("mcnemar")
        if test is None:
            return dict.fromkeys(heads, "")
        counts = (f"{test['only_best']:,}", f"{test['only_this']:,}")
        return dict(zip(heads, (*counts, format_p_value(test["p"]), format_p_value(test["p_holm"])), strict=True))

    def significance_notes(self, comparison: Comparison) -> list[str]:
        """McNemar's and Cochran's tests, and that they take images as independent."""
        notes = [
            "p: McNemar's exact test of accuracy, and after Holm's correction for the number of pairs."
            if any(pair.mcnemar for pair in comparison.pairs)
            else "McNemar's test is of single runs: go by the intervals."
        ]
        if test := comparison.cochran_q:
            notes.append(
                f"Cochran's Q of the accuracy of {test['df'] + 1:.0f} methods is {test['statistic']:.1f} (p "
                f"{format_p_value(test['p'])}): "
                + ("they are not all alike." if test["p"] < 0.05 else "no sign that they differ.")
            )
        units = comparison.methods[comparison.best].intervals["units"]
        if units < comparison.n and any(pair.mcnemar for pair in comparison.pairs):
            tests = "McNemar's and Cochran's tests take" if comparison.cochran_q else "McNemar's test takes"
            notes.append(
                f"{tests} images as independent, but {comparison.n:,} images are of {units:,} patients, so p "
                "may be too small: go by the intervals."
            )
        return notes

    def comparison_figures(self, comparison: Comparison) -> dict[str, Figure]:
        """Also the scores of each class, and the confusion matrices."""
        from clipcovid.evaluate import comparison_plots  # matplotlib: what only prints a comparison starts without it

        confusions = {name: cast(ClassificationScores, scores).confusion for name, scores in comparison.methods.items()}
        return super().comparison_figures(comparison) | {
            "classes": comparison_plots.per_class_figure(comparison),
            "confusions": comparison_plots.confusions_figure(comparison, confusions),
        }

    def curve_figures(
        self, tables: Mapping[str, pd.DataFrame], classes: Sequence[str], *, split: str
    ) -> dict[str, Figure]:
        """`roc` and `precision_recall`, where the labels have two classes or more."""
        from clipcovid.evaluate import curves  # matplotlib: what only prints a comparison starts without it

        truth = metrics.encode_labels(next(iter(tables.values()))["label"].tolist(), classes)
        if len(set(truth.tolist())) < 2:
            return {}
        probabilities = {name: class_probabilities(table, classes) for name, table in tables.items()}
        return {
            "roc": curves.roc_curves_figure(truth, probabilities, classes, split=split),
            "precision_recall": curves.precision_recall_figure(truth, probabilities, classes, split=split),
        }

    def examples(self, tables: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> list[ExampleGroup]:
        """The first method's hits and misses, and what all methods miss."""
        return classification_examples(tables, classes)


def _shares(baselines: Mapping[str, Mapping[str, Any]]) -> str:
    """Whose class shares the baselines know."""
    origin = str(baselines["majority"]["from"])
    return "train split" if origin == "train" else origin


def _measure(
    table: pd.DataFrame, labels: Sequence[str], predictions: metrics.Predictions, classes: Sequence[str]
) -> dict[str, float]:
    if isinstance(predictions, np.ndarray):
        return metrics.classification_metrics(labels, predictions, classes)
    ranked = rankings(table, classes)
    if ranked is not None:
        return metrics.ranking_metrics(labels, ranked, classes)
    return metrics.hard_label_metrics(labels, predictions, classes)


def _notes(patients: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> list[str]:
    notes = []
    if 0 < (unknown := patients.count("")) < len(patients):
        notes.append(
            f"{unknown} of {len(patients)} images have no patient id and count as patients of their own, "
            "so the intervals may be too narrow."
        )
    if absent := [name for name in classes if name not in set(labels)]:
        notes.append(f"No image is labelled {', '.join(absent)}; macro averages leave out what no image is.")
    return notes


def _overview(scores: ClassificationScores) -> TextTable:
    intervals, baselines = scores.intervals, scores.baselines
    majority, prior = baselines["majority"], baselines["prior"]
    rows = [
        (
            name,
            format_number(value),
            format_interval(intervals["intervals"].get(name)),
            *map(format_number, (majority.get(name), prior.get(name))),
        )
        for name, value in scores.metrics.items()
        if "/" not in name
    ]
    return TextTable(
        title=f"{scores.n:,} images, {len(scores.classes)} classes",
        caption=f"{describe_resampling(intervals)}; baselines see no image and know the class shares of the "
        f"{_shares(baselines)}",
        headers=("metric", "value", f"{intervals['level']:.0%} interval", f"majority\n({majority['class']})", "prior"),
        sections=[rows],
        no_wrap="names",
        bold=1,
    )


def _classes(scores: ClassificationScores) -> TextTable:
    names = [name for name in PER_CLASS_METRICS if any(key.startswith(f"{name}/") for key in scores.metrics)]
    predicted_counts = [sum(column) for column in zip(*scores.confusion, strict=True)]
    rows = []
    for row, (class_name, counts) in enumerate(zip(scores.classes, scores.confusion, strict=True)):
        values = (format_number(scores.metrics.get(f"{metric}/{class_name}")) for metric in names)
        rows.append((class_name, f"{sum(counts):,}", f"{predicted_counts[row]:,}", *values))
    heads = [name.replace("specificity", "speci-\nficity") for name in names]  # for 80 columns
    return TextTable(headers=("class", "images", "predicted", *heads), sections=[rows], border="plain", wrap_cells=True)


KIND = Classification()
