"""All pairs of methods: differences with intervals, tests, and what they amount to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from clipcovid.evaluate import significance
from clipcovid.evaluate.bootstrap import percentile_interval
from clipcovid.evaluate.draws import Draws


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two methods on the same images."""

    first: str
    second: str
    differences: dict[str, dict[str, float]]
    """Metric → `value` of the first minus the second; `low`, `high` (95 %), `low_90`, `high_90`, `p` and `p_holm` where there
    are intervals."""
    mcnemar: dict[str, float] | None = None
    """How often only the first and only the second is right, p, and p after Holm's correction; None: not tested."""
    verdict: str = ""
    """What the first is by the metric that ranks methods: equivalent, better, worse, undecided; "" without an interval."""


def compare_pairs(
    draws: Draws,
    methods: Mapping[str, int],
    metrics: Iterable[str],
    *,
    intervals: bool = True,
    correct: Mapping[str, np.ndarray] | None = None,
    margin: float | None = None,
    judged_by: str = "",
) -> list[Pair]:
    """Each pair of `methods` (name → row of the draws), the one named first against the other.

    A difference is left out where the metric is undefined for either. `intervals`: whether there are patients enough to
    resample. `correct`: method → which images it has right, bool (n,), for McNemar's test. P-values are corrected for the
    number of pairs, for each metric on its own. `judged_by`: the metric of the verdict, with its `margin` of equivalence.
    """
    pairs = list(combinations(methods, 2))
    metrics = [metric for metric in metrics if metric in draws.values]
    differences: list[dict[str, dict[str, float]]] = [{} for _ in pairs]
    for metric in metrics:
        for entry, (first, second) in zip(differences, pairs, strict=True):
            gap = _difference(draws, metric, methods[first], methods[second], intervals)
            if gap is not None:
                entry[metric] = gap
        _correct([entry[metric] for entry in differences if metric in entry])
    tests = [_mcnemar(correct or {}, *pair) for pair in pairs]
    _correct([test for test in tests if test is not None])
    return [
        Pair(
            first=first,
            second=second,
            differences=entry,
            mcnemar=test,
            verdict=_verdict(entry.get(judged_by, {}), margin),
        )
        for (first, second), entry, test in zip(pairs, differences, tests, strict=True)
    ]


def differences_to_first(pairs: Sequence[Pair], metrics: Iterable[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Method, but the first → metric → it minus the first: value, low and high; and `mcnemar`, where it is tested."""
    chosen, first = list(metrics), pairs[0].first if pairs else ""
    return {
        pair.second: {metric: _negative(pair.differences[metric]) for metric in chosen if metric in pair.differences}
        | _mcnemar_of_second(pair)
        for pair in pairs
        if pair.first == first
    }


def _difference(draws: Draws, metric: str, first: int, second: int, intervals: bool) -> dict[str, float] | None:
    values, samples = draws.values[metric], draws.samples[metric]
    value = float(values[first] - values[second])
    if np.isnan(value):
        return None
    gaps = samples[first] - samples[second]
    bounds, narrower = percentile_interval(gaps), percentile_interval(gaps, 0.9)
    if not intervals or bounds is None or narrower is None:
        return {"value": value}
    gap = {"value": value, "low": bounds[0], "high": bounds[1], "low_90": narrower[0], "high_90": narrower[1]}
    p_value = significance.bootstrap_p_value(value, gaps)
    return gap if p_value is None else gap | {"p": p_value}


def _correct(entries: Sequence[dict[str, float]]) -> None:
    """Add `p_holm` to those that have a `p`."""
    tested = [entry for entry in entries if "p" in entry]
    for entry, p_value in zip(tested, significance.holm([entry["p"] for entry in tested]), strict=True):
        entry["p_holm"] = p_value


def _mcnemar(right: Mapping[str, np.ndarray], first: str, second: str) -> dict[str, float] | None:
    if first not in right or second not in right:
        return None
    only_first = int((right[first] & ~right[second]).sum())
    only_second = int((right[second] & ~right[first]).sum())
    p_value = significance.mcnemar(only_first, only_second)
    return {"only_first": only_first, "only_second": only_second, "p": p_value}


def _verdict(gap: Mapping[str, float], margin: float | None) -> str:
    if "low" not in gap:
        return ""
    return significance.classify_difference((gap["low_90"], gap["high_90"]), (gap["low"], gap["high"]), margin)


def _negative(gap: Mapping[str, float]) -> dict[str, float]:
    opposite = {"value": 0.0 - gap["value"]}
    return opposite | ({"low": 0.0 - gap["high"], "high": 0.0 - gap["low"]} if "low" in gap else {})


def _mcnemar_of_second(pair: Pair) -> dict[str, Any]:
    test = pair.mcnemar
    if test is None:
        return {}
    counts = {"only_best": test["only_first"], "only_this": test["only_second"]}
    return {"mcnemar": counts | {"p": test["p"], "p_holm": test["p_holm"]}}
