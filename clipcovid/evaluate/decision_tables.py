"""Decisions as tables of texts. `by_method`: what each method got; a method without any of it has no row."""

from collections.abc import Iterable, Mapping, Sequence

from clipcovid.evaluate.conformal import ConformalSets
from clipcovid.evaluate.net_benefit import TABLE_THRESHOLDS, NetBenefit
from clipcovid.evaluate.number_format import format_short, format_with_interval
from clipcovid.evaluate.operating_points import OperatingPoint
from clipcovid.evaluate.reliability import Reliability
from clipcovid.evaluate.resamples import Estimate
from clipcovid.evaluate.selective import COVERAGES, SelectivePrediction
from clipcovid.evaluate.text_table import Row, TextTable, score_table

CALIBRATION_METRICS = {"brier": "Brier", "ece": "ECE", "classwise_ece": "class-wise\nECE"}
SET_NAMES = {"lac": "LAC", "class_conditional": "class-conditional"}


def calibration_table(
    by_method: Mapping[str, tuple[Reliability, float | None, Reliability | None]], caption: str
) -> TextTable:
    """Of (as predicted, temperature, scaled): each method, and beneath it what scaling makes of it."""
    sections = []
    for name, (predicted, temperature, scaled) in by_method.items():
        rows = [[name, "", *_cells(predicted.metrics[metric] for metric in CALIBRATION_METRICS)]]
        if scaled is not None and temperature is not None:
            cells = _cells(scaled.metrics[metric] for metric in CALIBRATION_METRICS)
            rows.append([f"{name}, scaled", f"{temperature:.2f}", *cells])
        sections.append(rows)
    heads = ["Method", "Temperature", *CALIBRATION_METRICS.values()]
    return _table("Calibration before and after temperature scaling", caption, heads, sections)


def selective_table(by_method: Mapping[str, SelectivePrediction], caption: str) -> TextTable:
    """Accuracy of the surest images, and the area under the risk-coverage curve."""
    heads = ["Method", *(f"Accuracy,\nsurest {share:.0%}" for share in COVERAGES), "AURC"]
    rows = [
        [name, *_cells([*(selective.accuracy[str(share)] for share in COVERAGES), selective.aurc])]
        for name, selective in by_method.items()
    ]
    return _table("Accuracy where a method is most sure", caption, heads, [rows])


def operating_points_table(
    by_method: Mapping[str, Mapping[str, OperatingPoint]], classes: Sequence[str], sensitivity: float, caption: str
) -> TextTable:
    """A row a method, class by class."""
    heads = ["Method", "Class", "Images", "Threshold", "Sensitivity", "Specificity", "PPV", "NPV"]
    sections = []
    for class_name in classes:
        rows = []
        for name, points in by_method.items():
            if point := points.get(class_name):
                counted = f"{point.counts['tp'] + point.counts['fn']:,}"
                cells = _cells([point.sensitivity, point.specificity, point.ppv, point.npv])
                rows.append([name, class_name, counted, _threshold(point.threshold), *cells])
        sections.append(rows)
    title = f"Operating points for a sensitivity of {sensitivity:.0%} on validation images"
    return _table(title, caption, heads, sections)


def prediction_sets_table(
    by_method: Mapping[str, Mapping[str, ConformalSets]], coverage: float, caption: str
) -> TextTable:
    """Coverage and sizes, a row a kind of sets."""
    heads = ["Method", "Sets", "Coverage", "Coverage\nby patient", "Lowest coverage\nof a class"]
    heads += ["Classes\nin a set", "Sets of\none class", "Empty\nsets"]
    sections = []
    for name, kinds in by_method.items():
        rows = []
        for kind, sets in kinds.items():
            lowest = min((value.value, of) for of, value in sets.class_coverage.items() if value.value is not None)[1]
            cells = _cells([sets.coverage, sets.patient_coverage, sets.class_coverage[lowest]])
            shares = _cells([sets.size, sets.single, sets.empty])
            rows.append([name, SET_NAMES[kind], *cells[:2], f"{cells[2]} {lowest}", *shares])
        sections.append(rows)
    return _table(f"Prediction sets for a coverage of {coverage:.0%}", caption, heads, sections)


def net_benefit_table(
    by_method: Mapping[str, Mapping[str, NetBenefit]], treat_all: Mapping[str, Sequence[float]], caption: str
) -> TextTable:
    """A row a method, class by class, then those of calling all images positive, or none.

    `treat_all`: class → net benefit at `TABLE_THRESHOLDS`.
    """
    heads = ["Method", "Class", *(f"Acting from\n{threshold:.0%}" for threshold in TABLE_THRESHOLDS)]
    sections = []
    for class_name, everyone in treat_all.items():
        rows = [[name, class_name, *_cells(benefits[class_name].at.values())] for name, benefits in by_method.items()]
        rows.append(["treat all", class_name, *(format_short(value, 3) for value in everyone)])
        sections.append([*rows, ["treat none", class_name, *(".000" for _ in everyone)]])
    return _table("Net benefit of acting on a class", caption, heads, sections)


def _threshold(value: float) -> str:
    """Three digits, however small."""
    return format_short(value, 3) if value >= 0.001 else f"{value:.2g}"


def _cells(estimates: Iterable[Estimate]) -> list[str]:
    return [format_with_interval(estimate.value, estimate.bounds) for estimate in estimates]


def _table(title: str, caption: str, heads: Row, sections: Sequence[Sequence[Row]]) -> TextTable:
    return score_table(title, heads, [rows for rows in sections if rows], caption=caption)
