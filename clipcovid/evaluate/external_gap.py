"""External testing: how much worse methods are on another data set than on the test split of their own.

The gap is the external score minus the internal one. Both sets are resampled by patient, each apart from the other, and the
gap's interval is of the differences of the draws: the two-sample bootstrap (Efron & Tibshirani, An Introduction to the
Bootstrap, 1993, ch. 8).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from clipcovid.errors import UserError, collect_mapping, quote_names
from clipcovid.evaluate import bootstrap
from clipcovid.evaluate.kinds.base import Kind
from clipcovid.evaluate.number_format import format_short, format_with_interval, gap_bounds
from clipcovid.evaluate.probabilities import PROBABILITY_PREFIX
from clipcovid.evaluate.scores import ExternalTest, Scores
from clipcovid.evaluate.text_table import TextTable, score_table

EXTERNAL_SEED = 1  # added for the external resamples: with one seed, sets of one size would be resampled alike
SHORTCUT_WARNING = (
    "External data alone does not rule out shortcuts: what gives a class away in one set may do so in another (DeGrave et "
    "al. 2021). Audit both sets, and compare runs on masked lungs."
)
Gaps = dict[str, dict[str, float]]
"""Metric → internal, external, value (external minus internal), and low and high of its 95 % interval where there is one."""


def internal_external_gaps(
    kind: Kind[Any],
    internal: Sequence[pd.DataFrame],
    external: Sequence[pd.DataFrame],
    classes: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> list[Gaps]:
    """The gaps of each method, whose two predictions tables stand at one place; the tables of a set are of the same images.

    A metric that one of the sets has not is left out. There is no interval where a set has one patient (or image, where they
    are unknown), or over half of the resamples leave it undefined.
    """
    within = kind.draws(internal, classes, samples=samples, seed=seed)[0]
    beyond = kind.draws(external, classes, samples=samples, seed=seed + EXTERNAL_SEED)[0]
    resampled = all(bootstrap.count_units(bootstrap.image_groups(tables[0])) > 1 for tables in (internal, external))
    gaps: list[Gaps] = [{} for _ in internal]
    for metric in (name for name in within.values if name in beyond.values):
        for at, gap in enumerate(gaps):
            low, high = within.values[metric][at], beyond.values[metric][at]
            if np.isnan(low) or np.isnan(high):
                continue
            gap[metric] = {"internal": float(low), "external": float(high), "value": float(high - low)}
            draws = beyond.samples[metric][at] - within.samples[metric][at]
            if resampled and (bounds := bootstrap.percentile_interval(draws)):
                gap[metric] |= dict(zip(("low", "high"), bounds, strict=True))
    return gaps


def compare_sets(
    kind: Kind[Any],
    internal: Mapping[str, pd.DataFrame],
    external: Mapping[str, pd.DataFrame],
    classes: Sequence[str],
    test: ExternalTest,
) -> ExternalTest:
    """The external test that `test` begins: with scores, gaps, notes and alarms.

    `internal`, `external`: method → predictions, of the same images in the same order within a set. Where labels are scored,
    classes that only one of the sets has are left out of both: else a macro average over three classes would stand beside
    one over two. No class in common is a `UserError`; one alone is an alarm, and the set has no scores.
    """
    notes: list[str] = []
    if kind.truth_column == "label":
        first, second = (set(next(iter(tables.values()))["label"]) for tables in (internal, external))
        if not first & second:
            raise UserError(
                f"{test.data} has no image of a class of the compared split ({quote_names(sorted(first))}): map its classes "
                "with --external-map."
            )
        if len(first & second) == 1:
            return _unscored(test, external, *first & second)
        notes = [
            f"{test.dataset}: no {one} image is {quote_names(sorted(missing))}, so the {other} scores leave these out."
            for missing, one, other in (
                (first - second, "external", "internal"),
                (second - first, "internal", "external"),
            )
            if missing
        ]
        internal, external = (_images_of(tables, first & second) for tables in (internal, external))
        notes.append(f"{test.dataset}: {_class_shares(internal, external)}")
    gaps = internal_external_gaps(kind, list(internal.values()), list(external.values()), classes)
    by_method = dict(zip(external, gaps, strict=True))
    scores = {name: kind.score(table, classes) for name, table in external.items()}
    metric = kind.ranking_metric(scores)
    notes += [f"{test.dataset}: {note}" for note in gap_notes(by_method, metric, kind.key_metrics[metric])]
    return replace(
        test,
        n=next(iter(external.values()))["image_id"].nunique(),
        classes=list(classes),
        methods=scores,
        gaps=by_method,
        notes=notes,
        alarms=_alarms(test, scores),
    )


def _unscored(test: ExternalTest, methods: Iterable[str], only: str) -> ExternalTest:
    """The test without scores, since the class `only` is all that the sets have in common."""
    alarm = (
        f"{test.data} is not scored: {only!r} is the only class that both sets have images of, and with one class left, "
        "scores only say how often that class is predicted. Map more of its classes with --external-map, or name a set that "
        "has them."
    )
    return replace(test, gaps={name: {} for name in methods}, alarms=[alarm, *_alarms(test, {})])


def _images_of(tables: Mapping[str, pd.DataFrame], labels: set[str]) -> dict[str, pd.DataFrame]:
    return {name: table[table["label"].isin(labels)].reset_index(drop=True) for name, table in tables.items()}


def _class_shares(*sets: Mapping[str, pd.DataFrame]) -> str:
    """How often each class is in both sets, and which metrics depend on that."""
    shares = [next(iter(tables.values()))["label"].value_counts(normalize=True) for tables in sets]
    listed = ", ".join(f"{name} {shares[0][name]:.0%} and {shares[1][name]:.0%}" for name in sorted(shares[0].index))
    return (
        f"of the internal and external images, {listed}. Accuracy, F1 and precision change with these shares alone, recall "
        "and AUROC do not."
    )


def _alarms(about: ExternalTest, scores: Mapping[str, Scores]) -> list[str]:
    alarms = [f"{about.dataset}, {name}: {alarm}" for name, entry in scores.items() for alarm in entry.alarms]
    if about.shared:
        place = about.data if about.split == "all" else f"The {about.split} split of {about.data}"
        splits = ", ".join(f"{split} {count:,}" for split, count in about.shared.items())
        alarms.append(
            f"{place} has images of the internal data set (of its splits {splits}), by their pixels. clipcovid audit "
            "--against also finds copies that were cropped, mirrored or saved again."
        )
    if about.left_out:
        alarms.append(
            f"{about.left_out:,} images of {about.data} are also internal, or a method learned from them: none is scored on "
            "them."
        )
    alarms += [f"{name} {reason}, and is not tested on {about.data}." for name, reason in about.skipped.items()]
    return [*alarms, SHORTCUT_WARNING]


def parse_merges(mapping: Sequence[str], classes: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Of `DATA-CLASS=MODEL-CLASS` entries: those as they are, and of `DATA-CLASS=ONE+ANOTHER` the classes that are merged.

    A class of the data that is mapped twice, or one of the model that two entries merge, is a `UserError`.
    """
    plain, merges = list[str](), dict[str, list[str]]()
    collect_mapping([entry.rpartition("=")[::2] for entry in mapping if "=" in entry], "--external-map")
    for entry in mapping:
        name, _, value = entry.rpartition("=")
        parts = value.split("+")
        if name and len(parts) > 1 and value not in classes and set(parts) <= set(classes):
            merges[name] = parts
        else:
            plain.append(entry)
    merged = [part for parts in merges.values() for part in parts]
    if twice := next((part for part in merged if merged.count(part) > 1), ""):
        raise UserError(f"--external-map merges the class {twice!r} twice: a class goes into one other.")
    return plain, merges


def merge_classes(
    table: pd.DataFrame, classes: Sequence[str], merges: Mapping[str, Sequence[str]]
) -> tuple[pd.DataFrame, list[str]]:
    """A predictions table of which some classes are one, whose probability is the sum of theirs; and its classes."""
    into = {part: name for name, parts in merges.items() for part in parts}
    merged = list(dict.fromkeys(into.get(name, name) for name in classes))
    columns = {
        PROBABILITY_PREFIX + name: table[
            [PROBABILITY_PREFIX + part for part in classes if into.get(part, part) == name]
        ].sum(axis=1)
        for name in merged
    }
    others = table.drop(columns=[PROBABILITY_PREFIX + name for name in classes])
    return others.assign(label=table["label"].map(lambda label: into.get(label, label)), **columns), merged


def gap_metrics(test: ExternalTest, kind: Kind[Any]) -> list[str]:
    """The metrics whose gaps are shown, of those that any method has."""
    shown = kind.gap_metrics or tuple(kind.key_metrics)
    return [metric for metric in shown if any(metric in gaps for gaps in test.gaps.values())]


def external_tables(tests: Sequence[ExternalTest], kind: Kind[Any]) -> list[TextTable]:
    """For each external set: the methods' internal and external scores with the gap and its interval, by the gap metrics."""
    tables = []
    for test in tests:
        metrics, size = gap_metrics(test, kind), f"{test.n:,} images" if test.methods else "not scored"
        heads = [f"{kind.table_metrics[name]}\n{part}" for name in metrics for part in ("internal", "external", "gap")]
        rows = [
            [name, *(cell for metric in metrics for cell in _cells(gaps.get(metric)))]
            for name, gaps in test.gaps.items()
        ]
        tables.append(score_table(f"External: {test.dataset} ({test.data}), {size}", ["Method", *heads], [rows]))
    return tables


def _cells(gap: Mapping[str, float] | None) -> tuple[str, str, str]:
    if gap is None:
        return "", "", ""
    return (
        format_short(gap["internal"], 3),
        format_short(gap["external"], 3),
        format_with_interval(gap["value"], gap_bounds(gap)),
    )


def gap_notes(gaps: Mapping[str, Gaps], metric: str, name: str) -> list[str]:
    """Which methods surely lose, and whether the best one stays the best, by a metric whose `name` is in sentences."""
    known = {method: gap[metric] for method, gap in gaps.items() if metric in gap}
    if not known:
        return []
    lost = [method for method, gap in known.items() if gap.get("high", 0) < 0]
    notes = [
        f"By {name}, {len(lost)} of {len(known)} methods are worse on the external set, with the gap's interval below 0"
        f"{': ' if lost else ''}{', '.join(lost)}."
    ]
    if len(known) > 1:
        first, second = (max(known, key=lambda method: known[method][part]) for part in ("internal", "external"))
        notes.append(
            f"{first} is the best on both sets."
            if first == second
            else f"{first} is the best on the internal set ({format_short(known[first]['internal'], 3)}; externally "
            f"{format_short(known[first]['external'], 3)}), and {second} on the external set "
            f"({format_short(known[second]['external'], 3)})."
        )
    return notes
