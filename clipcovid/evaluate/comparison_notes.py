"""What a comparison assumes and what it found, in sentences."""

from collections import Counter

from clipcovid.evaluate.bootstrap import Intervals
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.number_format import few_units_warning, format_short, format_with_interval
from clipcovid.evaluate.scores import Comparison


def comparison_notes(comparison: Comparison) -> list[str]:
    """The notes of a comparison, each a sentence or two."""
    kind, intervals = get_kind(comparison.kind), comparison.methods[comparison.best].intervals
    unknown = ", for no patient ids are known" if intervals["unit"] == "image" else ""
    resampled = (
        f"Intervals are {intervals['level']:.0%} bootstrap intervals by {intervals['unit']} "
        f"({intervals['units']:,} of them{unknown})."
    )
    notes = [
        resampled if intervals["units"] > 1 else f"There are no intervals: all is of one {intervals['unit']}.",
        *_few_units_notes(intervals),
        *_low_value_notes(comparison),
        *kind.baseline_notes(comparison),
        *_seed_notes(comparison),
    ]
    if comparison.paired_differences:
        notes += [
            f"Differences are to {comparison.best}, over the same resamples for both; it was found to be the best on "
            "these very images, which flatters it.",
            *kind.significance_notes(comparison),
            *_verdict_notes(comparison),
        ]
    notes += [*_group_notes(comparison), *_hard_notes(comparison), *_decision_notes(comparison)]
    return [*notes, *dict.fromkeys(note for scores in comparison.methods.values() for note in scores.notes)]


def best_baseline(comparison: Comparison) -> tuple[str, float] | None:
    """The baseline that is best by the metric that ranks, by its name, and its value; None where none has the metric."""
    metric, names = comparison.judged_by, get_kind(comparison.kind).baseline_names(comparison)
    values = {names[name]: row[metric] for name, row in comparison.baselines.items() if metric in row}
    return max(values.items(), key=lambda entry: entry[1]) if values else None


def unbeaten_baseline(comparison: Comparison) -> str:
    """That no method beats the best of the baselines, without a full stop; "" where one does, or there is none."""
    baseline, metric = best_baseline(comparison), comparison.judged_by
    if baseline is None or comparison.methods[comparison.best].metrics[metric] > baseline[1]:
        return ""
    head = get_kind(comparison.kind).key_metrics[metric]
    return f"no method beats the baseline that sees no image ({baseline[0]}: {head} {format_short(baseline[1], 3)})"


def baseline_alarms(comparison: Comparison) -> list[str]:
    """An alarm where no method beats the best of the baselines."""
    unbeaten, best = unbeaten_baseline(comparison), comparison.best
    if not unbeaten:
        return []
    value = format_short(comparison.methods[best].metrics[comparison.judged_by], 3)
    return [f"{unbeaten[0].upper()}{unbeaten[1:]}; the best method, {best}, has {value}."]


def _few_units_notes(intervals: Intervals) -> list[str]:
    warning = few_units_warning(intervals)
    return [f"{warning[0].upper()}{warning[1:]}."] if warning else []


def _low_value_notes(comparison: Comparison) -> list[str]:
    """Calibration errors grow by resampling, as they do by chance: with few images they may lie below their intervals."""
    below = [
        name
        for name, scores in comparison.methods.items()
        for metric, interval in scores.intervals["intervals"].items()
        if "ece" in metric and scores.metrics.get(metric, interval[0]) < interval[0]
    ]
    if not below:
        return []
    return [
        f"Some calibration errors (ECE) of {', '.join(dict.fromkeys(below))} lie below their intervals: resampling adds "
        "chance differences within bins, so with so few images the intervals lie too high."
    ]


def _seed_notes(comparison: Comparison) -> list[str]:
    if not comparison.seeds:
        return []
    return [
        "Runs that differ in their seed alone are one method, scored by the mean over seeds; its intervals come of "
        "resampling seeds and patients."
    ]


def _verdict_notes(comparison: Comparison) -> list[str]:
    """How many pairs are told apart, and by what rule."""
    verdicts = Counter(pair.verdict for pair in comparison.pairs if pair.verdict)
    if not verdicts:
        return []
    head = get_kind(comparison.kind).key_metrics[comparison.judged_by]
    told = verdicts["better"] + verdicts["worse"]
    notes = [
        f"By {head}, {told} of {verdicts.total()} pairs differ (their 95% interval leaves out 0)"
        + (
            f", {verdicts['equivalent']} are equivalent (their 90% interval, which is two one-sided tests at 5%, lies within "
            f"±{format_short(comparison.margin, 3)}), {verdicts['undecided']} are undecided."
            if comparison.margin is not None
            else f", {verdicts['undecided']} are undecided; none is called equivalent without a --margin."
        )
    ]
    if any("p" in gap for pair in comparison.pairs for gap in pair.differences.values()):
        notes.append(
            "The p of all pairs is that of the difference by its bootstrap standard error; Holm's correction is for "
            f"{len(comparison.pairs)} pairs, verdicts are not corrected."
        )
    return notes


def _group_notes(comparison: Comparison) -> list[str]:
    """The best method's gap by each column, and which groups count in none."""
    notes = []
    head = get_kind(comparison.kind).key_metrics[comparison.judged_by]
    for column in dict.fromkeys(group.column for group in comparison.subgroups):
        gaps = [gap for gap in comparison.gaps if (gap.column, gap.metric) == (column, comparison.judged_by)]
        for gap in (gap for gap in gaps if gap.method == comparison.best):
            notes.append(
                f"By {column}, {gap.method} has {head} {format_with_interval(gap.value, gap.bounds, 3)} more in {gap.best} "
                f"than in {gap.worst}, the best and the worst group, which were found on these images."
            )
        left_out = [
            f"{group.name}: {group.left_out}"
            for group in comparison.subgroups
            if group.column == column and group.left_out
        ]
        if not gaps:
            notes.append(f"By {column} there are no two groups to compare.")
        if left_out:
            notes.append(f"Not in the gap by {column}: {'; '.join(left_out)}.")
    return notes


def _decision_notes(comparison: Comparison) -> list[str]:
    if comparison.decisions is None:
        return []
    several = [f"{name} by the run {runs.runs[0]}" for name, runs in comparison.seeds.items()]
    of_first = [f"Calibration and decisions are of one seed: {', '.join(several)}."] if several else []
    return [*of_first, *comparison.decisions.notes]


def _hard_notes(comparison: Comparison) -> list[str]:
    hard = comparison.hard_images
    if hard is None or len(hard.runs) < 2:
        return []
    count, runs = f"{comparison.n:,}", "Both" if len(hard.runs) == 2 else f"All {len(hard.runs)}"
    return [
        f"{runs} runs are wrong on {hard.counts[0]:,} of {count} images ({hard.expected_missed:,.1f} would be expected if "
        f"their errors were independent) and right on {hard.counts[-1]:,} of {count}; right means that {hard.criterion}."
    ]
