"""Trials through Ray Tune: as many at once as the cluster has room for, each done once, in actors that are used again."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcovid.config import ComputeConfig
from clipcovid.files import write_json
from clipcovid.resources import connect, nodes, plan

RETRIES = 1  # of a trial that raises, or whose process dies


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that ended."""

    task: dict[str, Any]
    """What it was asked."""
    metrics: dict[str, float]
    """What it reported last; nothing where it failed."""
    state: str
    """finished, pruned or failed."""
    error: str = ""
    """Why it failed."""


Work = Callable[..., dict[str, float]]


def run_trials(
    tasks: Sequence[dict[str, Any]], work: Work, *, settings: dict[str, Any], compute: ComputeConfig
) -> list[Trial]:
    """Do `work(task, **settings)` for each task, which has a `path` that the work writes; those that are there are kept.

    With `--compute.workers 0` it is done in this process.
    """
    todo = [task for task in tasks if not _result(task).exists()]
    if todo and compute.workers == 0:
        for task in todo:
            _do(task, work, settings)
    elif todo:
        _on_tune(todo, work, settings, compute)
    return [_read(task) for task in tasks]


def _result(task: dict[str, Any]) -> Path:
    return Path(task["path"]).with_suffix(".json")


def _do(task: dict[str, Any], work: Work, settings: dict[str, Any]) -> dict[str, float]:
    found = work(task, **settings)
    write_json(_result(task), found)
    return found


def _read(task: dict[str, Any]) -> Trial:
    path = _result(task)
    if not path.exists():
        return Trial(task=task, metrics={}, state="failed")
    return Trial(task=task, metrics=json.loads(path.read_text(encoding="utf-8")), state="finished")


def _on_tune(tasks: Sequence[dict[str, Any]], work: Work, settings: dict[str, Any], compute: ComputeConfig) -> None:
    import os

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    connect(compute)
    chosen = plan(compute, nodes(), gpu=False, items=len(tasks))
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

    logging.getLogger("ray.tune").setLevel(logging.ERROR)

    def trainable(config: dict[str, Any], shared: dict[str, Any]) -> None:
        tune.report(_do(config["task"], shared["work"], shared["settings"]))

    asked = tune.with_resources(
        tune.with_parameters(trainable, shared={"work": work, "settings": settings}), {"cpu": chosen.cpus_per_worker}
    )
    folder = Path(tasks[0]["path"]).parent
    Tuner(
        asked,
        param_space={"task": tune.grid_search(list(tasks))},
        tune_config=TuneConfig(max_concurrent_trials=chosen.workers, reuse_actors=True),
        run_config=RunConfig(
            name="tune", storage_path=str(folder), verbose=0, failure_config=FailureConfig(max_failures=RETRIES)
        ),
    ).fit()
