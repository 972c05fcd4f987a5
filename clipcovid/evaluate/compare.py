"""All methods side by side on the same images, from their predictions tables alone.

`methods.read` gives tables that fit together, `compare` makes one JSON-ready dict of them, and all tables and figures
are made of that dict.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from clipcovid.config import RESEARCH_ONLY, UserError
from clipcovid.evaluate import metrics
from clipcovid.evaluate.kinds.classification import KIND
from clipcovid.evaluate.load_predictions import Method
from clipcovid.evaluate.number_format import p_value, value_with_interval
from clipcovid.evaluate.probabilities import class_probabilities
from clipcovid.evaluate.text_table import TextTable
from clipcovid.io.files import write_json, write_text

DIFFERENCES = ("macro_f1", "accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What to compare."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders, or .parquet files of predictions. Default: all finished runs in `out` that predict the split."""
    split: str = "test"
    """The split whose predictions are compared; crossval: the pooled folds of cross-validations."""
    out: Path = Path("outputs")
    """Where run folders and the MLflow store are."""
    name: str = ""
    """The comparison's folder in `out`. Default: compare and a hash of what is compared."""


def compare(methods: Sequence[Method]) -> dict[str, Any]:
    """The content of comparison.json, methods from the highest macro F1 down.

    split, hashes, n, classes; `methods`: name → the body that `predictions.score` gives, with run and source; `best`;
    `baselines` (see `metrics.baselines`); `paired`: see `differences`; alarms and notes. Scores that a run's folder holds
    for this very table are taken from there, for resampling AUROCs is what takes long.
    """
    about, table = methods[0].about, methods[0].table
    classes = list(about["classes"])
    bodies = {
        method.name: {"run": method.run, "source": method.source, **_score(method, classes)} for method in methods
    }
    ordered = sorted(bodies, key=lambda name: (-bodies[name]["metrics"]["macro_f1"], name))
    bodies = {name: bodies[name] for name in ordered}
    tables = {method.name: method.table for method in methods}
    patients = table["patient_id"].tolist()
    baselines = [body["baselines"] for body in bodies.values()]
    informed = [one for one in baselines if one["majority"]["from"] == "train"]
    comparison = {
        "split": about["split"],
        "split_hash": about["split_hash"],
        "manifest_hash": about["manifest_hash"],
        "n": len(table),
        "classes": classes,
        "best": ordered[0],
        "methods": bodies,
        "baselines": (informed or baselines)[0],
        "paired": KIND.differences({name: tables[name] for name in ordered}, classes),
        "alarms": [f"{name}: {alarm}" for name, body in bodies.items() for alarm in body["alarms"]],
    }
    learned = [
        f"{method.name} learned from {len(method.trained_on)} of the images that it predicts, by their pixels: no method is "
        "scored on them."
        for method in methods
        if method.trained_on
    ]
    return comparison | {"notes": [*learned, *_notes(comparison, patients)]}


def write(comparison: dict[str, Any], folder: Path) -> None:
    """Write comparison.{json,csv,md}, metrics.json (method → scores) and the figures into `folder`."""
    from clipcovid.evaluate import plots  # matplotlib: what only prints a comparison starts without it

    write_json(folder / "comparison.json", comparison)
    write_json(folder / "metrics.json", comparison["methods"])
    write_text(folder / "comparison.csv", comparison_frame(comparison).to_csv(index=False))
    write_text(folder / "comparison.md", comparison_markdown(comparison))
    plots.save(plots.comparison_figures(comparison), folder / "figures")


def comparison_markdown(comparison: dict[str, Any]) -> str:
    """What `console.print_comparison` prints, as Markdown."""
    lines = [line for table in comparison_tables(comparison) for line in table.markdown()]
    lines += [f"- {note}" for note in comparison["notes"]]
    lines += [f"- **warning:** {alarm}" for alarm in comparison["alarms"]]
    return "\n".join([*lines, "", RESEARCH_ONLY, ""])


def comparison_tables(comparison: dict[str, Any]) -> list[TextTable]:
    """The methods' scores and the baselines beneath; then, if there are any, the differences to the best."""
    bodies, baselines = comparison["methods"], comparison["baselines"]
    heads = KIND.table_metrics
    rows = [[name] for name in bodies]
    for key in heads:
        intervals = [body["intervals"]["intervals"].get(key) for body in bodies.values()]
        narrow = any(interval and interval[1] - interval[0] < 0.01 for interval in intervals)
        for row, body, interval in zip(rows, bodies.values(), intervals, strict=True):
            row.append(value_with_interval(body["metrics"].get(key), interval, 3 if narrow else 2))
    names = {"majority": f"majority ({baselines['majority']['class']})", "prior": "prior"}
    trivial = [
        [names[which], *(value_with_interval(values.get(key)) for key in heads)] for which, values in baselines.items()
    ]
    title = f"{comparison['split']}: {comparison['n']:,} images, {len(comparison['classes'])} classes"
    tables = [_table(title, ["Method", *heads.values()], rows, trivial)]
    if comparison["paired"]:
        tables.append(_difference_table(comparison))
    return tables


def _difference_table(comparison: dict[str, Any]) -> TextTable:
    head = KIND.table_metrics["macro_f1"]
    heads = ["Method", head, "Acc", "only best\nright", "only this\nright", "p", "p\n(Holm)"]
    rows = []
    for name, pair in comparison["paired"].items():
        gaps = (pair[key] for key in ("macro_f1", "accuracy"))
        cells = (
            value_with_interval(gap["value"], (gap["low"], gap["high"]) if "low" in gap else None, 3) for gap in gaps
        )
        test = pair["mcnemar"]
        counts = (f"{test[which]:,}" for which in ("only_best", "only_this"))
        rows.append([name, *cells, *counts, *(p_value(test[which]) for which in ("p", "p_holm"))])
    return _table(f"Minus {comparison['best']}", heads, rows)


def _table(title: str, heads: list[str], *sections: list[list[str]]) -> TextTable:
    return TextTable(title=title, heads=heads, sections=sections, fold=True, unbroken="numbers", title_left=True)


def comparison_frame(comparison: dict[str, Any]) -> pd.DataFrame:
    """A row a method, then the baselines: every score as <score>, <score>_low, <score>_high; empty where undefined."""
    rows = []
    for name, body in comparison["methods"].items():
        row: dict[str, Any] = {
            "method": name,
            "kind": "method",
            "run": body["run"],
            "source": body["source"],
            "n": body["n"],
        }
        row |= {key: body["intervals"][key] for key in ("unit", "units", "level", "samples")}
        for key, value in body["metrics"].items():
            low, high = body["intervals"]["intervals"].get(key, (None, None))
            row |= {key: value, f"{key}_low": low, f"{key}_high": high}
        pair = comparison["paired"].get(name, {})
        for key in DIFFERENCES if pair else ():
            row |= {f"difference_{key}{'' if of == 'value' else f'_{of}'}": value for of, value in pair[key].items()}
        rows.append(row | {f"mcnemar_{key}": value for key, value in pair.get("mcnemar", {}).items()})
    for name, values in comparison["baselines"].items():
        known = {key: value for key, value in values.items() if not isinstance(value, str)}
        rows.append({"method": name, "kind": "baseline", "n": comparison["n"], **known})
    return pd.DataFrame(rows)


def _score(method: Method, classes: list[str]) -> dict[str, Any]:
    """The body of `predictions.score`: the one that the run's folder holds, if it is of this table, else a new one."""
    try:
        probabilities = class_probabilities(method.table, classes)
        labels = method.table["label"].tolist()
        scores = metrics.classification(labels, probabilities, classes)
        counts = metrics.confusion(labels, probabilities, classes).tolist()
        there = method.path.parent.parent / "metrics.json"
        if method.path.parent.name == "predictions" and there.exists():
            held = json.loads(there.read_text(encoding="utf-8")).get(method.path.stem, {})
            if (held.get("classes"), held.get("confusion")) == (classes, counts) and all(
                math.isclose(held["metrics"].get(name, math.nan), value, abs_tol=1e-9) for name, value in scores.items()
            ):
                return held
        return KIND.score(method.table, classes).to_json()
    except UserError as error:
        raise UserError(f"{method.source}: {error}") from None


def _notes(comparison: dict[str, Any], patients: Sequence[str]) -> list[str]:
    body = comparison["methods"][comparison["best"]]
    intervals, shares = body["intervals"], comparison["baselines"]["majority"]["from"]
    unknown = ", for no patient ids are known" if intervals["unit"] == "image" else ""
    resampled = (
        f"Intervals are {intervals['level']:.0%} bootstrap intervals by {intervals['unit']} "
        f"({intervals['units']:,} of them{unknown})."
    )
    notes = [
        resampled if intervals["units"] > 1 else f"There are no intervals: all is of one {intervals['unit']}.",
        f"The baselines see no image and know the class shares of the {'train split' if shares == 'train' else shares}.",
    ]
    if comparison["paired"]:
        notes += [
            f"Differences are to {comparison['best']}, over the same resamples for both; it was found to be the best on "
            "these very images, which flatters it.",
            "p: McNemar's exact test of accuracy, and after Holm's correction for the number of methods.",
        ]
        if intervals["units"] < len(patients):
            notes.append(
                f"McNemar's test takes images as independent, but {len(patients):,} images are of {intervals['units']:,} "
                "patients, so p may be too small: go by the intervals."
            )
    return [*notes, *dict.fromkeys(note for one in comparison["methods"].values() for note in one["notes"])]
