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
from clipcovid.ray_backend.resources import ResourcePlan, plan_resources
from clipcovid.search_space import Space
from clipcovid.terminal import Countdown

HEARTBEAT_S = 30.0  # seconds
RETRIES = 1  # of a trial that raises, or whose process dies


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that ended."""

    params: dict[str, Any]
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
    run_trial: Work,
    *,
    settings: dict[str, Any],
    compute: ComputeConfig,
) -> list[Trial]:
    """Run `run_trial(task, **settings)` for each task and write its `path`; tasks whose file exists are not run again.

    With `--compute.workers 0` it is done in this process.
    """
    todo = [task for task in tasks if not _result_path(task).exists()]
    before = len(tasks) - len(todo)
    if before and todo:
        print(f"Going on: {before} of {len(tasks)} trials are there.")
    if todo and compute.workers == 0:
        countdown = Countdown("trial", len(tasks))
        for done, task in enumerate(todo, before + 1):
            _run_trial(task, run_trial, settings)
            print(countdown.line(done, before=before))
    elif todo:
        _run_tune(todo, run_trial, settings, compute)
    return [_read_result(task) for task in tasks]


def _result_path(params: dict[str, Any]) -> Path:
    return Path(params["path"]).with_suffix(".json")


def _run_trial(params: dict[str, Any], work: Work, settings: dict[str, Any]) -> dict[str, float]:
    scores = work(params, **settings)
    write_json(_result_path(params), scores)
    return scores


def _read_result(params: dict[str, Any]) -> Trial:
    path = _result_path(params)
    if not path.exists():
        return Trial(params=params, metrics={}, state="failed")
    return Trial(params=params, metrics=json.loads(path.read_text(encoding="utf-8")), state="finished")


ObjectiveFn = Callable[..., dict[str, float]]
Report = Callable[[dict[str, float], Path], None]
"""Takes a validation's `score` and `epoch`, and the folder that holds the state of the training then."""
VALUES_FILE = "values.json"
BRACKETS = 3  # of asynchronous HyperBand, which stop trials from early on, later, and hardly
POPULATION_STATES = 4  # kept of each trial of a population
GENERATIONS = 5  # of a population based training, in which trials that are behind begin anew from others
GRACE_SHARE = 1 / 4  # of its epochs, before which no trial is stopped for being worse than others


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How hyperparameters are searched, and with what."""

    folder: Path
    """Where the search is kept; one that it holds already goes on."""
    count: int
    """Configurations to try."""
    mode: str
    """min or max of the score."""
    algorithm: str
    """random, optuna, bohb or pbt."""
    stop_early: bool
    """Whether trials that are worse than others are stopped."""
    epochs: int
    """The most that a trial has."""
    compute: ComputeConfig
    """What to ask of the cluster for a trial."""
    max_concurrent: int
    """The most trials at a time; 0 for as many as there is room for."""
    workers: int
    """Processes of its own that each trial starts, none of which can report before the end; 0: it trains itself."""
    seed: int

    @property
    def is_population(self) -> bool:
        """Whether trials go on from the states of others."""
        return self.algorithm == "pbt"


def search(objective: ObjectiveFn, space: Space, options: SearchOptions, settings: dict[str, Any]) -> list[Trial]:
    """Try configurations of `space` (config key → distribution).

    `objective({"values": {key: value}, "name": …, "adopt": …}, report, **settings)` reports as its scores come, and returns
    its final `score` and `epoch`; where `adopt` is not None, it is the state of another trial that it goes on from. A trial
    that fails is tried once more.
    """
    connect(options.compute)
    from ray.tune import Tuner

    silence_tune()
    room = plan_trials(options.compute, options.workers, options.count, options.max_concurrent)
    # A trial that starts workers asks for no CPU itself: it would wait for theirs for ever. But it has to ask for something.
    own = {"cpu": room.cpus_per_worker, "gpu": room.gpus_per_worker}
    trainable = _trainable(objective, settings, options, {HEAD_RESOURCE: 1e-3} if options.workers else own)
    folder = str(options.folder / "tune")
    if Tuner.can_restore(folder):
        tuner = Tuner.restore(folder, trainable, resume_unfinished=True, restart_errored=False)
    else:
        tuner = _tuner(trainable, space, options, min(room.workers, options.max_concurrent or room.workers))
    results = tuner.fit()
    return [_to_trial(results[number]) for number in range(len(results))]


def _trainable(
    objective: ObjectiveFn, settings: dict[str, Any], options: SearchOptions, resources: dict[str, float]
) -> Any:
    """A trial as Tune runs it."""
    from ray import tune

    cwd = Path.cwd()

    def trainable(config: dict[str, Any], shared: dict[str, Any]) -> None:
        chdir_to_driver_cwd(cwd)

        def report(metrics: dict[str, float], state: Path) -> None:
            if not options.workers:
                checkpoint = tune.Checkpoint.from_directory(str(state)) if options.is_population else None
                tune.report({"score": metrics["score"], "epoch": metrics["epoch"]}, checkpoint=checkpoint)

        folder, adopted = options.folder / "tune" / str(tune.get_context().get_trial_id()), tune.get_checkpoint()
        task = _trial_task(folder, config, adopts=bool(adopted))
        write_json(folder / VALUES_FILE, task)  # of a trial that failed early, a restored sweep knows nothing else
        adopt = Path(adopted.path) if adopted and task["name"] != folder.name else None
        scores = shared["objective"](task | {"adopt": adopt}, report, **shared["settings"])
        tune.report(scores | {"ended": 1.0})

    shared = {"objective": objective, "settings": settings}
    return tune.with_resources(tune.with_parameters(trainable, shared=shared), resources)


def _trial_task(folder: Path, config: dict[str, Any], *, adopts: bool) -> dict[str, Any]:
    """The values and the name of a trial; with other values than it began with, and another's state, it has a new name."""
    if not (folder / VALUES_FILE).exists():
        return {"values": config, "name": folder.name}
    task: dict[str, Any] = json.loads((folder / VALUES_FILE).read_text(encoding="utf-8"))
    if adopts and task["values"] != config:
        return {"values": config, "name": f"{folder.name}-{int(task['name'].partition('-')[2] or 0) + 1}"}
    return task


def _tuner(trainable: Any, space: Space, options: SearchOptions, concurrency: int) -> Any:
    """A new search of at most `concurrency` trials at once."""
    from ray import tune
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
    from ray.tune.search.basic_variant import BasicVariantGenerator

    drawn = options.algorithm in ("random", "pbt")
    # A population takes turns where there is no room for all of it at once.
    at_once = options.max_concurrent if options.is_population else concurrency
    variants = BasicVariantGenerator(random_state=options.seed, max_concurrent=at_once)
    return Tuner(
        trainable,
        param_space={key: distribution.to_ray_tune(tune) for key, distribution in space.items()} if drawn else None,
        tune_config=TuneConfig(
            metric="score",
            mode=options.mode,
            num_samples=options.count,
            max_concurrent_trials=None if drawn else concurrency,
            reuse_actors=not options.workers,
            scheduler=_scheduler(options, space),
            search_alg=variants if drawn else _searcher(space, options.mode, options.seed),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(options.folder),
            verbose=0,
            stop=lambda _, result: bool(result.get("ended")),
            failure_config=FailureConfig(max_failures=RETRIES),
            checkpoint_config=CheckpointConfig(num_to_keep=POPULATION_STATES if options.is_population else None),
            callbacks=[_progress_callback(options.count, options.mode)],
        ),
    )


def plan_trials(compute: ComputeConfig, workers: int, count: int, max_concurrent: int) -> ResourcePlan:
    """Room for trials on the cluster: how many at once, and what each asks for.

    A CPU for each process where `compute` does not say, or with `max_concurrent` a trial's share of a node.
    """
    nodes, processes = cluster_nodes(), max(1, workers)
    cpus = (compute.cpus_per_worker or 1.0) * processes
    if max_concurrent and not compute.cpus_per_worker:
        total = sum(cpu for cpu, _ in nodes)
        cpus = max(cpus, min(max(cpu for cpu, _ in nodes), total // max_concurrent))
    gpus = None if compute.gpus_per_worker is None else compute.gpus_per_worker * processes
    trial = ComputeConfig(cpus_per_worker=cpus, gpus_per_worker=gpus, threads=compute.threads)
    return plan_resources(trial, nodes, gpu=True, items=count)


def _scheduler(options: SearchOptions, space: Space) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining

    if options.is_population:
        return PopulationBasedTraining(
            time_attr="epoch",
            perturbation_interval=max(1, options.epochs // GENERATIONS),
            custom_explore_fn=partial(_perturb, space, np.random.default_rng(options.seed)),
            log_config=False,
        )
    grace = max(1, round(GRACE_SHARE * options.epochs))
    if options.workers or not options.stop_early or options.epochs <= grace:
        return FIFOScheduler()
    bohb = options.algorithm == "bohb"
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        max_t=options.epochs + 1,
        grace_period=1 if bohb else grace,
        reduction_factor=3,
        brackets=BRACKETS if bohb else 1,
    )


def _perturb(space: Space, rng: np.random.Generator, config: dict[str, Any]) -> dict[str, Any]:
    """The config of another trial, each searched value perturbed."""
    return config | {key: distribution.perturb(config[key], rng) for key, distribution in space.items()}


def _to_trial(result: Any) -> Trial:
    folder = Path(result.path)
    params = {"values": dict(result.config or {}), "name": folder.name}
    if (folder / VALUES_FILE).exists():
        params = json.loads((folder / VALUES_FILE).read_text(encoding="utf-8"))
    reported = result.metrics or {}
    metrics = {key: float(reported[key]) for key in ("score", "epoch", "time_total_s") if key in reported}
    if result.error is not None:
        return Trial(
            params=params, metrics=metrics, state="failed", error=str(result.error).strip().splitlines()[-1][:300]
        )
    return Trial(params=params, metrics=metrics, state="finished" if reported.get("ended") else "pruned")


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


def _progress_callback(count: int, mode: str) -> Any:
    """A callback of Tune that says how each trial ended, and at least every `HEARTBEAT_S` seconds how far all are."""
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
            if time.monotonic() - self.reported > HEARTBEAT_S:
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


def hyperparameter_importance(trials: Sequence[Trial], space: Space, seed: int) -> dict[str, float]:
    """Key → its share of the variance of the scores, by fANOVA (Hutter, Hoos and Leyton-Brown 2014), greatest first.

    Nothing where fewer than 4 trials have finished, or all scores are the same.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    distributions = {key: distribution.to_optuna() for key, distribution in space.items()}
    finished = [trial for trial in trials if trial.state == "finished"]
    if len(finished) < 4 or len({trial.metrics["score"] for trial in finished}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=trial.params["values"], distributions=distributions, value=trial.metrics["score"]
            )
            for trial in finished
        ]
    )
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed)))


def _run_tune(
    tasks: Sequence[dict[str, Any]],
    work: Work,
    settings: dict[str, Any],
    compute: ComputeConfig,
) -> None:
    connect(compute)
    resources = plan_resources(compute, cluster_nodes(), gpu=False, items=len(tasks))
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

    silence_tune()
    cwd = Path.cwd()

    def trainable(config: dict[str, Any], shared: dict[str, Any]) -> None:
        chdir_to_driver_cwd(cwd)
        tune.report(_run_trial(config["task"], shared["work"], shared["settings"]))

    trial = tune.with_resources(
        tune.with_parameters(trainable, shared={"work": work, "settings": settings}), {"cpu": resources.cpus_per_worker}
    )
    folder = Path(tasks[0]["path"]).parent
    Tuner(
        trial,
        param_space={"task": tune.grid_search(list(tasks))},
        tune_config=TuneConfig(max_concurrent_trials=resources.workers, reuse_actors=True),
        run_config=RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            failure_config=FailureConfig(max_failures=RETRIES),
            callbacks=[_progress_callback(len(tasks), "max")],
        ),
    ).fit()
