"""Shortcut probes: can a small model tell the class, or the source, from what should not say it?

Each probe is fitted and scored over folds of patients, so that what it tells is no memory of a patient. Blacking out the
centre is the protocol of Maguolo and Nanni (Information Fusion 76, 2021): where the rim alone does nearly as well as the
whole image, so may a model that never looks at the lungs. That such shortcuts survive in new hospitals, too, is shown by
DeGrave et al. (Nature Machine Intelligence 3, 2021).
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clipcovid.audit.associations import MODERATE, category_codes, cramers_v
from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import AuditData, PreparedSet
from clipcovid.audit.examples import example_sheets
from clipcovid.audit.probes import PROBES, Probe
from clipcovid.data.folds import grouped_folds
from clipcovid.data.splits import split_units
from clipcovid.evaluate.bootstrap import classification_intervals
from clipcovid.evaluate.metrics import classification_metrics
from clipcovid.evaluate.number_format import (
    agree,
    describe_resampling,
    format_count,
    format_number,
    format_with_interval,
)
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report.findings import Finding, Severity

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

FOLDS = 5
MIN_IMAGES, MIN_PATIENTS = 20, 2 * FOLDS  # of a class or source that is told from the others
MAX_IMAGES = 3_000  # that a probe looks at: more of them sharpen the intervals and nothing else
RESAMPLES = 500
GRADES: tuple[tuple[Severity, float, float], ...] = (("high", 0.9, 0.8), ("medium", 0.75, 0.65), ("low", 0.65, 0.55))
"""Severity, and the AUROC of the class that is told best and the lower end of its interval, from which on it holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a probe told."""

    probe: Probe
    rows: np.ndarray
    """Positions (m,) in the data set's table of the images that it looked at."""
    labels: list[str]
    classes: list[str]
    scores: np.ndarray
    """float (m, k): of each image by a model that was fitted without its patient."""
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    resampled: str
    left_out: list[str]
    """Sentences on images that it did not look at."""

    @property
    def best_class(self) -> str:
        """The class, or source, that is told best from the others."""
        return max(self.classes, key=lambda name: self.metrics[f"auroc/{name}"])

    def format_metric(self, metric: str) -> str:
        """A metric with its interval."""
        return format_with_interval(self.metrics[metric], self.intervals.get(metric))


def check_shortcuts(data: AuditData, config: AuditConfig) -> list[Finding]:
    """A finding for each probe that tells more than it should, and one with what all of them told."""
    results, skipped = list[ProbeResult](), dict[str, str]()
    for probe in PROBES:
        outcome = run_probe(probe, data.main, config.seed)
        if isinstance(outcome, str):
            skipped[probe.name] = outcome
        else:
            results.append(outcome)
    confounded = cramers_v(category_codes(data.main.table["label"]), category_codes(data.main.table["source"]))
    findings = [
        _finding(result, data.main, results, severity)
        for result in results
        if (severity := grade(result, confounded >= MODERATE)) != "info"
    ]
    return [*findings, _summary(results, skipped)]


def grade(result: ProbeResult, confounded: bool) -> Severity:
    """The severity of what a probe can tell, by `GRADES`.

    What the whole image tells of the class is no fault. A source that shows is low where the classes are not `confounded`
    with the sources.
    """
    if not result.probe.advice:
        return "info"
    score = result.metrics[f"auroc/{result.best_class}"]
    low = result.intervals.get(f"auroc/{result.best_class}", [0.0])[0]
    severity: Severity = next((name for name, least, bound in GRADES if score >= least and low >= bound), "info")
    if result.probe.target == "source" and severity != "info" and not confounded:
        return "low"
    return severity


def run_probe(probe: Probe, prepared: PreparedSet, seed: int) -> ProbeResult | str:
    """What a probe tells over folds of patients; or why it can't be tried."""
    labels = prepared.table["label" if probe.target == "class" else "source"]
    groups = split_units(prepared.table)
    usable, left_out = _usable(probe, prepared, labels, groups)
    if isinstance(usable, str):
        return usable
    rows = _sample(usable, groups, seed)
    if len(rows) < len(usable):
        left_out.append(f"{len(usable) - len(rows):,} of {len(usable):,} images, for {MAX_IMAGES:,} are enough")
    known = labels.iloc[rows].tolist()
    classes = sorted(set(known))
    features = probe.features(prepared, rows)
    scores = out_of_fold_scores(features, np.array(known), groups.iloc[rows], probe.model, seed)
    patients = prepared.table["patient_id"].iloc[rows].tolist()
    metrics = classification_metrics(known, scores, classes)
    intervals = classification_intervals(known, scores, classes, patients, samples=RESAMPLES, seed=seed)
    return ProbeResult(
        probe=probe,
        rows=rows,
        labels=known,
        classes=classes,
        scores=scores,
        metrics=metrics,
        intervals=intervals["intervals"],
        resampled=describe_resampling(intervals),
        left_out=left_out,
    )


def _usable(
    probe: Probe, prepared: PreparedSet, labels: pd.Series, groups: pd.Series
) -> tuple[np.ndarray | str, list[str]]:
    """Positions of the images that a probe can look at, or why it can't be tried; and which are left out, and why."""
    known = (labels != "").to_numpy()
    seen = known & prepared.lung_masks.any(axis=(1, 2)) if probe.needs_masks else known
    if not seen.any():
        return f"no image has a known {probe.target}" + (" and a lung mask" if known.any() else ""), []
    counts = pd.DataFrame(
        {"images": labels[seen].value_counts(), "units": groups[seen].groupby(labels[seen]).nunique()}
    )
    enough = counts.index[(counts["images"] >= MIN_IMAGES) & (counts["units"] >= MIN_PATIENTS)]
    rare = [f"{name} ({count:,})" for name, count in counts["images"].items() if name not in enough]
    left_out = [f"too few images or patients of {', '.join(rare)}"] * bool(rare)
    masked_out = int(known.sum() - seen.sum())
    left_out += [f"{format_count(masked_out, 'image')} without a lung mask"] * bool(masked_out)
    if len(enough) < 2:
        why = "; ".join(left_out) or f"all images are of one {probe.target}"
        return f"{why} (two of {MIN_IMAGES} images and {MIN_PATIENTS} patients each are needed)", []
    return np.flatnonzero(seen & labels.isin(enough).to_numpy()), left_out


def _sample(rows: np.ndarray, groups: pd.Series, seed: int) -> np.ndarray:
    """Rows of groups drawn at random until there are about `MAX_IMAGES`; all where there are no more."""
    if len(rows) <= MAX_IMAGES:
        return rows
    sizes = groups.iloc[rows].value_counts().sample(frac=1, random_state=seed)
    return rows[groups.iloc[rows].isin(sizes.index[sizes.cumsum() <= MAX_IMAGES]).to_numpy()]


def out_of_fold_scores(
    features: np.ndarray, labels: np.ndarray, groups: pd.Series, model: str, seed: int
) -> np.ndarray:
    """Scores (n, k), the classes in sorted order, of rows by models that were fitted on other groups.

    linear: ridge regression of the classes on standardised features, its penalty chosen by leave-one-out among the rows that
    it is fitted on. forest: 100 trees. Classes weigh the same.
    """
    classes = np.unique(labels)
    scores = np.zeros((len(labels), len(classes)))
    for train, test in grouped_folds(pd.Series(labels), groups, FOLDS, seed):
        fitted = _model(model, features.shape[1], seed).fit(features[train], labels[train])
        given = fitted.predict_proba(features[test]) if model == "forest" else fitted.decision_function(features[test])
        if given.ndim == 1:
            given = np.stack([-given, given], axis=1)
        scores[np.ix_(test, np.searchsorted(classes, fitted.classes_))] = given
    return scores


def _model(kind: str, dim: int, seed: int) -> "BaseEstimator":
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "forest":
        return RandomForestClassifier(100, min_samples_leaf=3, class_weight="balanced", random_state=seed)
    penalties = dim * np.array([0.1, 1.0, 10.0, 100.0])
    return make_pipeline(StandardScaler(), RidgeClassifierCV(penalties, class_weight="balanced"))


def _finding(result: ProbeResult, prepared: PreparedSet, results: Sequence[ProbeResult], severity: Severity) -> Finding:
    """What a probe that tells too much told, beside what the whole image tells."""
    probe, best = result.probe, result.best_class
    whole = next((one for one in results if one.probe.name == "class from the whole image"), None)
    beside = ""
    if probe.target == "class" and whole and best in whole.classes:
        beside = f" The same kind of model, shown the whole image, has {whole.format_metric(f'auroc/{best}')}."
    which = "" if len(result.classes) == 2 else f"{best} from the others, "
    return Finding(
        check=probe.name,
        severity=severity,
        summary=f"A small model that sees only {probe.shown} tells the {probe.target}: {which}AUROC "
        f"{result.format_metric(f'auroc/{best}')}, where chance is .5; balanced accuracy "
        f"{result.format_metric('balanced_accuracy')}, where chance is {1 / len(result.classes):.2f}.{beside}",
        advice=probe.advice,
        numbers=_numbers(result),
        tables=(_class_table(result),),
        examples=example_sheets(prepared, _surest(result)),
    )


def _surest(result: ProbeResult) -> dict[str, np.ndarray]:
    """Captions, and the rows of the images of each class that the probe is surest of, the class that it tells best first."""
    order = sorted(result.classes, key=lambda name: name != result.best_class)
    truth = np.array(result.labels)
    sheets = {}
    for name in order[:3]:
        scores = result.scores[:, result.classes.index(name)]
        own = np.flatnonzero(truth == name)
        sheets[f"{name}: the images that it is surest of"] = result.rows[own[np.argsort(-scores[own], kind="stable")]]
    return sheets


def _numbers(result: ProbeResult) -> dict[str, object]:
    names = ("balanced_accuracy", "macro_auroc", *(f"auroc/{name}" for name in result.classes))
    return {
        "images": len(result.rows),
        "chance": {"balanced_accuracy": 1 / len(result.classes), "auroc": 0.5},
        "metrics": {name: result.metrics[name] for name in names},
        "intervals": {name: result.intervals[name] for name in names if name in result.intervals},
        "left_out": result.left_out,
    }


def _class_table(result: ProbeResult) -> TextTable:
    count = pd.Series(result.labels).value_counts()
    rows = [[name, result.format_metric(f"auroc/{name}"), f"{count[name]:,}"] for name in result.classes]
    notes = "".join(f" Left out: {text}." for text in result.left_out)
    return TextTable(
        title=f"How well each {result.probe.target} is told from the others",
        headers=[result.probe.target, "AUROC", "images"],
        sections=[rows],
        caption=f"{FOLDS} folds of patients; {result.resampled}. Chance is .5.{notes}",
    )


def _summary(results: Sequence[ProbeResult], skipped: dict[str, str]) -> Finding:
    """The finding with what all probes told, and which could not be tried."""
    rows = [
        [
            result.probe.name,
            result.format_metric("macro_auroc"),
            result.format_metric("balanced_accuracy"),
            format_number(1 / len(result.classes)),
            f"{len(result.rows):,}",
        ]
        for result in results
    ]
    table = TextTable(
        title="Shortcut probes",
        headers=["probe", "macro AUROC", "balanced accuracy", "chance of that", "images"],
        sections=[rows],
        caption=f"{FOLDS} folds of patients; 95% intervals by patient. The chance of an AUROC is .5.",
    )
    notes = "".join(f" Not tried: {name}, for {why}." for name, why in skipped.items())
    left_out = dict.fromkeys(f"{result.probe.target}: {text}" for result in results for text in result.left_out)
    notes += "".join(f" Left out, {text}." for text in left_out)
    return Finding(
        check="shortcut probes",
        severity="info",
        summary=f"{len(results)} of {len(PROBES)} shortcut probes {agree(len(results), 'was', 'were')} tried.{notes}",
        advice="A probe that tells nothing rules out what it can see, and no more: test on data of other hospitals, too.",
        numbers={result.probe.name: _numbers(result) for result in results} | {"skipped": skipped},
        tables=(table,) if results else (),
    )
