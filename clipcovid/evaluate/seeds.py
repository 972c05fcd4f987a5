"""Runs of several seeds that are one method: found by their identities, and how far their scores spread."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import stdev
from typing import Any

from clipcovid.evaluate.load_predictions import MethodPredictions
from clipcovid.evaluate.scores import Scores, SeedRuns
from clipcovid.identity import digest

SEED_KEYS = ("seed", "clip.seed")  # the parts of an identity in which runs of one method may differ


def group_by_seed(methods: Sequence[MethodPredictions], pool: bool = True) -> dict[str, list[int]]:
    """Method → the positions of its runs: those whose identities differ in the seed alone, if no seed stands twice."""
    groups: dict[str, list[int]] = {}
    for at, method in enumerate(methods):
        groups.setdefault(_identity_without_seed(method) if pool else str(at), []).append(at)
    pooled = [positions if _differ([methods[at] for at in positions]) else None for positions in groups.values()]
    entries = [
        part
        for positions, one in zip(groups.values(), pooled, strict=True)
        for part in ([one] if one else [[at] for at in positions])
    ]
    shared = Counter(methods[positions[0]].metadata["method"] for positions in entries)
    return {_name([methods[at] for at in positions], shared): positions for positions in entries}


def seed_runs(runs: Sequence[MethodPredictions], metrics: Sequence[Mapping[str, float]]) -> SeedRuns:
    """What is known of the runs of one method, from the `metrics` of each."""
    values = {name: [of_run[name] for of_run in metrics] for name in metrics[0] if all(name in run for run in metrics)}
    return SeedRuns(
        runs=[run.run for run in runs],
        sources=[run.source for run in runs],
        seeds=[_seed(run) for run in runs],
        values=values,
        std={name: stdev(of_runs) for name, of_runs in values.items()},
    )


def name_alarms(run: MethodPredictions, scores: Scores) -> Scores:
    """The scores of one run among those of several seeds, with alarms that say which run they are of."""
    return replace(scores, alarms=[f"seed {_seed(run)}, run {run.run}: {alarm}" for alarm in scores.alarms])


def _identity_without_seed(method: MethodPredictions) -> str:
    identity = {key: value for key, value in method.metadata["identity"].items() if key not in SEED_KEYS}
    return digest([method.metadata["method"], identity])


def _seed(method: MethodPredictions) -> Any:
    return method.metadata["identity"].get("seed")


def _differ(runs: Sequence[MethodPredictions]) -> bool:
    """Whether there are several runs, each with a seed of its own."""
    seeds = [_seed(run) for run in runs]
    return len(runs) > 1 and None not in seeds and len(set(seeds)) == len(seeds)


def _name(runs: Sequence[MethodPredictions], shared: Mapping[str, int]) -> str:
    method = runs[0].metadata["method"]
    if len(runs) == 1:
        return runs[0].name
    others = f", {runs[0].run} …" if shared[method] > 1 else ""
    return f"{method} ({len(runs)} seeds{others})"
