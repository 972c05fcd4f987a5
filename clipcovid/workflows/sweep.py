"""A search for a method's best hyperparameters with Ray Tune: each trial is a training of the method."""

import difflib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from clipcovid.config import TrainConfig, UserError, flatten_resolved, override
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest
from clipcovid.evaluate import plots
from clipcovid.identity import sweep_identity
from clipcovid.io.files import remove_job_files, unlock_folder, write_json
from clipcovid.methods.checkpoints import CHECKPOINT_FILES, save_texts
from clipcovid.methods.registry import METHODS, AnyMethod
from clipcovid.ray_backend.cluster import connect
from clipcovid.ray_backend.tune import Report, SearchOptions, Trial, hyperparameter_importance, plan_trials, search
from clipcovid.runs import Run, finish_run, read_run_metadata, run_folder, start_run
from clipcovid.search_space import EMBEDDING_KEYS, MUTABLE_KEYS, Space, read_space
from clipcovid.training.trainer import STATE_FILES, resolve_training_schedule, train_model, training_manifest
from clipcovid.workflows.command_lines import command_line
from clipcovid.workflows.register import refuse_register_flag
from clipcovid.workflows.report import ChildRun, report_run
from clipcovid.workflows.train import embeddings_for

UNSEARCHABLE_KEYS = ("data", "out", "name", "register", "compute", "seed", "fold")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The method, and how its hyperparameters are searched."""

    task: AnyMethod
    """The task with all its flags: what is not searched stays as given. Its --compute.workers are a trial's."""
    trials: int = 20
    """How many configurations to try."""
    search: Literal["optuna", "random", "bohb", "pbt"] = "optuna"
    """optuna: TPE. random. bohb: TPE with HyperBand's brackets, asynchronous, after BOHB (Falkner et al. 2018). pbt:
    population based training (Jaderberg et al. 2017): trials that are behind go on from others' weights, with their
    settings changed a little; the best one's settings are the last of its schedule."""
    metric: str = ""
    """The validation score that says which trial is best. Default: the one by which the task chooses its best epoch."""
    early_stopping: bool = True
    """Stop trials that are worse than the others were after as many epochs (ASHA, Li et al. 2020); none with
    --compute.workers 1 or more, whose epochs are known only in the end."""
    space: Path | None = None
    """A YAML file of what to search. Default: the method's own (clipcovid/methods/NAME/space.py)."""
    max_concurrent: int = 0
    """The most trials at once. 0: as many as the cluster has room for."""
    confirm_seeds: int = 0
    """Train the best configuration with so many other seeds, and tell the spread."""
    resume: bool = False
    """Go on with a sweep, and refuse to begin one. (An unfinished one of the same name goes on in any case.)"""

    def __post_init__(self) -> None:
        if self.trials < 1 or self.max_concurrent < 0 or self.confirm_seeds < 0:
            raise UserError("--trials must be at least 1, --max-concurrent and --confirm-seeds 0 or more.")
        if self.confirm_seeds and self.task.fold:
            raise UserError(
                "--confirm-seeds would draw other folds: leave --fold out, or confirm with clipcovid crossval."
            )
        if len(getattr(self.task, "shots", ("all",))) > 1:
            raise UserError("Several numbers of --shots are a curve, not one training: give one of them.")
        if self.search == "pbt" and self.task.compute.workers:
            raise UserError("--search pbt needs trials that report each epoch: leave --compute.workers out.")


def validate_space(config: SweepConfig) -> Space:
    """The space to search; a key that the task's config does not have, or a value that it refuses, is a `UserError`."""
    task = config.task
    space = read_space(config.space) if config.space else METHODS[task.task].space
    if config.search == "pbt":
        fixed = [key for key in space if key not in MUTABLE_KEYS and not key.startswith("augment.")]
        if fixed and (config.space or len(fixed) == len(space)):
            raise UserError(
                f"--search pbt changes settings during training, and {fixed[0]} can't change then: use only "
                f"{', '.join(MUTABLE_KEYS)}, augment.…"
            )
        space = {key: distribution for key, distribution in space.items() if key not in fixed}
    settings = flatten_resolved(task)
    for key, distribution in space.items():
        if key not in settings or key.split(".")[0] in UNSEARCHABLE_KEYS:
            close = ", ".join(difflib.get_close_matches(key, settings, n=3))
            near = f"; near it are {close}" if close else ""
            raise UserError(f"The space has {key!r}, which is no setting of {task.task} to search{near}.")
        if METHODS[task.task].uses_embeddings and (key in EMBEDDING_KEYS or key.startswith("clip.")):
            raise UserError(f"The space has {key!r}, but all trials read the same embeddings: make a sweep for each.")
        for value in distribution.values:
            override(task, {key: value})
    return space


def validate_metric(config: SweepConfig) -> tuple[str, str]:
    """The score to compare trials by, and its mode (min or max); one that the task does not report is a `UserError`."""
    task = METHODS[config.task.task].load()
    if not config.metric:
        monitor: tuple[str, str] = task.monitor
        return monitor
    if config.metric not in task.validation_metrics:
        raise UserError(
            f"--metric {config.metric} is not reported by {config.task.task}: use one of "
            f"{', '.join(task.validation_metrics)}."
        )
    return config.metric, task.validation_metrics[config.metric]


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """The settings that all trials share."""

    train_config: TrainConfig
    """The method's config, before a trial's values are set."""
    folder: Path
    metric: str
    mode: str
    embeddings: Embeddings | None

    @property
    def select_best(self) -> Callable[..., Any]:
        """The function that picks the better of several scores: `max` or `min`, by `mode`."""
        return max if self.mode == "max" else min


def objective(params: dict[str, Any], report: Report, *, shared: TrialSettings) -> dict[str, float]:
    """A trial: a training with these parameters; returns the validation score of the model that it keeps."""
    placed = {"out": shared.folder / "trials", "name": params["name"]}
    config = override(shared.train_config, params["values"] | placed)
    key = f"val/{shared.metric}"

    def watch(run: Run) -> Callable[[dict[str, float]], None]:
        def on_epoch(metrics: dict[str, float]) -> None:
            if metrics["epoch"] < config.optim.epochs:  # the last one's score is what is returned
                report({"score": metrics[key], "epoch": metrics["epoch"]}, run.folder / "state")

        return on_epoch

    try:
        result = train_model(
            config, embeddings=shared.embeddings, on_run=watch, log=lambda text: None, fork_from=params["adopt"]
        )
    finally:
        unlock_folder(config.out / config.name)  # the next try may be another process's
    epochs = [metrics for metrics in result.run.history() if key in metrics]
    best = shared.select_best(metrics[key] for metrics in epochs)
    score = result.run.metrics()["val"]["metrics"].get(shared.metric, best)
    return {"score": float(score), "epoch": float(epochs[-1]["epoch"])}


def sweep(config: SweepConfig) -> None:
    """Search, keep the best configuration, confirm it with other seeds, and report all of it."""
    refuse_register_flag(config.task, "A sweep")
    space = validate_space(config)
    metric, mode = validate_metric(config)
    manifest = training_manifest(config.task)
    config = replace(config, task=resolve_training_schedule(config.task, manifest))
    run = _start_sweep(config, sweep_identity(config, manifest, metric, space))
    if run.is_done:
        print(run.finished_note)
        return
    shared = _shared_settings(config, manifest, run, metric, mode)
    trials = _run_trials(config, space, shared)
    records = [{"state": trial.state, "error": trial.error, **trial.params, **trial.metrics} for trial in trials]
    write_json(run.folder / "trials.json", records)
    best = _best_trial(trials, run, shared.select_best)
    _remove_checkpoints(run, best)
    seeds = _confirm(shared, best, config.confirm_seeds)
    _write_best(run, best, metric, seeds)
    shares = hyperparameter_importance(trials, space, config.task.seed)
    plots.save_figures(
        plots.sweep_figures(records, metric=metric, mode=mode, importance=shares), run.folder / "figures"
    )
    finish_run(run)
    remove_job_files(run.folder, r"tune/[^/]+/checkpoint_\d+(/.*)?")  # Ray Tune's copies of the states
    _print_summary(trials, best, metric, seeds)
    print(f"The best again: {training_command(config.task, best.params['values'])}")
    children = itertools.chain(_trial_runs(run, config.task, trials), _seed_runs(run, config.task, best))
    report_run(run, config.task, manifest=manifest, children=children)


def _start_sweep(config: SweepConfig, identity: dict[str, Any]) -> Run:
    """The sweep's run; one that `config` can't go on with is a `UserError`."""
    method = f"sweep-{config.task.title}"
    folder = run_folder(config.task, method=method, identity=identity)
    if config.resume and not read_run_metadata(folder):
        raise UserError(f"--resume: there is no sweep in {folder}; leave --resume out to begin it.")
    run = start_run(config.task, method=method, identity=identity, job="sweep")
    confirmed = run.is_done and json.loads((run.folder / "best.json").read_text(encoding="utf-8"))["seeds"]
    if run.is_done and config.confirm_seeds and not confirmed:
        raise UserError(f"{run.folder} is finished, without other seeds: give a new --name to try some.")
    return run


def _shared_settings(config: SweepConfig, manifest: Manifest, run: Run, metric: str, mode: str) -> TrialSettings:
    """The settings of all trials: a trial's share of the cluster, absolute paths, and the embeddings, made if missing."""
    task, workers = config.task, config.task.compute.workers or 0
    connect(replace(task.compute, workers=None))
    room = plan_trials(task.compute, workers, config.trials, config.max_concurrent)
    compute: dict[str, Any] = {"compute.workers": workers, "compute.threads": max(1, room.threads // max(1, workers))}
    compute |= {"compute.cpus_per_worker": room.cpus_per_worker / workers} if workers else {}
    embeddings = embeddings_for(task)
    return TrialSettings(
        train_config=override(save_texts(task, manifest.classes, run.folder), compute | {"data": task.data.resolve()}),
        folder=run.folder.resolve(),
        metric=metric,
        mode=mode,
        embeddings=embeddings and replace(embeddings, folder=embeddings.folder.resolve()),
    )


def _run_trials(config: SweepConfig, space: Space, shared: TrialSettings) -> list[Trial]:
    lengths = space["optim.epochs"].values if "optim.epochs" in space else (config.task.optim.epochs,)
    options = SearchOptions(
        folder=shared.folder,
        count=config.trials,
        mode=shared.mode,
        algorithm=config.search,
        stop_early=config.early_stopping,
        epochs=max(lengths),
        compute=replace(config.task.compute, workers=None),
        max_concurrent=config.max_concurrent,
        workers=config.task.compute.workers or 0,
        seed=config.task.seed,
    )
    return search(objective, space, options, {"shared": shared})


def _best_trial(trials: Sequence[Trial], run: Run, better: Callable[..., Any]) -> Trial:
    """The finished trial with the best score; where none was finished, a `UserError`."""
    finished = [trial for trial in trials if "score" in trial.metrics and trial.state == "finished"]
    if not finished:
        raise UserError(f"No trial was finished: see {run.folder / 'trials.json'} for what each of them said.")
    best: Trial = better(finished, key=lambda trial: trial.metrics["score"])
    return best


def _remove_checkpoints(run: Run, best: Trial) -> None:
    """Remove the checkpoints and states of all trials but the best."""
    for folder in (run.folder / "trials").iterdir():
        if folder.name != best.params["name"] and read_run_metadata(folder):
            remove_job_files(folder, f"{CHECKPOINT_FILES}|{STATE_FILES}")


def _confirm(shared: TrialSettings, best: Trial, seeds: int) -> dict[str, list[float]]:
    """`<split>/<metric>` → its values with so many other seeds, of the best configuration."""
    scores: dict[str, list[float]] = {}
    for seed in range(shared.train_config.seed + 1, shared.train_config.seed + 1 + seeds):
        values = best.params["values"] | {"seed": seed, "out": shared.folder / "seeds", "name": f"seed-{seed}"}
        result = train_model(override(shared.train_config, values), embeddings=shared.embeddings)
        for split in ("val", "test"):
            for metric, value in result.run.metrics()[split]["metrics"].items():
                scores.setdefault(f"{split}/{metric}", []).append(value)
    return scores


def _write_best(run: Run, best: Trial, metric: str, seeds: dict[str, list[float]]) -> None:
    """Write best.json, and the scores of the best trial as the sweep's own."""
    summary = {"values": best.params["values"], "score": best.metrics["score"], "metric": metric, "seeds": seeds}
    write_json(run.folder / "best.json", summary)
    scores = Run(folder=run.folder / "trials" / best.params["name"], method=run.method, identity={}).metrics()
    write_json(run.folder / "metrics.json", {split: scores[split] for split in scores if split in ("val", "test")})


def training_command(config: TrainConfig, values: dict[str, Any]) -> str:
    """The command line that trains this configuration."""
    best = override(config, values | {"name": ""})
    return command_line(config.task.replace("_", "-"), best, type(config)(data=config.data))


def _print_summary(trials: Sequence[Trial], best: Trial, metric: str, seeds: dict[str, list[float]]) -> None:
    """Print how the trials ended, the best settings with their score, and why trials failed."""
    states = {state: sum(trial.state == state for trial in trials) for state in ("finished", "pruned", "failed")}
    table = Table(title=", ".join(f"{count} {state}" for state, count in states.items() if count), box=box.SIMPLE_HEAD)
    table.add_column("setting")
    table.add_column("best", justify="right")
    for key, value in best.params["values"].items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    table.add_row(f"validation {metric}", f"{best.metrics['score']:.4f}")
    for name in (f"val/{metric}", f"test/{metric}"):
        values = seeds.get(name, [])
        if len(values) > 1:
            table.add_row(f"{name}, {len(values)} other seeds", f"{mean(values):.4f} ± {stdev(values):.4f}")
    Console().print(table)
    for trial in trials:
        if trial.state == "failed":
            print(f"warning: {trial.params['name']} failed: {trial.error}", file=sys.stderr)


def _trial_runs(run: Run, task: TrainConfig, trials: Sequence[Trial]) -> Iterator[ChildRun]:
    """Each trial as a run; one that failed before it began gets its folder."""
    for trial in trials:
        folder = run.folder / "trials" / trial.params["name"]
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.json").exists():
            write_json(folder / "config.json", {"trial": trial.params})
        try:
            config = override(task, trial.params["values"])
        except UserError:  # values that a config refuses together were why it failed
            config = task
        yield ChildRun(
            run=Run(folder=folder, method=task.title, identity={"trial": trial.params["name"], **run.identity}),
            config=config,
            tags={"clipcovid.trial": trial.state},
            status="FAILED" if trial.state == "failed" else "FINISHED",
        )


def _seed_runs(run: Run, task: TrainConfig, best: Trial) -> Iterator[ChildRun]:
    """The trainings of the best configuration with other seeds, each a run."""
    for folder in sorted((run.folder / "seeds").glob("seed-*")):
        seed = {"seed": int(folder.name.removeprefix("seed-"))}
        identity = read_run_metadata(folder)["identity"]
        shown = Run(folder=folder, method=task.title, identity=identity, job="train")
        yield ChildRun(run=shown, config=override(task, best.params["values"] | seed), tags={"clipcovid.trial": "seed"})
