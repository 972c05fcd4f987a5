"""All methods side by side on the same images, from their predictions tables alone.

`load_method_predictions` gives tables that fit together, `compare` makes a `Comparison` of them, and all tables and figures
are made of that.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro

from clipcovid.config import RESEARCH_ONLY, ComputeConfig
from clipcovid.data.manifest import read_manifest
from clipcovid.errors import UserError
from clipcovid.evaluate import bootstrap, significance
from clipcovid.evaluate.comparison_notes import baseline_alarms, comparison_notes
from clipcovid.evaluate.comparison_tables import comparison_tables
from clipcovid.evaluate.draws import Draws
from clipcovid.evaluate.hits import HardImages, Hits, find_hard_images
from clipcovid.evaluate.kinds.base import Kind
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.load_predictions import MethodPredictions, load_validation
from clipcovid.evaluate.pairs import compare_pairs, differences_to_first
from clipcovid.evaluate.scores import Comparison, DecisionAnalysis, Scores
from clipcovid.evaluate.seeds import group_by_seed, name_alarms, seed_runs
from clipcovid.evaluate.subgroups import find_groups, score_groups
from clipcovid.evaluate.text_table import markdown_text
from clipcovid.io.files import write_json, write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What to compare."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders, or .parquet files of predictions. Default: all finished runs in `out` that predict the split."""
    split: str = "test"
    """The split whose predictions are compared; crossval: the pooled folds of cross-validations."""
    kind: str = "classification"
    """The kind of runs that are found in `out` where none are named: classification, segmentation or captions."""
    margin: float | None = None
    """Methods whose difference in the ranking metric surely lies within this margin, e.g. 0.02, are called equivalent."""
    by: tuple[str, ...] = ()
    """Columns of the manifest, e.g. source view sex age, whose groups are scored apart. Needs `data`."""
    data: Path | None = None
    """The prepared folder whose manifest has the columns of `by`."""
    min_patients: int = 20
    """Groups of fewer patients (of images, where patients are unknown) are too few to be scored."""
    sensitivity: float = 0.9
    """What operating points are chosen to reach on the validation images."""
    coverage: float = 0.9
    """The share of prediction sets that are to have the true class."""
    pool_seeds: bool = True
    """Whether runs that differ in their seed alone are one method."""
    samples: int = 1000
    """Resamples of the bootstrap."""
    external: tuple[Path, ...] = ()
    """Other prepared folders, which every method that can is predicted on and scored, for the gap to its scores here."""
    external_map: tuple[str, ...] = ()
    """The methods' class for each of the external sets' that they do not know, e.g. Pneumonia=Non-COVID; Other= leaves those
    out, and negative=Non-COVID+Normal makes one class of two."""
    external_split: Literal["train", "val", "test", "all"] = "all"
    """The split of the external sets that is predicted."""
    clip_vs_cnn: bool = False
    """Also say in words what CLIPs and CNNs can do here: new classes, phrasing, over-fitting, and where each wins."""
    compute: ComputeConfig = ComputeConfig()
    """What to ask of the cluster for predictions, of external sets and of the train split."""
    out: Path = Path("outputs")
    """Where run folders and the MLflow store are."""
    name: str = ""
    """The comparison's folder in `out`. Default: compare and a hash of what is compared."""

    def __post_init__(self) -> None:
        if self.margin is not None and not 0 < self.margin < 1:
            raise UserError(f"--margin {self.margin} must be between 0 and 1, e.g. 0.02.")
        if self.by and self.data is None:
            raise UserError(
                f"--by {' '.join(self.by)} needs --data, the prepared folder whose manifest has the columns."
            )
        if self.samples < 100:
            raise UserError(f"--samples {self.samples}: fewer than 100 resamples give no interval.")
        if self.external_map and not self.external:
            raise UserError(
                f"--external-map {' '.join(self.external_map)} needs --external, the sets that have these classes."
            )
        if self.min_patients < 2:
            raise UserError(f"--min-patients {self.min_patients} must be at least 2.")

    @property
    def settings(self) -> dict[str, Any]:
        """What changes a comparison of the same predictions."""
        names = ("margin", "by", "min_patients", "pool_seeds", "samples", "sensitivity", "coverage")
        return {name: getattr(self, name) for name in names}


DEFAULT = CompareConfig()


def compare(methods: Sequence[MethodPredictions], config: CompareConfig = DEFAULT) -> Comparison:
    """The comparison of methods of one kind, from the best down by the kind's first key metric that all have.

    All intervals and tests rest on the same resamples of patients. Scores that a run's folder holds for this very table are
    taken from there, where the kind can tell.
    """
    metadata = methods[0].metadata
    kind, classes = get_kind(metadata["task"]), list(metadata["classes"])
    tables, images = [method.table for method in methods], _images(methods[0].table)
    members = group_by_seed(methods, config.pool_seeds)
    groups = find_groups(read_manifest(config.data), config.by, images) if config.data and config.by else []
    drawn = kind.draws(tables, classes, subsets=[group.rows for group in groups], samples=config.samples)
    draws, *of_groups = [entry.pool(list(members.values())) for entry in drawn]
    of_runs = [_run_scores(method, classes, drawn[0], at, images) for at, method in enumerate(methods)]
    scores = _method_scores(methods, of_runs, members, draws, images)
    judged_by = kind.ranking_metric(scores)
    order = sorted(scores, key=lambda name: (-scores[name].metrics[judged_by], name))
    rows = {name: list(scores).index(name) for name in order}
    metrics = kind.group_metrics or [*kind.key_metrics]
    subgroups, gaps = score_groups(groups, of_groups, rows, metrics, images, config.min_patients)
    runs = {name: [methods[at] for at in members[name]] for name in order}
    hits = kind.hits(tables, classes)
    comparison = dataclasses.replace(
        _without_tests(metadata, {name: scores[name] for name in order}, runs, len(images)),
        judged_by=judged_by,
        margin=config.margin,
        seeds={
            name: seed_runs(of_seeds, [of_runs[at].metrics for at in members[name]])
            for name, of_seeds in runs.items()
            if len(of_seeds) > 1
        },
        subgroups=subgroups,
        gaps=gaps,
        hard_images=_hard_images(kind, hits, methods, images, classes) if hits else None,
        decisions=_decisions(kind, runs, classes, config),
    )
    right = {name: hits.correct[members[name][0]] for name in order if hits and name not in comparison.seeds}
    comparison = _with_tests(comparison, draws, rows, right if kind.has_correctness_tests else {})
    return dataclasses.replace(
        comparison,
        notes=[*_learned_notes(methods), *comparison_notes(comparison)],
        alarms=[*baseline_alarms(comparison), *comparison.alarms],
    )


def _without_tests(
    metadata: Mapping[str, Any], scores: dict[str, Scores], runs: Mapping[str, Sequence[MethodPredictions]], n: int
) -> Comparison:
    """The methods and their scores, the best first."""
    return Comparison(
        kind=metadata["task"],
        split=metadata["split"],
        split_hash=metadata["split_hash"],
        manifest_hash=metadata["manifest_hash"],
        n=n,
        classes=list(metadata["classes"]),
        best=next(iter(scores)),
        methods=scores,
        runs={name: ", ".join(run.run for run in of_seeds) for name, of_seeds in runs.items()},
        sources={name: ", ".join(run.source for run in of_seeds) for name, of_seeds in runs.items()},
        baselines=get_kind(metadata["task"]).common_baselines(list(scores.values())),
        paired_differences={},
        alarms=[f"{name}: {alarm}" for name, entry in scores.items() for alarm in entry.alarms],
    )


def _images(table: pd.DataFrame) -> pd.DataFrame:
    """image_id, label and patient_id of each image of a predictions table, once."""
    return table.drop_duplicates("image_id")[["image_id", "label", "patient_id"]].reset_index(drop=True)


def _intervals(draws: Draws, row: int, images: pd.DataFrame) -> bootstrap.Intervals:
    of_table = {metric: samples[row] for metric, samples in draws.samples.items()}
    return bootstrap.percentile_intervals(of_table, bootstrap.patient_groups(images))


def _run_scores(method: MethodPredictions, classes: list[str], draws: Draws, row: int, images: pd.DataFrame) -> Scores:
    """The scores that the run's folder holds, if they are of this table, else new ones; what they lack is added."""
    kind, intervals = get_kind(method.metadata["task"]), _intervals(draws, row, images)
    stored = method.stored_scores
    try:
        if stored is not None and kind.scores_match(stored, method.table, classes):
            scores = stored
        else:
            scores = kind.score_with(method.table, classes, intervals)
    except UserError as error:
        raise UserError(f"{method.source}: {error}") from None
    values = {
        metric: float(of_tables[row]) for metric, of_tables in draws.values.items() if not np.isnan(of_tables[row])
    }
    known = scores.intervals
    if known["samples"] == intervals["samples"] or not known["intervals"].keys() <= intervals["intervals"].keys():
        intervals = {**known, "intervals": intervals["intervals"] | known["intervals"]}
    return dataclasses.replace(scores, metrics=values | scores.metrics, intervals=intervals)


def _method_scores(
    methods: Sequence[MethodPredictions],
    of_runs: Sequence[Scores],
    members: Mapping[str, Sequence[int]],
    draws: Draws,
    images: pd.DataFrame,
) -> dict[str, Scores]:
    """Method → its run's scores, or those of its runs of several seeds together."""
    kind = get_kind(methods[0].metadata["task"])
    return {
        name: of_runs[positions[0]]
        if len(positions) == 1
        else kind.pool_scores(
            [name_alarms(methods[at], of_runs[at]) for at in positions], _intervals(draws, row, images)
        )
        for row, (name, positions) in enumerate(members.items())
    }


def _with_tests(
    comparison: Comparison, draws: Draws, rows: Mapping[str, int], right: Mapping[str, np.ndarray]
) -> Comparison:
    """The comparison with all pairs, and Cochran's Q; `right`: which images each method that is tested has right."""
    kind = get_kind(comparison.kind)
    pairs = compare_pairs(
        draws,
        rows,
        kind.pair_metrics or draws.values,
        intervals=comparison.methods[comparison.best].intervals["units"] > 1,
        correct=right,
        margin=comparison.margin,
        judged_by=comparison.judged_by,
    )
    return dataclasses.replace(
        comparison,
        pairs=pairs,
        paired_differences=differences_to_first(pairs, kind.paired_metrics or draws.values),
        cochran_q=significance.cochran_q(np.stack(list(right.values()))) if len(right) > 2 else {},
    )


def _hard_images(
    kind: Kind[Any], hits: Hits, methods: Sequence[MethodPredictions], images: pd.DataFrame, classes: list[str]
) -> HardImages:
    def describe(at: int, image_ids: Sequence[str]) -> list[str]:
        return kind.describe_predictions(methods[at].table, image_ids, classes)

    return find_hard_images(hits, [method.name for method in methods], images, describe)


def _decisions(
    kind: Kind[Any], runs: Mapping[str, Sequence[MethodPredictions]], classes: list[str], config: CompareConfig
) -> DecisionAnalysis | None:
    """Of each method, by its first run, with the validation images that the run predicted."""
    return kind.analyze_decisions(
        {name: (load_validation(of_seeds[0]), of_seeds[0].table) for name, of_seeds in runs.items()},
        classes,
        sensitivity=config.sensitivity,
        coverage=config.coverage,
        samples=config.samples,
    )


def _learned_notes(methods: Sequence[MethodPredictions]) -> list[str]:
    return [
        f"{method.name} learned from {len(method.trained_on)} of the images that it predicts, by their pixels: no method is "
        "scored on them."
        for method in methods
        if method.trained_on
    ]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write comparison.{json,csv,md}, metrics.json (method → scores) and the figures into `folder`."""
    from clipcovid.evaluate import external_plots, plots  # matplotlib: what only prints a comparison starts without it

    write_json(folder / "comparison.json", comparison.to_json())
    write_json(folder / "metrics.json", comparison.methods_json())
    write_text(folder / "comparison.csv", comparison_frame(comparison).to_csv(index=False))
    write_text(folder / "comparison.md", comparison_markdown(comparison))
    figures = get_kind(comparison.kind).comparison_figures(comparison)
    if comparison.external:
        figures |= external_plots.external_figures(comparison)
    plots.save_figures(figures, folder / "figures")


def comparison_markdown(comparison: Comparison) -> str:
    """All tables and notes of a comparison as Markdown."""
    lines = [line for table in comparison_tables(comparison) for line in table.markdown()]
    lines += [f"- {markdown_text(note)}" for note in comparison.notes]
    lines += [f"- **warning:** {markdown_text(alarm)}" for alarm in comparison.alarms]
    return "\n".join([*lines, "", RESEARCH_ONLY, ""])


def comparison_frame(comparison: Comparison) -> pd.DataFrame:
    """A row a method, then the baselines: every score as <score>, <score>_low, <score>_high; empty where undefined."""
    rows = []
    for name, scores in comparison.methods.items():
        run, source = comparison.runs[name], comparison.sources[name]
        row: dict[str, Any] = {"method": name, "kind": "method", "run": run, "source": source, "n": scores.n}
        intervals = scores.intervals
        row |= {"unit": intervals["unit"], "units": intervals["units"]}
        row |= {"level": intervals["level"], "samples": intervals["samples"]}
        for metric, value in scores.metrics.items():
            low, high = intervals["intervals"].get(metric, (None, None))
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        gaps = comparison.paired_differences.get(name, {})
        for metric in (metric for metric in gaps if metric != "mcnemar"):
            row |= {
                f"difference_{metric}{'' if key == 'value' else f'_{key}'}": value
                for key, value in gaps[metric].items()
            }
        rows.append(row | {f"mcnemar_{key}": value for key, value in gaps.get("mcnemar", {}).items()})
    for name, values in comparison.baselines.items():
        numbers = {key: value for key, value in values.items() if not isinstance(value, str)}
        rows.append({"method": name, "kind": "baseline", "n": comparison.n, **numbers})
    return pd.DataFrame(rows)
