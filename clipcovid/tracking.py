"""MLflow, and the only place that imports it. What it shows stands in the run folder first; without it, work goes on."""

import getpass
import logging
import os
import pickle
import platform
import re
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from clipcovid import environment
from clipcovid.config import RESEARCH_ONLY, RunConfig, flatten_resolved, override, summarize_error
from clipcovid.evaluate.kinds.registry import get_kind, kind_names
from clipcovid.identity import digest
from clipcovid.runs import Run

EXPERIMENT = "clipcovid"
RUN_TAG = "clipcovid.run"
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development"
}  # the pages of trained models, not of language models
ARTIFACTS = ("figures", "predictions")  # folders of a run that MLflow gets; weights and states stay where they are
REVISION = "CLIPCOVID_REVISION"  # the git commit of a copy without `.git`, such as a submitted job's working directory
STORE_TIMEOUT_S = 4.0  # seconds in which a tracking store has to answer
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
Status = Literal["FINISHED", "FAILED", "KILLED"]
_failed_stores: set[str] = set()  # stores of which this process has said that they take no runs


def tracking_uri(out: Path) -> str:
    """The tracking URI: MLFLOW_TRACKING_URI, else an sqlite file in `out`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _local_store(out)
    if uri.startswith("sqlite:///"):  # a worker, who stands elsewhere, has to find it too
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def _local_store(out: Path) -> str:
    return f"sqlite:///{(out / 'mlflow.db').resolve()}"


def ui_command(out: Path) -> str:
    """What to type to see the runs."""
    return f"mlflow ui --backend-store-uri {tracking_uri(out)}"


def track(
    run: Run, config: RunConfig, *, tags: dict[str, str], parent: Run | None = None, status: Status = "FINISHED"
) -> bool:
    """Show a run that has ended in MLflow: params, metrics, figures, predictions, environment, revision; True if it worked.

    `parent`: the run beneath which it is shown, as a sweep's trials are. `status`: how it ended.

    The MLflow run is found again by the run's identity and name, and updated, or made. Whatever goes wrong with MLflow is
    a warning: `metrics.json` is the truth.
    """
    uri = tracking_uri(config.out)
    try:
        check_store(uri)
        _track(run, config, tags, parent, status)
    except Exception as error:
        _warn(uri, error)
        return False
    return True


class LiveTracker:
    """Shows a training's lines in MLflow as they come. Made by the driver, it works in any process that sees `out`.

    MLflow takes seconds to import and to open, so nothing is opened before the first line; but a store that can't be used
    is known at once, and not asked again.
    """

    def __init__(self, run: Run, config: RunConfig) -> None:
        self.run = replace(run, folder=run.folder.resolve())
        self.config = override(config, {"out": config.out.resolve()})
        self.store = tracking_uri(config.out)
        self.run_id = ""
        self.refused = False
        try:
            check_store(self.store)
        except OSError as error:
            self._give_up(error)

    def __call__(self, line: dict[str, float]) -> None:
        """Log a line at its epoch; nothing where MLflow refused something before."""
        if self.refused:
            return
        try:
            if not self.run_id:
                client, self.run_id, left = _open_run(self.run, self.config, self.store)
                if left == "RUNNING":
                    print(f"note: MLflow had {self.run.name} as RUNNING since its process was killed; it goes on.")
                client.update_run(self.run_id, status="RUNNING")
            _log_line(_client(self.store), self.run_id, line)
        except Exception as error:
            self._give_up(error)

    def end(self, status: Status) -> None:
        """Show the run as failed or killed.

        A process of its own does that: whoever stops this one allows it some seconds, in which MLflow is hardly imported.
        """
        if self.refused:
            return
        work = pickle.dumps(partial(_end, self.run, self.config, self.store, status))
        code = f"import sys; sys.path[:] = {sys.path!r}; import pickle; pickle.load(sys.stdin.buffer)()"
        subprocess.run([sys.executable, "-c", code], input=work, start_new_session=True, check=False)

    def _give_up(self, error: Exception) -> None:
        self.refused = True
        _warn(self.store, error)


@contextmanager
def live_tracker(config: RunConfig) -> Iterator[Callable[[Run], LiveTracker]]:
    """A context that yields a maker of `LiveTracker`s; a run that raises is shown as FAILED, a stopped one as KILLED."""
    started: list[LiveTracker] = []

    def watch(run: Run) -> LiveTracker:
        started.append(LiveTracker(run, config))
        return started[-1]

    try:
        yield watch
    except BaseException as error:
        for tracker in started:
            tracker.end("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise


def _end(run: Run, config: RunConfig, uri: str, status: Status) -> None:
    try:
        client, run_id, _ = _open_run(run, config, uri)
        client.set_terminated(run_id, status)
    except Exception as error:
        _warn(uri, error)


def check_store(uri: str) -> None:
    """Raise OSError, in seconds and without MLflow, where the tracking store at `uri` can't be used.

    MLflow itself would ask such a store again and again for minutes.
    """
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind == "sqlite":
        _check_sqlite(Path(parts.path.removeprefix("/")))
    elif kind in ("http", "https"):
        unverified = ssl._create_unverified_context() if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS") else None
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=STORE_TIMEOUT_S, context=unverified).close()
        except urllib.error.HTTPError:
            pass  # it answers, and what it wants MLflow knows
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # MLflow has settings for certificates
                raise OSError(str(error.reason)) from error
    elif kind in PORTS and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or PORTS[kind]), timeout=STORE_TIMEOUT_S).close()


def _check_sqlite(path: Path) -> None:
    """Raise OSError where the database can't be written, or the file to be."""
    if not path.parent.is_dir():
        raise OSError(f"there is no folder {path.parent}")
    try:
        with closing(sqlite3.connect(path, timeout=STORE_TIMEOUT_S)) as database:
            database.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        if "locked" not in str(error):  # by another job, for a moment
            raise OSError(f"{path}: {error}") from error


def _warn(uri: str, error: Exception) -> None:
    if uri not in _failed_stores:
        _failed_stores.add(uri)
        shown = re.sub(r"//[^/@]*@", "//", uri)  # without a password
        print(f"warning: MLflow at {shown} did not take the run ({summarize_error(error)[:200]}).", file=sys.stderr)


def _client(uri: str) -> Any:
    environment.set_defaults(environment.MLFLOW_DEFAULTS)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow", "urllib3"):  # after the import, which sets them anew; errors are raised
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def _open_run(run: Run, config: RunConfig, uri: str) -> tuple[Any, str, str]:
    """A client, and the id of the MLflow run of `run` with the status it was left in: found by its tag, or new ("")."""
    from mlflow.entities import Param

    config.out.mkdir(parents=True, exist_ok=True)
    client = _client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        local = (config.out / "mlartifacts").resolve().as_uri() if uri == _local_store(config.out) else None
        experiment = client.get_experiment(client.create_experiment(EXPERIMENT, local, tags=EXPERIMENT_TAGS))
    key = digest([run.identity, run.name])
    runs = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{key}'", max_results=1)
    if runs:
        return client, runs[0].info.run_id, runs[0].info.status
    began = int((run.folder / "config.json").stat().st_mtime * 1000)
    created = client.create_run(experiment.experiment_id, began, run_name=run.name, tags={RUN_TAG: key})
    params = [Param(name, str(value)[:6000]) for name, value in flatten_resolved(config).items()]
    client.log_batch(created.info.run_id, params=params)  # a parameter can't be written twice
    return client, created.info.run_id, ""


def _log_line(client: Any, run_id: str, line: dict[str, float]) -> None:
    from mlflow.entities import Metric

    now, step = int(time.time() * 1000), int(line["epoch"])
    values = {_chart_name(name): value for name, value in line.items() if name != "epoch"}
    client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])


def _chart_name(name: str) -> str:
    """The metric that a number of each epoch is logged as.

    MLflow draws charts in the order of their sections, which is what stands before the last slash: losses come first.
    """
    split, _, score = name.rpartition("/")
    if score == "loss":
        return f"epoch/loss/{split}"
    return _sanitize_metric_name(f"epoch/{name}" if split else f"speed/{name}")


def _track(run: Run, config: RunConfig, tags: dict[str, str], parent: Run | None, status: Status) -> None:
    client, run_id, _ = _open_run(run, config, tracking_uri(config.out))
    try:
        if parent is not None:
            tags = tags | {"mlflow.parentRunId": _open_run(parent, config, tracking_uri(config.out))[1]}
        _log(client, run_id, run, tags)
    finally:
        client.set_terminated(run_id, status)


def _log(client: Any, run_id: str, run: Run, tags: dict[str, str]) -> None:
    """Tags, metrics, what lines are missing, and the files that are small."""
    from mlflow.entities import Metric, RunTag

    facts = [RunTag(name, str(value)[:5000]) for name, value in (_run_tags(run) | tags).items()]
    client.log_batch(run_id, tags=facts)
    now = int(time.time() * 1000)
    metrics = [Metric(_sanitize_metric_name(name), value, now, 0) for name, value in _metrics(run).items()]
    for start in range(0, len(metrics), 500):  # a request takes 1,000
        client.log_batch(run_id, metrics=metrics[start : start + 500])
    logged_epochs = {point.step for point in client.get_metric_history(run_id, _chart_name("train/loss"))}
    for line in run.history():
        if int(line["epoch"]) not in logged_epochs:
            _log_line(client, run_id, line)
    client.log_text(run_id, "\n".join(packages()) + "\n", "environment.txt")
    for path in sorted(run.folder.iterdir()):
        if path.is_dir() and path.name in ARTIFACTS:
            client.log_artifacts(run_id, str(path), path.name)
        elif path.suffix in (".json", ".csv", ".md", ".html"):
            client.log_artifact(run_id, str(path))


def _metrics(run: Run) -> dict[str, float]:
    """`<split>/<metric>` of all splits scored so far, and the key metrics of folds and baselines beside them."""
    key_metrics = [name for kind in kind_names() for name in get_kind(kind).key_metrics]
    metrics: dict[str, float] = {}
    for split, body in run.metrics().items():
        metrics |= {f"{split}/{name}": value for name, value in body["metrics"].items()}
        for number, values in enumerate(body.get("folds", []), 1):
            metrics |= {f"{split}/fold-{number}/{name}": values[name] for name in key_metrics if name in values}
        for baseline, values in body["baselines"].items():
            shown = {name: values[name] for name in key_metrics if name in values}
            metrics |= {f"{split}/{baseline}/{name}": value for name, value in shown.items()}
    return metrics


def _run_tags(run: Run) -> dict[str, str]:
    """Tags: method, description with the alarms, user, source, revision and versions."""
    alarms = [f"{split}: {text}" for split, body in run.metrics().items() for text in body["alarms"]]
    return {
        "clipcovid.method": run.method,
        **({"clipcovid.job": run.job} if run.job else {}),
        "mlflow.note.content": "\n\n".join([RESEARCH_ONLY, *alarms]),
        "mlflow.source.name": sys.argv[0],
        **_user(),
        **revision(),
        **versions(),
    }


def _user() -> dict[str, str]:
    """Who runs this; empty for a user id without a name, as containers have."""
    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):
        return {}


def _sanitize_metric_name(name: str) -> str:
    """A metric's name in the characters that MLflow takes."""
    return re.sub(r"[^\w\-./ :]", "_", name)


def revision() -> dict[str, str]:
    """The git commit of this code and whether it was changed since; outside of a checkout what `REVISION` names, if set."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--", "."))
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.changed": str(changed).lower()}
    except (OSError, subprocess.CalledProcessError):
        declared = os.environ.get(REVISION, "")
        return {"mlflow.source.git.commit": declared} if declared else {}


def versions() -> dict[str, str]:
    """Versions of what results depend on most."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "ray", "open_clip_torch")}


def packages() -> list[str]:
    """Every installed package as `name==version`."""
    return sorted({f"{package.name}=={package.version}" for package in distributions()}, key=str.lower)
