"""All methods side by side on the same images, from their predictions tables alone.

`load_method_predictions` gives tables that fit together, `compare` makes a `Comparison` of them, and all tables and figures
are made of that.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from clipcovid.config import RESEARCH_ONLY
from clipcovid.errors import UserError
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.load_predictions import MethodPredictions
from clipcovid.evaluate.number_format import format_with_interval
from clipcovid.evaluate.scores import Comparison, Scores
from clipcovid.evaluate.text_table import TextTable
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
    out: Path = Path("outputs")
    """Where run folders and the MLflow store are."""
    name: str = ""
    """The comparison's folder in `out`. Default: compare and a hash of what is compared."""


def compare(methods: Sequence[MethodPredictions]) -> Comparison:
    """The comparison of methods of one kind, from the best down by the kind's first key metric that all have.

    Scores that a run's folder holds for this very table are taken from there, where the kind can tell.
    """
    metadata = methods[0].metadata
    kind, classes = get_kind(metadata["task"]), list(metadata["classes"])
    scores = {method.name: _scores(method, classes) for method in methods}
    order = kind.rank_methods(scores)
    by_name = {method.name: method for method in methods}
    comparison = Comparison(
        kind=kind.name,
        split=metadata["split"],
        split_hash=metadata["split_hash"],
        manifest_hash=metadata["manifest_hash"],
        n=methods[0].table["image_id"].nunique(),
        classes=classes,
        best=order[0],
        methods={name: scores[name] for name in order},
        runs={name: by_name[name].run for name in order},
        sources={name: by_name[name].source for name in order},
        baselines=kind.common_baselines([scores[name] for name in order]),
        paired_differences=kind.differences({name: by_name[name].table for name in order}, classes),
        alarms=[f"{name}: {alarm}" for name in order for alarm in scores[name].alarms],
    )
    learned = [
        f"{method.name} learned from {len(method.trained_on)} of the images that it predicts, by their pixels: no method is "
        "scored on them."
        for method in methods
        if method.trained_on
    ]
    return dataclasses.replace(comparison, notes=[*learned, *_notes(comparison)])


def _scores(method: MethodPredictions, classes: list[str]) -> Scores:
    """The scores that the run's folder holds, if they are of this table, else new ones."""
    kind = get_kind(method.metadata["task"])
    try:
        if method.stored_scores is not None and kind.scores_match(method.stored_scores, method.table, classes):
            return method.stored_scores
        scores: Scores = kind.score(method.table, classes)
    except UserError as error:
        raise UserError(f"{method.source}: {error}") from None
    return scores


def _notes(comparison: Comparison) -> list[str]:
    kind, intervals = get_kind(comparison.kind), comparison.methods[comparison.best].intervals
    unknown = ", for no patient ids are known" if intervals["unit"] == "image" else ""
    resampled = (
        f"Intervals are {intervals['level']:.0%} bootstrap intervals by {intervals['unit']} "
        f"({intervals['units']:,} of them{unknown})."
    )
    notes = [
        resampled if intervals["units"] > 1 else f"There are no intervals: all is of one {intervals['unit']}.",
        *kind.baseline_notes(comparison),
    ]
    if comparison.paired_differences:
        notes += [
            f"Differences are to {comparison.best}, over the same resamples for both; it was found to be the best on "
            "these very images, which flatters it.",
            *kind.significance_notes(comparison),
        ]
    return [*notes, *dict.fromkeys(note for scores in comparison.methods.values() for note in scores.notes)]


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write comparison.{json,csv,md}, metrics.json (method → scores) and the figures into `folder`."""
    from clipcovid.evaluate import plots  # matplotlib: what only prints a comparison starts without it

    write_json(folder / "comparison.json", comparison.to_json())
    write_json(folder / "metrics.json", comparison.methods_json())
    write_text(folder / "comparison.csv", comparison_frame(comparison).to_csv(index=False))
    write_text(folder / "comparison.md", comparison_markdown(comparison))
    plots.save_figures(get_kind(comparison.kind).comparison_figures(comparison), folder / "figures")


def comparison_markdown(comparison: Comparison) -> str:
    """What `console.print_comparison` prints, as Markdown."""
    lines = [line for table in comparison_tables(comparison) for line in table.markdown()]
    lines += [f"- {note}" for note in comparison.notes]
    lines += [f"- **warning:** {alarm}" for alarm in comparison.alarms]
    return "\n".join([*lines, "", RESEARCH_ONLY, ""])


def comparison_tables(comparison: Comparison) -> list[TextTable]:
    """The methods' scores and the baselines beneath; then, if there are any, the differences to the best."""
    kind = get_kind(comparison.kind)
    heads = kind.comparison_headers(comparison)
    rows = [[name] for name in comparison.methods]
    for metric in heads:
        intervals = [scores.intervals["intervals"].get(metric) for scores in comparison.methods.values()]
        narrow = any(interval and interval[1] - interval[0] < 0.01 for interval in intervals)
        for row, scores, interval in zip(rows, comparison.methods.values(), intervals, strict=True):
            row.append(format_with_interval(scores.metrics.get(metric), interval, 3 if narrow else 2))
    names = kind.baseline_names(comparison)
    baselines = [
        [names[name], *(format_with_interval(values.get(metric)) for metric in heads)]
        for name, values in comparison.baselines.items()
    ]
    tables = [_table(kind.comparison_title(comparison), ["Method", *heads.values()], rows, baselines)]
    return [*tables, _difference_table(comparison)] if comparison.paired_differences else tables


def _difference_table(comparison: Comparison) -> TextTable:
    kind = get_kind(comparison.kind)
    heads = ["Method"]
    rows = []
    for name, gaps in comparison.paired_differences.items():
        metrics = [metric for metric in gaps if metric in kind.table_metrics]
        tests = kind.significance_cells(gaps)
        cells = [format_with_interval(gaps[metric]["value"], _bounds(gaps[metric]), 3) for metric in metrics]
        heads = ["Method", *(kind.table_metrics[metric] for metric in metrics), *tests]
        rows.append([name, *cells, *tests.values()])
    return _table(f"Minus {comparison.best}", heads, rows)


def _bounds(gap: dict[str, float]) -> tuple[float, float] | None:
    return (gap["low"], gap["high"]) if "low" in gap else None


def _table(title: str, heads: list[str], *sections: list[list[str]]) -> TextTable:
    return TextTable(title=title, headers=heads, sections=sections, wrap_cells=True, no_wrap="numbers", title_left=True)


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
