"""Trials through Ray Tune: as many at once as the cluster has room for, each done once, in actors that are used again."""

import json
import logging
import os
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


Attempt = Callable[..., dict[str, float]]
Report = Callable[[dict[str, float], Path], None]
"""Takes a validation's `score` and `epoch`, and the folder that holds the state of the training then."""
VALUES = "values.json"
GENERATIONS = 5  # of a population based training, in which trials that are behind begin anew from others
GRACE = 1 / 4  # of its epochs, before which no trial is stopped for being worse than others


def search(
    attempt: Attempt,
    space: dict[str, Any],
    *,
    settings: dict[str, Any],
    folder: Path,
    count: int,
    mode: str,
    algorithm: str,
    stop_early: bool,
    epochs: int,
    compute: ComputeConfig,
    workers: int,
    seed: int,
) -> list[Trial]:
    """Try `count` configurations of `space` (key → a distribution of `low` and `high`, or of `values`).

    `attempt({"values": {key: value}, "name": …, "adopt": …}, report, **settings)` reports as its scores come, and returns
    its final metrics; where `adopt` is not None, it is the state of another that it goes on from. `workers`: how many
    processes of its own each starts; 0: it works in its actor. `compute.workers` limits how many are tried at once. A trial
    that fails is tried once more. A sweep that is there in `folder` goes on.
    """
    connect(compute)
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
    from ray.tune.schedulers import (
        AsyncHyperBandScheduler,
        FIFOScheduler,
        HyperBandScheduler,
        PopulationBasedTraining,
    )

    quiet_tune()
    have = nodes()
    each = max(1, workers)
    room = plan(ComputeConfig(cpus_per_worker=float(each)), have, gpu=True, items=count)
    at_once = min(room.workers, compute.workers or room.workers)
    # A trial that starts workers asks for nothing itself: with a CPU of its own it would wait for theirs for ever.
    asked = {"cpu": 0.0, "gpu": 0.0} if workers else {"cpu": room.cpus_per_worker, "gpu": room.gpus_per_worker}

    def trainable(config: dict[str, Any], shared: dict[str, Any]) -> None:
        def report(line: dict[str, float], state: Path) -> None:
            kept = tune.Checkpoint.from_directory(str(state)) if population else None
            tune.report({"score": line["score"], "epoch": line["epoch"]}, checkpoint=kept)

        here, given = Path(str(tune.get_context().get_trial_dir())), tune.get_checkpoint()
        name = here.name
        if given:  # the weights of another, or this one's from before it was killed
            before = json.loads((here / VALUES).read_text(encoding="utf-8"))["name"]
            name += f"-{int(before.partition('-')[2] or 0) + 1}"
        if given or not (here / VALUES).exists():  # of a trial that failed early, a restored sweep knows nothing
            write_json(here / VALUES, {"values": config, "name": name})
        params = {"values": config, "name": name, "adopt": Path(given.path) if given else None}
        found = shared["attempt"](params, report, **shared["settings"])
        tune.report(found | {"epoch": float(epochs), "ended": 1.0})

    population = algorithm == "pbt"
    shared = {"attempt": attempt, "settings": settings}
    made = tune.with_resources(tune.with_parameters(trainable, shared=shared), asked)
    if Tuner.can_restore(str(folder / "tune")):
        tuner = Tuner.restore(str(folder / "tune"), made, resume_unfinished=True, restart_errored=False)
    else:
        scheduler: Any = FIFOScheduler()
        grace = max(1, round(GRACE * epochs))
        if algorithm == "bohb":
            scheduler = HyperBandScheduler(time_attr="epoch", max_t=epochs)
        elif population:
            scheduler = PopulationBasedTraining(
                time_attr="epoch",
                perturbation_interval=max(1, epochs // GENERATIONS),
                hyperparam_mutations={key: _tunes(one) for key, one in space.items()},
                log_config=False,
            )
        elif stop_early and epochs > grace:
            scheduler = AsyncHyperBandScheduler(
                time_attr="epoch", max_t=epochs + 1, grace_period=grace, reduction_factor=3
            )
        drawn = algorithm in ("random", "pbt")
        tuner = Tuner(
            made,
            param_space={key: _tunes(one) for key, one in space.items()} if drawn else None,
            tune_config=TuneConfig(
                metric="score",
                mode=mode,
                num_samples=count,
                max_concurrent_trials=at_once,
                reuse_actors=not workers,
                scheduler=scheduler,
                search_alg=None if drawn else _searcher(space, mode, seed),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=RunConfig(
                name="tune", storage_path=str(folder), verbose=0, failure_config=FailureConfig(max_failures=RETRIES)
            ),
        )
    found = tuner.fit()
    return [_ended(found[number]) for number in range(len(found))]


def _ended(result: Any) -> Trial:
    here = Path(result.path)
    task = {"values": dict(result.config or {}), "name": here.name}
    if (here / VALUES).exists():
        task = json.loads((here / VALUES).read_text(encoding="utf-8"))
    reported = result.metrics or {}
    metrics = {key: float(reported[key]) for key in ("score", "epoch", "time_total_s") if key in reported}
    if result.error is not None:
        return Trial(task=task, metrics=metrics, state="failed", error=str(result.error).strip().splitlines()[-1][:300])
    return Trial(task=task, metrics=metrics, state="finished" if reported.get("ended") else "pruned")


def _tunes(one: Any) -> Any:
    """A distribution as Ray Tune has it."""
    from ray import tune

    kinds = {"Log": tune.loguniform, "Uniform": tune.uniform, "Int": lambda low, high: tune.randint(low, high + 1)}
    kind = type(one).__name__
    return tune.choice(list(one.values)) if kind == "Choice" else kinds[kind](one.low, one.high)


def _searcher(space: dict[str, Any], mode: str, seed: int) -> Any:
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch({key: _tunes(one) for key, one in space.items()}, metric="score", mode=mode, seed=seed)


def importance(trials: Sequence[Trial], space: dict[str, Any], seed: int) -> dict[str, float]:
    """Key → its share of the variance of the scores, by fANOVA (Hutter, Hoos and Leyton-Brown 2014), greatest first.

    Nothing where fewer than 4 trials have finished, or all scores are the same.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    known = [trial for trial in trials if trial.state == "finished"]
    if len(known) < 4 or len({trial.metrics["score"] for trial in known}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    made = {key: _of_optuna(one) for key, one in space.items()}
    study.add_trials(
        [
            optuna.trial.create_trial(params=trial.task["values"], distributions=made, value=trial.metrics["score"])
            for trial in known
        ]
    )
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed)))


def _of_optuna(one: Any) -> Any:
    """A distribution as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kind = type(one).__name__
    if kind == "Choice":
        return CategoricalDistribution(list(one.values))
    return (
        IntDistribution(one.low, one.high) if kind == "Int" else FloatDistribution(one.low, one.high, log=kind == "Log")
    )


def quiet_tune() -> None:
    """Keep Tune's tables and hints from the terminal; what goes wrong is in the trials. Ctrl-C is left to the job: Tune's
    own handler would end a sweep as if it were done."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


def _on_tune(tasks: Sequence[dict[str, Any]], work: Work, settings: dict[str, Any], compute: ComputeConfig) -> None:
    connect(compute)
    chosen = plan(compute, nodes(), gpu=False, items=len(tasks))
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

    quiet_tune()

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
