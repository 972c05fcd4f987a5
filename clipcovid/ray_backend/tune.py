"""Trials through Ray Tune: as many at once as the cluster has room for, each done once, in actors that are used again."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipcovid.config import ComputeConfig
from clipcovid.io.files import write_json
from clipcovid.ray_backend.cluster import cluster_nodes, connect
from clipcovid.ray_backend.map import chdir_to_driver_cwd
from clipcovid.ray_backend.private import HEAD_RESOURCE
from clipcovid.ray_backend.resources import ResourcePlan, plan
from clipcovid.search_space import Space
from clipcovid.terminal import Countdown

HEARTBEAT = 30.0  # seconds
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
    tasks: Sequence[dict[str, Any]],
    work: Work,
    *,
    settings: dict[str, Any],
    compute: ComputeConfig,
) -> list[Trial]:
    """Do `work(task, **settings)` for each task, which has a `path` that the work writes; those that are there are kept.

    With `--compute.workers 0` it is done in this process.
    """
    todo = [task for task in tasks if not _result(task).exists()]
    before = len(tasks) - len(todo)
    if before and todo:
        print(f"Going on: {before} of {len(tasks)} trials are there.")
    if todo and compute.workers == 0:
        countdown = Countdown("trial", len(tasks))
        for done, task in enumerate(todo, before + 1):
            _run_trial(task, work, settings)
            print(countdown.line(done, before=before))
    elif todo:
        _on_tune(todo, work, settings, compute)
    return [_read_result(task) for task in tasks]


def _result(task: dict[str, Any]) -> Path:
    return Path(task["path"]).with_suffix(".json")


def _run_trial(task: dict[str, Any], work: Work, settings: dict[str, Any]) -> dict[str, float]:
    found = work(task, **settings)
    write_json(_result(task), found)
    return found


def _read_result(task: dict[str, Any]) -> Trial:
    path = _result(task)
    if not path.exists():
        return Trial(task=task, metrics={}, state="failed")
    return Trial(task=task, metrics=json.loads(path.read_text(encoding="utf-8")), state="finished")


Objective = Callable[..., dict[str, float]]
Report = Callable[[dict[str, float], Path], None]
"""Takes a validation's `score` and `epoch`, and the folder that holds the state of the training then."""
VALUES = "values.json"
BRACKETS = 3  # of asynchronous HyperBand, which stop trials from early on, later, and hardly
KEPT = 4  # states of a trial of a population
GENERATIONS = 5  # of a population based training, in which trials that are behind begin anew from others
GRACE = 1 / 4  # of its epochs, before which no trial is stopped for being worse than others


def search(
    attempt: Objective,
    space: Space,
    *,
    settings: dict[str, Any],
    folder: Path,
    count: int,
    mode: str,
    algorithm: str,
    stop_early: bool,
    epochs: int,
    compute: ComputeConfig,
    at_once: int,
    workers: int,
    seed: int,
) -> list[Trial]:
    """Try `count` configurations of `space` (config key → distribution).

    `attempt({"values": {key: value}, "name": …, "adopt": …}, report, **settings)` reports as its scores come, and returns
    its final `score` and `epoch`; where `adopt` is not None, it is the state of another that it goes on from. `epochs`: the
    most that a trial has. `compute`: what a trial asks for; with `workers` it starts so many processes of its own, none of
    which can report before the end. `at_once`: the most trials at a time, 0 for as many as there is room for. A trial that
    fails is tried once more. A sweep that is there in `folder` goes on.
    """
    connect(compute)
    from ray import tune
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
    from ray.tune.search.basic_variant import BasicVariantGenerator

    silence_tune()
    room = plan_trials(compute, workers, count, at_once)
    together = min(room.workers, at_once or room.workers)
    # A trial that starts workers asks for no CPU itself: it would wait for theirs for ever. But it has to ask for something.
    asked = {HEAD_RESOURCE: 1e-3} if workers else {"cpu": room.cpus_per_worker, "gpu": room.gpus_per_worker}
    population, place = algorithm == "pbt", Path.cwd()

    def trainable(config: dict[str, Any], shared: dict[str, Any]) -> None:
        chdir_to_driver_cwd(place)

        def report(line: dict[str, float], state: Path) -> None:
            if not workers:
                kept = tune.Checkpoint.from_directory(str(state)) if population else None
                tune.report({"score": line["score"], "epoch": line["epoch"]}, checkpoint=kept)

        here, given = folder / "tune" / str(tune.get_context().get_trial_id()), tune.get_checkpoint()
        task: dict[str, Any] = {"values": config, "name": here.name}
        if (here / VALUES).exists():  # begun before: the same goes on where it was, another's weights are adopted
            task = json.loads((here / VALUES).read_text(encoding="utf-8"))
            if given and task["values"] != config:
                task = {"values": config, "name": f"{here.name}-{int(task['name'].partition('-')[2] or 0) + 1}"}
        write_json(here / VALUES, task)  # of a trial that failed early, a restored sweep knows nothing else
        adopted = Path(given.path) if given and task["name"] != here.name else None
        found = shared["attempt"](task | {"adopt": adopted}, report, **shared["settings"])
        tune.report(found | {"ended": 1.0})

    shared = {"attempt": attempt, "settings": settings}
    made = tune.with_resources(tune.with_parameters(trainable, shared=shared), asked)
    if Tuner.can_restore(str(folder / "tune")):
        tuner = Tuner.restore(str(folder / "tune"), made, resume_unfinished=True, restart_errored=False)
    else:
        drawn = algorithm in ("random", "pbt")
        # A population takes turns where there is no room for all of it at once.
        variants = BasicVariantGenerator(random_state=seed, max_concurrent=(at_once if population else together))
        tuner = Tuner(
            made,
            param_space={key: one.to_ray_tune(tune) for key, one in space.items()} if drawn else None,
            tune_config=TuneConfig(
                metric="score",
                mode=mode,
                num_samples=count,
                max_concurrent_trials=None if drawn else together,
                reuse_actors=not workers,
                scheduler=_scheduler(algorithm, space, epochs, stop_early and not workers, seed),
                search_alg=variants if drawn else _searcher(space, mode, seed),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=RunConfig(
                name="tune",
                storage_path=str(folder),
                verbose=0,
                stop=lambda _, result: bool(result.get("ended")),
                failure_config=FailureConfig(max_failures=RETRIES),
                checkpoint_config=CheckpointConfig(num_to_keep=KEPT if population else None),
                callbacks=[_announcer(count, mode)],
            ),
        )
    found = tuner.fit()
    return [_to_trial(found[number]) for number in range(len(found))]


def plan_trials(compute: ComputeConfig, workers: int, count: int, at_once: int) -> ResourcePlan:
    """Room for trials on the cluster: how many at once, and what each asks for.

    A CPU for each process if not told otherwise, or with `at_once` a trial's share of a node.
    """
    have, each = cluster_nodes(), max(1, workers)
    cpus = (compute.cpus_per_worker or 1.0) * each
    if at_once and not compute.cpus_per_worker:
        total = sum(cpu for cpu, _ in have)
        cpus = max(cpus, min(max(cpu for cpu, _ in have), total // at_once))
    gpus = None if compute.gpus_per_worker is None else compute.gpus_per_worker * each
    whole = ComputeConfig(cpus_per_worker=cpus, gpus_per_worker=gpus, threads=compute.threads)
    return plan(whole, have, gpu=True, items=count)


def _scheduler(algorithm: str, space: Space, epochs: int, stop_early: bool, seed: int) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining

    if algorithm == "pbt":
        return PopulationBasedTraining(
            time_attr="epoch",
            perturbation_interval=max(1, epochs // GENERATIONS),
            custom_explore_fn=partial(_perturb, space, np.random.default_rng(seed)),
            log_config=False,
        )
    grace = max(1, round(GRACE * epochs))
    if not stop_early or epochs <= grace:
        return FIFOScheduler()
    brackets = BRACKETS if algorithm == "bohb" else 1
    grace = 1 if algorithm == "bohb" else grace
    return AsyncHyperBandScheduler(
        time_attr="epoch", max_t=epochs + 1, grace_period=grace, reduction_factor=3, brackets=brackets
    )


def _perturb(space: Space, rng: np.random.Generator, config: dict[str, Any]) -> dict[str, Any]:
    """The config of another trial, each searched value perturbed."""
    return config | {key: distribution.perturb(config[key], rng) for key, distribution in space.items()}


def _to_trial(result: Any) -> Trial:
    here = Path(result.path)
    task = {"values": dict(result.config or {}), "name": here.name}
    if (here / VALUES).exists():
        task = json.loads((here / VALUES).read_text(encoding="utf-8"))
    reported = result.metrics or {}
    metrics = {key: float(reported[key]) for key in ("score", "epoch", "time_total_s") if key in reported}
    if result.error is not None:
        return Trial(task=task, metrics=metrics, state="failed", error=str(result.error).strip().splitlines()[-1][:300])
    return Trial(task=task, metrics=metrics, state="finished" if reported.get("ended") else "pruned")


def _searcher(space: Space, mode: str, seed: int) -> Any:
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searched = {key: distribution.to_ray_tune(tune) for key, distribution in space.items()}
    return OptunaSearch(searched, metric="score", mode=mode, seed=seed)


def silence_tune() -> None:
    """Keep Tune's hints from the terminal; what goes wrong is in the trials."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


def _announcer(count: int, mode: str) -> Any:
    """A callback of Tune that says how each trial ended, and at least every `HEARTBEAT` seconds how far all are."""
    from ray.tune import Callback

    better = max if mode == "max" else min

    class Announcer(Callback):
        countdown: Countdown | None = None  # made when the sweep runs, for Tune keeps callbacks and restores them

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if self.countdown is None:
                self.countdown, self.reported = Countdown("trial", count), time.monotonic()
                self.before = sum(trial.is_finished() for trial in trials)  # of a sweep that goes on
                print(f"Sweep of {count} trials" + f", of which {self.before} are there" * bool(self.before) + ".")

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if time.monotonic() - self.reported > HEARTBEAT:
                epochs = [f"{trial.last_result.get('epoch', 0):.0f}" for trial in trials if trial.status == "RUNNING"]
                running = [f"{len(epochs)} running, after epochs {', '.join(epochs)}"] * bool(epochs)
                self.tell(trials, *running)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            score = trial.last_result.get("score")
            self.tell(trials, *([] if score is None else [f"score {score:.4f}"]), ended=trial)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.tell(trials, "failed", ended=trial)

        def tell(self, trials: list[Any], *facts: str, ended: Any = None) -> None:
            scores = [trial.last_result["score"] for trial in trials if "score" in (trial.last_result or {})]
            finished = {trial.trial_id for trial in trials if trial.is_finished()} | {ended.trial_id if ended else ""}
            done, best = len(finished - {""}), [f"best {better(scores):.4f}"] if scores else []
            assert self.countdown is not None, "a sweep begins before its trials end"
            print(self.countdown.line(done, *facts, *best, before=self.before))
            self.reported = time.monotonic()

    return Announcer()


def importance(trials: Sequence[Trial], space: Space, seed: int) -> dict[str, float]:
    """Key → its share of the variance of the scores, by fANOVA (Hutter, Hoos and Leyton-Brown 2014), greatest first.

    Nothing where fewer than 4 trials have finished, or all scores are the same.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    distributions = {key: distribution.to_optuna() for key, distribution in space.items()}
    known = [trial for trial in trials if trial.state == "finished"]
    if len(known) < 4 or len({trial.metrics["score"] for trial in known}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=trial.task["values"], distributions=distributions, value=trial.metrics["score"]
            )
            for trial in known
        ]
    )
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed)))


def _on_tune(
    tasks: Sequence[dict[str, Any]],
    work: Work,
    settings: dict[str, Any],
    compute: ComputeConfig,
) -> None:
    connect(compute)
    chosen = plan(compute, cluster_nodes(), gpu=False, items=len(tasks))
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

    silence_tune()
    place = Path.cwd()

    def trainable(config: dict[str, Any], shared: dict[str, Any]) -> None:
        chdir_to_driver_cwd(place)
        tune.report(_run_trial(config["task"], shared["work"], shared["settings"]))

    asked = tune.with_resources(
        tune.with_parameters(trainable, shared={"work": work, "settings": settings}), {"cpu": chosen.cpus_per_worker}
    )
    folder = Path(tasks[0]["path"]).parent
    Tuner(
        asked,
        param_space={"task": tune.grid_search(list(tasks))},
        tune_config=TuneConfig(max_concurrent_trials=chosen.workers, reuse_actors=True),
        run_config=RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            failure_config=FailureConfig(max_failures=RETRIES),
            callbacks=[_announcer(len(tasks), "max")],
        ),
    ).fit()
