"""Search for a task's best hyperparameters with Ray Tune: each trial is the task's own job.

    python tune/hparams.py cnn --data data/quex --weights none --optim.epochs 10
    python tune/hparams.py finetune --data data/quex --trials 50 --search random --space my-space.yaml
    python tune/hparams.py segment --data data/quex --target lung --confirm-seeds 3

What is best on the validation split is what the task watches in training. Bad trials are stopped early (ASHA). Killed or
interrupted and run again, a sweep goes on where it was; it ends with the command that trains the best configuration.
"""

import difflib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from clipcovid.config import UserError, flatten, override, run_job
from clipcovid.data.embeddings import Embeddings
from clipcovid.evaluate import plots
from clipcovid.identity import sweep_identity
from clipcovid.io.files import remove_own, unlock_folder, write_json
from clipcovid.methods.registry import CHECKPOINT_FILES, METHODS, AnyMethod, save_texts
from clipcovid.ray_backend.cluster import connect
from clipcovid.ray_backend.tune import Report, Trial, importance, plan_trials, search
from clipcovid.runs import Run, finish_run, read_about, run_folder, start_run
from clipcovid.search_space import ENCODER, MUTABLE, SPACES, Space, read_space
from clipcovid.tracking import Status, track, ui_command
from clipcovid.training.trainer import STATE_FILES, sized_config, train_model, training_manifest
from clipcovid.workflows.train import embeddings_for


@dataclass(frozen=True, kw_only=True)
class HparamsConfig:
    """Which task, and how it is searched."""

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
    """A YAML file of what to search. Default: the task's own (clipcovid/search_space.py)."""
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
                "--confirm-seeds would draw other folds: leave --fold out, or confirm with jobs/crossval.py."
            )
        if len(getattr(self.task, "shots", ("all",))) > 1:
            raise UserError("Several numbers of --shots are a curve, not one training: give one of them.")
        if self.search == "pbt" and self.task.compute.workers:
            raise UserError("--search pbt needs trials that report each epoch: leave --compute.workers out.")


def checked_space(config: HparamsConfig) -> Space:
    """What is searched; a key that the task's config does not have, or a value that it refuses, is a `UserError`."""
    task = config.task
    space = read_space(config.space) if config.space else SPACES[task.task]
    if config.search == "pbt":
        fixed = [key for key in space if key not in MUTABLE and not key.startswith("augment.")]
        if fixed and (config.space or len(fixed) == len(space)):
            raise UserError(
                f"--search pbt changes settings while a model is trained, which {fixed[0]} can't be; what can: "
                f"{', '.join(MUTABLE)}, augment.…"
            )
        space = {key: one for key, one in space.items() if key not in fixed}
    known = flatten(task)
    for key, distribution in space.items():
        if key not in known or key.split(".")[0] in ("data", "out", "name", "compute", "seed", "fold"):
            close = ", ".join(difflib.get_close_matches(key, known, n=3))
            near = f"; near it are {close}" if close else ""
            raise UserError(f"The space has {key!r}, which is no setting of {task.task} to search{near}.")
        if METHODS[task.task].embedded and (key in ENCODER or key.startswith("clip.")):
            raise UserError(f"The space has {key!r}, but all trials read the same embeddings: make a sweep for each.")
        for value in distribution.values:
            override(task, {key: value})
    return space


def checked_metric(config: HparamsConfig) -> tuple[str, str]:
    """The score that trials are compared by, and which way is better; one that the task has not is a `UserError`."""
    task = METHODS[config.task.task].load()
    if not config.metric:
        found: tuple[str, str] = task.monitor
        return found
    if config.metric not in task.validation_metrics:
        raise UserError(
            f"--metric {config.metric}: {config.task.task} reports {', '.join(task.validation_metrics)}, but not that."
        )
    return config.metric, task.validation_metrics[config.metric]


def attempt(params: dict[str, Any], report: Report, *, job: "_Job") -> dict[str, float]:
    """A trial: the job with these parameters; the validation score of the model that it keeps."""
    config = override(job.task, params["values"] | {"out": job.folder / "trials", "name": params["name"]})
    key = f"val/{job.metric}"

    def watch(run: Run) -> Callable[[dict[str, float]], None]:
        def told(line: dict[str, float]) -> None:
            if line["epoch"] < config.optim.epochs:  # the last one's score is what is returned
                report({"score": line[key], "epoch": line["epoch"]}, run.folder / "state")

        return told

    try:
        done = train_model(config, embeddings=job.embeddings, watch=watch, log=lambda text: None, adopt=params["adopt"])
    finally:
        unlock_folder(config.out / config.name)  # the next try may be another process's
    lines = [line for line in done.run.history() if key in line]
    best = (max if job.mode == "max" else min)(line[key] for line in lines)
    kept = done.run.metrics()["val"]["metrics"].get(job.metric, best)
    return {"score": float(kept), "epoch": float(lines[-1]["epoch"])}


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every trial knows."""

    task: Any
    folder: Path
    metric: str
    mode: str
    embeddings: Embeddings | None


def main(config: HparamsConfig) -> None:
    """Search, keep the best, confirm it, and show all of it."""
    task, space = config.task, checked_space(config)
    metric, mode = checked_metric(config)
    manifest = training_manifest(task)
    task = sized_config(task, manifest)
    identity = sweep_identity(replace(config, task=task), manifest, metric, space)
    named: dict[str, Any] = {"method": f"sweep-{task.title}", "identity": identity}
    if config.resume and not read_about(folder := run_folder(task, **named)):
        raise UserError(f"--resume: there is no sweep in {folder}; leave --resume out to begin it.")
    run = start_run(task, **named, job="sweep")
    if run.done:
        if config.confirm_seeds and not json.loads((run.folder / "best.json").read_text(encoding="utf-8"))["seeds"]:
            raise UserError(f"{run.folder} is finished, without other seeds: give a new --name to try some.")
        print(f"{run.folder} is finished already: nothing was left to do.")
        return
    workers = task.compute.workers or 0
    connect(replace(task.compute, workers=None))
    room = plan_trials(task.compute, workers, config.trials, config.max_concurrent)
    alone: dict[str, Any] = {"compute.workers": workers, "compute.threads": max(1, room.threads // max(1, workers))}
    alone |= {"compute.cpus_per_worker": room.cpus_per_worker / workers} if workers else {}
    embeddings = embeddings_for(task)
    job = _Job(
        task=override(save_texts(task, manifest.classes, run.folder), alone | {"data": task.data.resolve()}),
        folder=run.folder.resolve(),
        metric=metric,
        mode=mode,
        embeddings=embeddings and replace(embeddings, folder=embeddings.folder.resolve()),
    )
    lengths = space["optim.epochs"].values if "optim.epochs" in space else (task.optim.epochs,)
    trials = search(
        attempt,
        space,
        settings={"job": job},
        folder=run.folder.resolve(),
        count=config.trials,
        mode=mode,
        algorithm=config.search,
        stop_early=config.early_stopping,
        epochs=max(lengths),
        compute=replace(task.compute, workers=None),
        at_once=config.max_concurrent,
        workers=workers,
        seed=task.seed,
    )
    listed = [{"state": trial.state, "error": trial.error, **trial.task, **trial.metrics} for trial in trials]
    write_json(run.folder / "trials.json", listed)
    known = [trial for trial in trials if "score" in trial.metrics and trial.state == "finished"]
    if not known:
        raise UserError(f"No trial was finished: see {run.folder / 'trials.json'} for what each of them said.")
    best = (max if mode == "max" else min)(known, key=lambda trial: trial.metrics["score"])
    for tried in (run.folder / "trials").iterdir():
        if tried.name != best.task["name"] and read_about(tried):
            remove_own(tried, f"{CHECKPOINT_FILES}|{STATE_FILES}")
    kept = Run(folder=run.folder / "trials" / best.task["name"], method=task.title, identity={})
    body: dict[str, Any] = kept.metrics()
    if config.confirm_seeds:
        body["seeds"] = _confirm(job, best, config.confirm_seeds)
    about = {"values": best.task["values"], "score": best.metrics["score"], "metric": metric}
    write_json(run.folder / "best.json", about | {"seeds": body.get("seeds", {})})
    write_json(run.folder / "metrics.json", {name: one for name, one in body.items() if name in ("val", "test")})
    shares = importance(trials, space, task.seed)
    plots.save(plots.sweep_figures(listed, metric=metric, mode=mode, importance=shares), run.folder / "figures")
    finish_run(run)
    remove_own(run.folder, r"tune/[^/]+/checkpoint_\d+(/.*)?")  # Ray Tune's copies of the states
    _print(trials, best, metric, body.get("seeds"))
    print(f"The best again: {command(task, best.task['values'])}")
    _show(run, task, trials, {"manifest": manifest.content_hash, "split": manifest.split_hash})


def _confirm(job: _Job, best: Trial, seeds: int) -> dict[str, list[float]]:
    """The validation and test scores of the best configuration with other seeds."""
    found: dict[str, list[float]] = {}
    for seed in range(1, seeds + 1):
        name = f"seed-{job.task.seed + seed}"
        values = best.task["values"] | {"seed": job.task.seed + seed, "out": job.folder / "seeds", "name": name}
        done = train_model(override(job.task, values), embeddings=job.embeddings)
        for split in ("val", "test"):
            for metric, value in done.run.metrics()[split]["metrics"].items():
                found.setdefault(f"{split}/{metric}", []).append(value)
    return found


def command(task: Any, values: dict[str, Any]) -> str:
    """What to type to train this configuration."""
    default = flatten(type(task)(data=task.data))
    best = override(task, values | {"name": ""})
    given, several = flatten(best), _tuples(best)
    flags = [f"--data {shlex.quote(str(task.data))}"]
    for key, value in given.items():
        if key != "data" and value != default.get(key):
            name = key.removeprefix("prompts.").replace("_", "-")
            if isinstance(value, bool):
                place, _, last = name.rpartition(".")
                flags.append(f"--{name}" if value else f"--{place + '.' if place else ''}no-{last}")
            else:
                words = several.get(key, [str(value)])
                flags.append(f"--{name} {shlex.join(words)}")
    return f"python jobs/{task.task}.py {' '.join(flags)}"


def _tuples(config: Any, start: str = "") -> dict[str, list[str]]:
    """Dotted key → its words, of values that are tuples."""
    found: dict[str, list[str]] = {}
    for one in fields(config):
        value = getattr(config, one.name)
        if is_dataclass(value):
            found |= _tuples(value, f"{start}{one.name}.")
        elif isinstance(value, tuple):
            found[start + one.name] = [str(part) for part in value]
    return found


def _print(trials: Sequence[Trial], best: Trial, metric: str, seeds: dict[str, list[float]] | None) -> None:
    console = Console()
    states = {state: sum(trial.state == state for trial in trials) for state in ("finished", "pruned", "failed")}
    table = Table(title=", ".join(f"{count} {state}" for state, count in states.items() if count), box=box.SIMPLE_HEAD)
    table.add_column("setting")
    table.add_column("best", justify="right")
    for key, value in best.task["values"].items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    table.add_row(f"validation {metric}", f"{best.metrics['score']:.4f}")
    for name in (f"val/{metric}", f"test/{metric}"):
        values = (seeds or {}).get(name, [])
        if len(values) > 1:
            table.add_row(f"{name}, {len(values)} other seeds", f"{mean(values):.4f} ± {stdev(values):.4f}")
    console.print(table)
    for trial in trials:
        if trial.state == "failed":
            print(f"warning: {trial.task['name']} failed: {trial.error}", file=sys.stderr)


def _show(run: Run, task: Any, trials: Sequence[Trial], tags: dict[str, str]) -> None:
    print(f"Run: {run.folder}")
    if not track(run, task, tags=tags):
        return
    for trial in trials:
        folder = run.folder / "trials" / trial.task["name"]
        folder.mkdir(parents=True, exist_ok=True)
        child = Run(folder=folder, method=task.title, identity={"trial": trial.task["name"], **run.identity})
        if not (folder / "config.json").exists():
            write_json(folder / "config.json", {"trial": trial.task})
        try:
            config = override(task, trial.task["values"])
        except UserError:  # what a config refuses together was why it failed
            config = task
        status: Status = "FAILED" if trial.state == "failed" else "FINISHED"
        if not track(child, config, tags=tags | {"clipcovid.trial": trial.state}, parent=run, status=status):
            return
    print(f"MLflow: {ui_command(task.out)}")


if __name__ == "__main__":
    run_job(HparamsConfig, main, __doc__)
