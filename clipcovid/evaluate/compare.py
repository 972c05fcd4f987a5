"""All methods side by side on the same images, from their predictions tables alone.

`methods.read` gives tables that fit together, `compare` makes one JSON-ready dict of them, and all tables and figures
are made of that dict.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from scipy.stats import binomtest

from clipcovid.config import UserError
from clipcovid.evaluate import bootstrap, metrics, plots
from clipcovid.evaluate.console import comparison_markdown
from clipcovid.evaluate.load_predictions import Method
from clipcovid.evaluate.predictions import class_probabilities, score
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
    predicted = {method.name: class_probabilities(method.table, classes).argmax(axis=1) for method in methods}
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
        "paired": differences(table["label"].tolist(), {name: predicted[name] for name in ordered}, classes, patients),
        "alarms": [f"{name}: {alarm}" for name, body in bodies.items() for alarm in body["alarms"]],
    }
    learned = [
        f"{method.name} learned from {len(method.trained_on)} of the images that it predicts, by their pixels: no method is "
        "scored on them."
        for method in methods
        if method.trained_on
    ]
    return comparison | {"notes": [*learned, *_notes(comparison, patients)]}


def differences(
    labels: Sequence[str],
    predicted: Mapping[str, np.ndarray],
    classes: Sequence[str],
    groups: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Each method minus the first, which is left out: macro F1 and accuracy, with 95 % intervals, and McNemar's test.

    `predicted`: method → indices (n,) into `classes`; `groups`: n patient ids, "" where unknown. Intervals are
    percentiles over resamples of patients that all methods share. `mcnemar` has how often only the first and only this
    method is right, its p-value, and that after Holm's correction for the number of methods. A difference has value, and
    low and high where there are two units or more.
    """
    truth, k, names = metrics.encode(labels, classes), len(classes), list(predicted)
    cells = [truth * k + predicted[name] for name in names]

    def minus_first(rows: np.ndarray) -> dict[str, float]:
        counts = np.stack([np.bincount(cell[rows], minlength=k * k) for cell in cells]).reshape(-1, k, k)
        rates = metrics.confusion_rates(counts, classes)
        return {
            f"{key}/{name}": float(rates[key][at] - rates[key][0])
            for key in DIFFERENCES
            for at, name in enumerate(names)
        }

    values = minus_first(np.arange(len(truth)))
    drawn = bootstrap.bootstrap(minus_first, groups, samples=samples, seed=seed)["intervals"] if len(names) > 1 else {}
    right = [predicted[name] == truth for name in names]
    pairs = [(int((right[0] & ~other).sum()), int((other & ~right[0]).sum())) for other in right[1:]]
    p_values = [mcnemar(*pair) for pair in pairs]
    paired: dict[str, dict[str, Any]] = {}
    for name, pair, p, corrected in zip(names[1:], pairs, p_values, holm(p_values), strict=True):
        bounds = {key: dict(zip(("low", "high"), drawn.get(f"{key}/{name}", ()), strict=False)) for key in DIFFERENCES}
        paired[name] = {key: {"value": values[f"{key}/{name}"], **bounds[key]} for key in DIFFERENCES}
        paired[name]["mcnemar"] = {"only_best": pair[0], "only_this": pair[1], "p": p, "p_holm": corrected}
    return paired


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p-value of McNemar's test from the rows that only one, and only the other, has right.

    McNemar, Psychometrika 12 (1947), with the binomial distribution of the discordant rows in place of chi-squared.
    """
    return float(binomtest(first, first + second, 0.5).pvalue) if first + second else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: Holm's step-down method, Scand. J. Statist. 6 (1979), in the order given."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = highest
    return corrected


def write(comparison: dict[str, Any], folder: Path) -> None:
    """Write comparison.{json,csv,md}, metrics.json (method → scores) and the figures into `folder`."""
    write_json(folder / "comparison.json", comparison)
    write_json(folder / "metrics.json", comparison["methods"])
    write_text(folder / "comparison.csv", comparison_frame(comparison).to_csv(index=False))
    write_text(folder / "comparison.md", comparison_markdown(comparison))
    plots.save(plots.comparison_figures(comparison), folder / "figures")


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
        return score(method.table, classes)
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
