"""The answer in three sentences, made from numbers: who is best, whether that is sure, and whether it may be believed."""

from collections.abc import Sequence

from clipcovid.evaluate.comparison_notes import best_baseline, unbeaten_baseline
from clipcovid.evaluate.number_format import format_short
from clipcovid.report.study import ReportData

MAX_NAMED = 4  # methods named in a sentence


def conclusion(study: ReportData) -> list[str]:
    """Three sentences."""
    return [_who_is_best(study), _how_sure(study), _whether_to_believe(study)]


def _ranking_metric(study: ReportData) -> tuple[str, str]:
    """The metric that ranks the methods, and its name."""
    metric = study.comparison.judged_by
    return metric, study.kind.key_metrics[metric]


def _who_is_best(study: ReportData) -> str:
    comparison = study.comparison
    scores = comparison.methods[comparison.best]
    intervals = scores.intervals
    level = f"{intervals['level']:.0%}"
    values = [
        f"{name} {format_short(scores.metrics[metric], 3)}"
        + (f" ({level} interval {_bounds(intervals['intervals'][metric])})" if metric in intervals["intervals"] else "")
        for metric, name in study.kind.key_metrics.items()
        if metric in scores.metrics
    ]
    of = f" of {intervals['units']:,} patients" if intervals["unit"] == "patient" else " (patients are unknown)"
    many = len(comparison.methods)
    verb = f"is the best of {many} methods with" if many > 1 else "reaches"
    return (
        f"On {comparison.n:,} {comparison.split} images{of}, {comparison.best} {verb} {_join(values[:2])}"
        f"{_beside_baseline(study)}."
    )


def _beside_baseline(study: ReportData) -> str:
    """The best of the baselines by the metric that ranks."""
    if unbeaten := unbeaten_baseline(study.comparison):
        return f", but {unbeaten}"
    baseline, (_, name) = best_baseline(study.comparison), _ranking_metric(study)
    if baseline is None:
        return ""
    return f", where the baseline {baseline[0]}, which sees no image, has {name} {format_short(baseline[1], 3)}"


def _how_sure(study: ReportData) -> str:
    comparison = study.comparison
    metric, name = _ranking_metric(study)
    gaps = {method: gap[metric] for method, gap in comparison.paired_differences.items() if metric in gap}
    if len(comparison.methods) < 2:
        return "There is no other method here to compare it with."
    bounded = {method: gap for method, gap in gaps.items() if "low" in gap}
    if not bounded:
        return "Whether the others are worse can't be told: there are no intervals of the differences."
    worse = [method for method, gap in bounded.items() if gap["high"] < 0]
    alike = {method: gap for method, gap in bounded.items() if gap["high"] >= 0}
    if not alike:
        return f"Every other method is worse beyond the paired 95% interval of its difference in {name}."
    shown = [
        f"{method} ({_signed(gap['value'])}, {_bounds((gap['low'], gap['high']))})"
        for method, gap in list(alike.items())[:MAX_NAMED]
    ]
    more = [f"{len(alike) - MAX_NAMED} more"] if len(alike) > MAX_NAMED else []
    told = f"{_join([*shown, *more])} can't be told apart from it"
    if not worse:
        return f"No other method is surely worse in {name}: by the paired 95% interval {told}."
    return f"{len(worse)} of the {len(bounded)} others are worse in {name} beyond the paired 95% interval; {told}."


def _whether_to_believe(study: ReportData) -> str:
    return f"{_what_the_audit_says(study)}{_what_is_elsewhere(study)}."


def _what_the_audit_says(study: ReportData) -> str:
    if study.audit is None:
        return "The data have not been audited: until then, leaks and shortcuts may explain any of these scores"
    counts = {
        severity: sum(finding.severity == severity for finding in study.audit.findings)
        for severity in ("high", "medium")
    }
    if not any(counts.values()):
        return "The audit of the data found nothing of high or medium severity"
    told = _join([f"{count} of {severity} severity" for severity, count in counts.items() if count])
    first = study.audit.findings[0].summary.rstrip(". ")
    return f"Believe it with care: the audit of the data has {told} among its findings, first of all: {first}"


def _what_is_elsewhere(study: ReportData) -> str:
    """The best method's score on the external sets."""
    metric, name = _ranking_metric(study)
    best, told = study.comparison.best, []
    for test in study.comparison.external:
        gap = test.gaps.get(best, {}).get(metric)
        if gap is not None:
            bounds = f", {_bounds((gap['low'], gap['high']))}" if "low" in gap else ""
            told.append(
                f"{format_short(gap['external'], 3)} on {test.dataset} (a gap of {_signed(gap['value'])}{bounds})"
            )
    return f"; elsewhere, {name} of {best} is {_join(told)}" if told else ""


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{format_short(value, 3)}"


def _bounds(pair: Sequence[float]) -> str:
    return f"{format_short(pair[0], 3)} to {format_short(pair[1], 3)}"


def _join(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
