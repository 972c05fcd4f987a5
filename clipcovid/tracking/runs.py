"""Runs in MLflow: shown as they end, and trainings while they go on."""

import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from clipcovid.config import RunConfig, flatten_resolved, override
from clipcovid.evaluate.kinds.registry import get_kind, kind_names
from clipcovid.identity import digest
from clipcovid.runs import ARTIFACTS_FOLDER, Run, read_run_metadata
from clipcovid.tracking import provenance
from clipcovid.tracking.datasets import TrackedDataset
from clipcovid.tracking.store import EXPERIMENT, check_store, local_store, make_client, tracking_uri, warn_unavailable
from clipcovid.tracking.summary import summarize_run

RUN_TAG = "clipcovid.run"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"  # Model training, not GenAI; see `store.ui_page`
NOTE_TAG, PARENT_TAG = "mlflow.note.content", "mlflow.parentRunId"
ARTIFACTS = ("figures", "predictions")  # folders of a run that MLflow gets; weights and states stay where they are
Status = Literal["FINISHED", "FAILED", "KILLED"]


def track(
    run: Run,
    config: RunConfig,
    *,
    tags: Mapping[str, str],
    data: Sequence[TrackedDataset] = (),
    parent: Run | None = None,
    status: Status = "FINISHED",
) -> bool:
    """Show a run that has ended in MLflow; True if it worked.

    That is its params, metrics, data sets, figures, predictions, environment, revision, and a summary in words. `parent`:
    the run beneath which it is shown, as a sweep's trials are. `status`: how it ended.

    The MLflow run is found again by the run's identity and name, and updated, or made. Whatever goes wrong with MLflow is
    a warning: `metrics.json` is the truth.
    """
    uri = tracking_uri(config.out)
    try:
        check_store(uri)
        _track(run, config, tags, data, parent, status)
    except Exception as error:
        warn_unavailable(uri, error)
        return False
    return True


class LiveTracker:
    """Shows a training's lines in MLflow as they come. Made by the driver, it works in any process that sees `out`.

    MLflow takes seconds to import and to open, so nothing is opened before the first line; but a store that can't be used
    is known at once, and not asked again.
    """

    def __init__(self, run: Run, config: RunConfig, data: Sequence[TrackedDataset] = ()) -> None:
        self.data = tuple(data)
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
                _log_data(client, self.run_id, self.data)
            _log_line(make_client(self.store), self.run_id, line)
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
        warn_unavailable(self.store, error)


@contextmanager
def live_tracker(config: RunConfig, data: Sequence[TrackedDataset] = ()) -> Iterator[Callable[[Run], LiveTracker]]:
    """A context that yields a maker of `LiveTracker`s; a run that raises is shown as FAILED, a stopped one as KILLED."""
    started: list[LiveTracker] = []

    def watch(run: Run) -> LiveTracker:
        started.append(LiveTracker(run, config, data))
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
        warn_unavailable(uri, error)


def _open_run(run: Run, config: RunConfig, uri: str) -> tuple[Any, str, str]:
    """A client, and the id of the MLflow run of `run` with the status it was left in: found by its tag, or new ("")."""
    from mlflow.entities import Param

    config.out.mkdir(parents=True, exist_ok=True)
    client = make_client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        local = (config.out / ARTIFACTS_FOLDER).resolve().as_uri() if uri == local_store(config.out) else None
        experiment = client.get_experiment(client.create_experiment(EXPERIMENT, local, tags={KIND_TAG: KIND}))
    elif KIND_TAG not in experiment.tags:  # made by an older version
        client.set_experiment_tag(experiment.experiment_id, KIND_TAG, KIND)
    if found := find_run(client, run):
        return client, found.info.run_id, found.info.status
    made = run.folder / "config.json"
    began = int((made if made.exists() else run.folder).stat().st_mtime * 1000)
    tags = {RUN_TAG: _run_key(run)}
    created = client.create_run(experiment.experiment_id, began, run_name=run.name, tags=tags)
    params = [Param(name, str(value)[:6000]) for name, value in flatten_resolved(config).items()]
    client.log_batch(created.info.run_id, params=params)  # a parameter can't be written twice
    return client, created.info.run_id, ""


def find_run(client: Any, run: Run) -> Any:
    """MLflow's run of `run`, known by its identity and name; None where it was never shown."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    found = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{_run_key(run)}'", max_results=1)
    return found[0] if found else None


def nest_runs(parent: Run, out: Path, folders: Iterable[Path]) -> list[Path]:
    """Show runs beneath another's, as a study's are, in the store of `out`; those of the folders that MLflow does not know.

    All of them have been shown before, by their own jobs. Whatever goes wrong with MLflow is a warning.
    """
    uri, missing = tracking_uri(out), list(folders)
    try:
        check_store(uri)
        client = make_client(uri)
        if (above := find_run(client, parent)) is None:
            return missing
        for folder in tuple(missing):
            stored = read_run_metadata(folder)
            run = Run(folder=folder, method=stored.get("method", ""), identity=stored.get("identity", {}))
            if found := find_run(client, run):
                client.set_tag(found.info.run_id, PARENT_TAG, above.info.run_id)
                missing.remove(folder)
    except Exception as error:
        warn_unavailable(uri, error)
    return missing


def _run_key(run: Run) -> str:
    return digest([run.identity, run.name])


def _log_data(client: Any, run_id: str, data: Sequence[TrackedDataset]) -> None:
    """Name the run's data sets; one that it has already stays as it is."""
    if data:
        client.log_inputs(run_id, [used.to_input() for used in data])


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


def _track(
    run: Run,
    config: RunConfig,
    tags: Mapping[str, str],
    data: Sequence[TrackedDataset],
    parent: Run | None,
    status: Status,
) -> None:
    client, run_id, _ = _open_run(run, config, tracking_uri(config.out))
    tags = {**_run_tags(run), NOTE_TAG: summarize_run(run, data), **tags}
    try:
        if parent is not None:
            tags[PARENT_TAG] = _open_run(parent, config, tracking_uri(config.out))[1]
        _log_data(client, run_id, data)
        _log(client, run_id, run, tags)
    finally:
        client.set_terminated(run_id, status)


def _log(client: Any, run_id: str, run: Run, tags: Mapping[str, str]) -> None:
    """Tags, metrics, what lines are missing, and the files that are small."""
    from mlflow.entities import Metric, RunTag

    facts = [RunTag(name, str(value)[:5000]) for name, value in tags.items()]
    client.log_batch(run_id, tags=facts)
    now = int(time.time() * 1000)
    metrics = [Metric(_sanitize_metric_name(name), value, now, 0) for name, value in _metrics(run).items()]
    log_metrics(client, run_id, metrics)
    logged_epochs = {point.step for point in client.get_metric_history(run_id, _chart_name("train/loss"))}
    for line in run.history():
        if int(line["epoch"]) not in logged_epochs:
            _log_line(client, run_id, line)
    client.log_text(run_id, "\n".join(provenance.packages()) + "\n", "environment.txt")
    for path in sorted(run.folder.iterdir()):
        if path.is_dir() and path.name in ARTIFACTS:
            client.log_artifacts(run_id, str(path), path.name)
        elif path.suffix in (".json", ".csv", ".md", ".html"):
            client.log_artifact(run_id, str(path))


def log_metrics(client: Any, run_id: str, metrics: Sequence[Any]) -> None:
    """Log MLflow's metrics of a run, however many."""
    for start in range(0, len(metrics), 500):  # a request takes 1,000
        client.log_batch(run_id, metrics=metrics[start : start + 500])


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
    """Tags: method, job, user, source, revision and versions."""
    return {
        "clipcovid.method": run.method,
        **({"clipcovid.job": run.job} if run.job else {}),
        "mlflow.source.name": sys.argv[0],
        **provenance.study(),
        **provenance.user(),
        **provenance.revision(),
        **provenance.versions(),
    }


def _sanitize_metric_name(name: str) -> str:
    """A metric's name in the characters that MLflow takes."""
    return re.sub(r"[^\w\-./ :]", "_", name)
