"""MLflow, and the only place that imports it. What it shows stands in the run folder first; without it, work goes on."""

import getpass
import logging
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from clipcovid.config import RESEARCH_ONLY, first_line, flatten
from clipcovid.identity import digest
from clipcovid.runs import Run

EXPERIMENT = "clipcovid"
TAG = "clipcovid.run"
HEADLINES = (
    "accuracy",
    "macro_f1",
    "lung/iou",
    "infection/iou",
    "bleu_1",
    "bleu_4",
    "cider",
    "image_to_text/recall_10",
)
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the pages of trained models, not of language models


def store(out: Path) -> str:
    """The tracking URI: MLFLOW_TRACKING_URI, else an sqlite file in `out`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local_store(out)


def _local_store(out: Path) -> str:
    return f"sqlite:///{(out / 'mlflow.db').resolve()}"


def ui_command(out: Path) -> str:
    """What to type to see the runs."""
    return f"mlflow ui --backend-store-uri {store(out)}"


def track(run: Run, config: Any, *, tags: dict[str, str], parent: Run | None = None) -> bool:
    """Show a finished run in MLflow: params, metrics, figures, predictions, environment, revision; True if that worked.

    `parent`: the run beneath which it is shown, as a sweep's trials are.

    The MLflow run is found again by the run's identity and name, and updated, or made. Whatever goes wrong with MLflow is
    a warning: `metrics.json` is the truth.
    """
    try:
        _track(run, config, tags, parent)
    except Exception as error:
        _warn(store(config.out), error)
        return False
    return True


class Live:
    """Shows a training's lines in MLflow as they come. Made by the driver, it works in any process that sees `out`.

    MLflow takes seconds to import and to open, so nothing is opened before the first line.
    """

    def __init__(self, run: Run, config: Any) -> None:
        self.run = replace(run, folder=run.folder.resolve())
        self.config = replace(config, out=config.out.resolve())
        self.store = store(config.out)
        self.run_id: str | None = ""

    def __call__(self, line: dict[str, float]) -> None:
        """Log a line at its epoch; nothing where MLflow did not answer the first time."""
        if self.run_id == "":
            try:
                client, self.run_id = _open(self.run, self.config, self.store)
                client.update_run(self.run_id, status="RUNNING")
            except Exception as error:
                self.run_id = None
                _warn(self.store, error)
        if self.run_id:
            _log_line(_client(self.store), self.run_id, line)


def _warn(uri: str, error: Exception) -> None:
    print(f"warning: MLflow at {uri} did not take the run ({first_line(error)[:200]}).", file=sys.stderr)


def _client(uri: str) -> Any:
    # Its own defaults retry an unreachable server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):  # after the import, which sets them anew
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _open(run: Run, config: Any, uri: str) -> tuple[Any, str]:
    """A client and the id of the MLflow run of `run`, found by its tag, or made with its params."""
    from mlflow.entities import Param

    config.out.mkdir(parents=True, exist_ok=True)
    client = _client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        local = (config.out / "mlartifacts").resolve().as_uri() if uri == _local_store(config.out) else None
        experiment = client.get_experiment(client.create_experiment(EXPERIMENT, local, tags=KIND))
    key = digest([run.identity, run.name])
    found = client.search_runs([experiment.experiment_id], f"tags.`{TAG}` = '{key}'", max_results=1)
    if found:
        return client, found[0].info.run_id
    began = int((run.folder / "config.json").stat().st_mtime * 1000)
    made = client.create_run(experiment.experiment_id, began, run_name=run.name, tags={TAG: key})
    params = [Param(name, str(value)[:6000]) for name, value in flatten(config).items()]
    client.log_batch(made.info.run_id, params=params)  # a parameter can't be written twice
    return client, made.info.run_id


def _log_line(client: Any, run_id: str, line: dict[str, float]) -> None:
    from mlflow.entities import Metric

    now, step = int(time.time() * 1000), int(line["epoch"])
    client.log_batch(
        run_id, metrics=[Metric(_allowed(f"epoch/{name}"), value, now, step) for name, value in line.items()]
    )


def _track(run: Run, config: Any, tags: dict[str, str], parent: Run | None) -> None:
    from mlflow.entities import Metric, RunTag

    client, run_id = _open(run, config, store(config.out))
    client.update_run(run_id, status="RUNNING")
    if parent is not None:
        tags = tags | {"mlflow.parentRunId": _open(parent, config, store(config.out))[1]}
    facts = [RunTag(name, str(value)[:5000]) for name, value in (_facts(run) | tags).items()]
    client.log_batch(run_id, tags=facts)
    now = int(time.time() * 1000)
    metrics = [Metric(_allowed(name), value, now, 0) for name, value in _metrics(run).items()]
    for start in range(0, len(metrics), 500):  # a request takes 1,000
        client.log_batch(run_id, metrics=metrics[start : start + 500])
    there = {point.step for point in client.get_metric_history(run_id, "epoch/epoch")}
    for line in run.history():
        if int(line["epoch"]) not in there:
            _log_line(client, run_id, line)
    client.log_text(run_id, "\n".join(packages()) + "\n", "environment.txt")
    for path in sorted(run.folder.iterdir()):
        if path.is_dir() and path.name not in ("checkpoint", "state"):
            client.log_artifacts(run_id, str(path), path.name)
        elif path.suffix in (".json", ".csv", ".md"):
            client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, "FINISHED")


def _metrics(run: Run) -> dict[str, float]:
    """`<split>/<metric>` of all splits scored so far, and the baselines' accuracy and macro F1 beside them."""
    metrics: dict[str, float] = {}
    for split, body in run.metrics().items():
        metrics |= {f"{split}/{name}": value for name, value in body["metrics"].items()}
        for number, values in enumerate(body.get("folds", []), 1):
            metrics |= {f"{split}/fold-{number}/{name}": values[name] for name in HEADLINES if name in values}
        for baseline, values in body["baselines"].items():
            shown = {name: values[name] for name in HEADLINES if name in values}
            metrics |= {f"{split}/{baseline}/{name}": value for name, value in shown.items()}
    return metrics


def _facts(run: Run) -> dict[str, str]:
    """Tags: method, description with the alarms, user, source, revision and versions."""
    alarms = [f"{split}: {text}" for split, body in run.metrics().items() for text in body["alarms"]]
    return {
        "clipcovid.method": run.method,
        "mlflow.note.content": "\n\n".join([RESEARCH_ONLY, *alarms]),
        "mlflow.source.name": sys.argv[0],
        "mlflow.user": getpass.getuser(),
        **revision(),
        **versions(),
    }


def _allowed(name: str) -> str:
    """A metric's name in the characters that MLflow takes."""
    return re.sub(r"[^\w\-./ :]", "_", name)


def revision() -> dict[str, str]:
    """The git commit of this code and whether it was changed since; empty outside of a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--", "."))
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.changed": str(changed).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def versions() -> dict[str, str]:
    """Versions of what results depend on most."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "ray", "open_clip_torch")}


def packages() -> list[str]:
    """Every installed package as `name==version`."""
    return sorted({f"{package.name}=={package.version}" for package in distributions()}, key=str.lower)
