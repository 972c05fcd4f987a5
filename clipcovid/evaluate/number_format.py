"""Numbers as text: counts with their nouns; scores with fixed digits, intervals, means and p-values."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

FEW_UNITS = 10  # patients (or images) below which a bootstrap has too few to resample


def format_count(count: int, noun: str) -> str:
    """`1 pair`, `2,000 pairs`; `noun`: of one, with a plural in s."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def agree(count: int, singular: str, plural: str) -> str:
    """The verb's form for so many."""
    return singular if count == 1 else plural


def format_number(value: float | None) -> str:
    """`0.812`; nothing for None."""
    return "" if value is None else f"{round(value, 3) + 0.0:.3f}"  # + 0.0 makes -0.0 a plain zero


def format_interval(bounds: Sequence[float] | None) -> str:
    """`0.700 – 0.850`, or nothing where there is no interval."""
    return f"{format_number(bounds[0])} – {format_number(bounds[1])}" if bounds else ""


def format_mean_std(values: Sequence[float]) -> str:
    """`0.812 ± 0.020`; without the deviation for a single value, nothing for none."""
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{format_number(mean(values))}{deviation}" if values else ""


def format_short(value: float, digits: int) -> str:
    """A number without the zero before its point."""
    text = f"{round(value, digits) + 0.0:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def format_with_interval(value: float | None, bounds: Sequence[float] | None = None, digits: int = 2) -> str:
    """`.913 (.89–.93)`, or `-.021 (-.035 to -.008)` where there are negative numbers; nothing for None."""
    if value is None:
        return ""
    if bounds is None:
        return format_short(value, 3)
    between = " to " if min(value, *bounds) < 0 else "–"
    return f"{format_short(value, 3)} ({between.join(format_short(bound, digits) for bound in bounds)})"


def gap_bounds(gap: Mapping[str, float]) -> tuple[float, float] | None:
    """The interval of a difference, where it has one."""
    return (gap["low"], gap["high"]) if "low" in gap else None


def format_p_value(p_value: float) -> str:
    """`.034`, or `<.001`."""
    return "<.001" if p_value < 0.001 else format_short(p_value, 3)


def describe_resampling(intervals: Any) -> str:
    """What was resampled for `bootstrap.Intervals`, or why there are no intervals."""
    if intervals["units"] < 2:
        return f"no intervals, for all is of one {intervals['unit']}"
    few = f"; {warning}" if (warning := few_units_warning(intervals)) else ""
    return f"{intervals['level']:.0%} intervals by {intervals['unit']} ({intervals['units']:,}){few}"


def few_units_warning(intervals: Any) -> str:
    """What `bootstrap.Intervals` are worth by fewer than `FEW_UNITS` patients or images, without a full stop; else ""."""
    if not 1 < intervals["units"] < FEW_UNITS:
        return ""
    return f"intervals by so few {intervals['unit']}s (fewer than {FEW_UNITS}) are worth little, and often too narrow"
