"""Scores of groups of images that a column of the manifest tells apart, and the gaps between them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from clipcovid.data.manifest import Manifest
from clipcovid.errors import UserError, first_names
from clipcovid.evaluate import bootstrap
from clipcovid.evaluate.draws import Draws

MAX_GROUPS = 20  # groups of one column
AGE_BAND_EDGES = (0, 20, 40, 60, 80)  # years at which groups of ages begin
MAX_AGE = 120  # years
UNKNOWN, UNREADABLE = "unknown", "unreadable"
AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}  # DICOM's, in years


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that have one value of a column."""

    column: str
    name: str
    rows: np.ndarray
    """Which images these are, bool (n,)."""


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """A group's scores."""

    column: str
    name: str
    images: int
    units: int
    """Patients, or images where no patient is known."""
    absent: list[str]
    """Classes that other groups have."""
    left_out: str
    """Why it counts in no gap: too few, unknown, lacks classes; "" where it counts."""
    scores: dict[str, dict[str, dict[str, float]]]
    """Method → metric → value, and low and high where there is an interval; {} where there are too few."""


@dataclass(frozen=True, kw_only=True)
class SubgroupGap:
    """A method's best group minus its worst, which were found on these very images."""

    column: str
    method: str
    metric: str
    best: str
    worst: str
    value: float
    low: float | None
    high: float | None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval, where there is one."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def find_groups(manifest: Manifest, columns: Sequence[str], images: pd.DataFrame) -> list[Group]:
    """The groups of each of `columns`, from the least value up; `images`: image_id and label of those that are scored.

    Ages, in a column whose name has the word, are put together by `AGE_BAND_EDGES`. Images without a value are a group. A
    column that the manifest lacks or that has too many values, images that it lacks or labels otherwise: `UserError`.
    """
    facts = manifest.table.set_index("image_id")
    if missing := images["image_id"][~images["image_id"].isin(facts.index)].tolist():
        raise UserError(
            f"--data {manifest.dataset} lacks {len(missing)} of the {len(images)} compared images, the first is "
            f"{missing[0]!r}: name the prepared folder that the methods predict."
        )
    facts = facts.loc[images["image_id"]]
    differ = (images["label"].to_numpy() != "") & (images["label"].to_numpy() != facts["label"].to_numpy())
    if differ.any():
        raise UserError(
            f"--data {manifest.dataset} labels {int(differ.sum())} of the compared images otherwise, the first is "
            f"{images['image_id'].iloc[int(differ.argmax())]!r}: name the prepared folder that the methods predict."
        )
    groups = []
    for column in columns:
        if column not in facts:
            raise UserError(
                f"--by {column}: {manifest.dataset} has no such column; it has {first_names(facts.columns.tolist(), 40)}."
            )
        values = facts[column].astype(str)
        values = values.map(age_group) if _is_age(column) else values.where(values != "", UNKNOWN)
        names = sorted(set(values), key=_order)
        if len(names) > MAX_GROUPS:
            raise UserError(
                f"--by {column}: the compared images have {len(names)} values of it, as {first_names(names)}: choose a "
                f"column with at most {MAX_GROUPS}."
            )
        groups += [Group(column=column, name=name, rows=(values == name).to_numpy()) for name in names]
    return groups


def age_group(text: str) -> str:
    """The group of an age in years (63, 63.5, 063Y) or as DICOM writes it (006M); `UNKNOWN` for "", else `UNREADABLE`."""
    if text == "":
        return UNKNOWN
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([ymwd]?)(?:ears?|rs?)?", text.strip(), re.IGNORECASE)
    years = float(found[1]) * AGE_UNITS[found[2].upper() or "Y"] if found else np.inf
    if years > MAX_AGE:
        return UNREADABLE
    at = int(np.searchsorted(AGE_BAND_EDGES, years, side="right"))
    return (
        f"{AGE_BAND_EDGES[at - 1]}–{AGE_BAND_EDGES[at] - 1}"
        if at < len(AGE_BAND_EDGES)
        else f"{AGE_BAND_EDGES[-1]} and over"
    )


def score_groups(
    groups: Sequence[Group],
    draws: Sequence[Draws],
    methods: Mapping[str, int],
    metrics: Sequence[str],
    images: pd.DataFrame,
    min_patients: int,
) -> tuple[list[Subgroup], list[SubgroupGap]]:
    """The groups' scores of `methods` (name → row of the draws, one of `draws` for each group), and the gaps.

    Groups of fewer than `min_patients` patients are not scored. They, unknown values and groups that lack a class count in no
    gap, since a mean over other classes is another metric. `images`: label and patient_id of each image, as `Group.rows`
    says.
    """
    scored = []
    for group, drawn in zip(groups, draws, strict=True):
        own = images[group.rows]
        present = set(own["label"])
        absent = sorted(set(images["label"]) - present - {""})
        units = bootstrap.count_units(bootstrap.patient_groups(own))
        reason = f"lacks {', '.join(absent)}" if absent else ""
        reason = "no group, but without a value" if group.name in (UNKNOWN, UNREADABLE) else reason
        reason = f"too few (below {min_patients})" if units < min_patients else reason
        scores = {} if units < min_patients else _scores(drawn, methods, metrics)
        scored.append(
            Subgroup(
                column=group.column,
                name=group.name,
                images=len(own),
                units=units,
                absent=absent,
                left_out=reason,
                scores=scores,
            )
        )
    gaps = []
    for column in dict.fromkeys(group.column for group in groups):
        counted = {
            group.name: drawn
            for group, drawn, entry in zip(groups, draws, scored, strict=True)
            if group.column == column and not entry.left_out
        }
        if len(counted) > 1:
            gaps += [
                gap
                for metric in metrics
                for name, at in methods.items()
                for gap in _gap(column, name, metric, counted, at)
            ]
    return scored, gaps


def _scores(draws: Draws, methods: Mapping[str, int], metrics: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in methods}
    for metric in (name for name in metrics if name in draws.values):
        for name, at in methods.items():
            value, bounds = float(draws.values[metric][at]), bootstrap.percentile_interval(draws.samples[metric][at])
            if not np.isnan(value):
                interval = {"low": bounds[0], "high": bounds[1]} if bounds else {}
                found[name][metric] = {"value": value} | interval
    return found


def _gap(column: str, method: str, metric: str, draws: Mapping[str, Draws], at: int) -> list[SubgroupGap]:
    """The gap of one method, in a list; [] where the metric is not defined in two groups."""
    values = {
        name: float(of.values[metric][at])
        for name, of in draws.items()
        if metric in of.values and not np.isnan(of.values[metric][at])
    }
    if len(values) < 2:
        return []
    best, worst = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
    bounds = bootstrap.percentile_interval(draws[best].samples[metric][at] - draws[worst].samples[metric][at])
    low, high = bounds or (None, None)
    value = values[best] - values[worst]
    return [
        SubgroupGap(
            column=column, method=method, metric=metric, best=best, worst=worst, value=value, low=low, high=high
        )
    ]


def _is_age(column: str) -> bool:
    return re.search(r"(?<![a-z])age(?![a-z])", column.lower()) is not None


def _order(name: str) -> tuple[bool, bool, float, str]:
    """Numbers by value and then words, with what is no value last."""
    number = re.match(r"\d+(\.\d+)?", name)
    return name in (UNKNOWN, UNREADABLE), number is None, float(number[0]) if number else 0.0, name
