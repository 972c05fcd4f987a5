import json
import os
import pickle
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import HERE
from mlflow import MlflowClient

from clipcovid.config import ClipConfig, UserError
from clipcovid.data.manifest import read_manifest
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.number_format import format_with_interval
from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.io.files import write_json
from clipcovid.runs import Run
from clipcovid.study.file import StudySettings
from clipcovid.study.outcomes import Outcome, Outcomes
from clipcovid.study.tracking import show_study
from clipcovid.tracking import provenance, store
from clipcovid.tracking.datasets import describe_data
from clipcovid.tracking.provenance import REVISION_VARIABLE, packages, revision
from clipcovid.tracking.runs import RUN_TAG, LiveTracker, _sanitize_metric_name, live_tracker, nest_runs, track
from clipcovid.tracking.store import check_store, tracking_uri, ui_page
from clipcovid.tracking.summary import summarize_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """No store has been complained of."""
    monkeypatch.setattr(store, "_failed_stores", set())


@pytest.fixture(scope="module")
def tracked(phantoms, tmp_path_factory):
    """A zero-shot run that was shown in MLflow twice."""
    out = tmp_path_factory.mktemp("outputs")
    clip = ClipConfig(model="tiny", pretrained="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        config = ZeroshotConfig(data=phantoms, clip=clip, out=out, compute=HERE)
        run = zeroshot(config, lambda text: None).run
        data = describe_data(read_manifest(phantoms), phantoms, ["train", "test"])
        assert track(run, config, tags={"manifest": "abc"}, data=data)
        assert track(run, config, tags={"manifest": "abc"}, data=data)
        client = MlflowClient(tracking_uri(out))
        experiment = client.get_experiment_by_name("clipcovid")
        yield run, config, client, client.search_runs([experiment.experiment_id])


def test_a_run_shown_twice_is_one_run(tracked):
    run, _, _, found = tracked
    assert len(found) == 1
    assert found[0].info.status == "FINISHED"
    assert found[0].info.run_name == run.name


def test_metrics_and_params_are_the_run_folders(tracked):
    run, _, _, (found,) = tracked
    metrics = json.loads((run.folder / "metrics.json").read_text())["test"]["metrics"]
    for name, value in metrics.items():
        assert found.data.metrics[f"test/{name}"] == pytest.approx(value)
    assert "test/majority/accuracy" in found.data.metrics
    assert found.data.params["clip.model"] == "tiny"
    assert found.data.tags["manifest"] == "abc"
    assert found.data.tags["torch"]
    assert RUN_TAG in found.data.tags


def test_the_data_are_logged_by_split_with_digest_schema_and_counts(tracked, phantoms):
    from mlflow.types import Schema

    _, _, client, (found,) = tracked
    data, logged = read_manifest(phantoms), client.get_run(found.info.run_id).inputs.dataset_inputs
    inputs = {tag.value: used.dataset for used in logged for tag in used.tags}
    assert set(inputs) == {"train", "test"}
    assert {dataset.digest for dataset in inputs.values()} == {data.content_hash}
    assert {dataset.name for dataset in inputs.values()} == {f"{data.dataset} train", f"{data.dataset} test"}
    columns = Schema.from_json(json.dumps(json.loads(inputs["test"].schema)["mlflow_colspec"]))
    assert columns.input_names() == list(data.table)
    assert {column.name for column in columns if column.type.name == "integer"} == {"width", "height"}
    rows = data.rows("test")
    assert json.loads(inputs["test"].profile) == {
        "num_rows": len(rows),
        "num_patients": rows["patient_id"].nunique(),
        "classes": rows["label"].value_counts().to_dict(),
    }
    assert json.loads(inputs["test"].source)["uri"] == str(phantoms.resolve())


def test_the_page_of_the_runs_is_told_for_a_database(tracked, tmp_path, monkeypatch):
    _, config, client, _ = tracked
    number = client.get_experiment_by_name("clipcovid").experiment_id
    assert ui_page(config.out) == f"http://127.0.0.1:5000/#/experiments/{number}?workflowType=machine_learning"
    assert ui_page(tmp_path) == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert ui_page(config.out) == ""


def test_a_run_is_described_in_words(tracked, phantoms):
    run, _, _, (found,) = tracked
    text = found.data.tags["mlflow.note.content"]
    scores = run.metrics()["test"]
    assert text.startswith("Research use only, not for diagnosis.")
    assert (
        f"**{run.name}** (zeroshot): zero-shot classification. Data: *{read_manifest(phantoms).dataset} train*" in text
    )
    low, high = scores["intervals"]["intervals"]["macro_f1"]
    value = format_with_interval(scores["metrics"]["macro_f1"], [low, high])
    assert f"On test, {scores['n']} images: macro F1 {value}" in text
    assert "the baseline prior has macro F1 " in text or "the baseline majority has macro F1 " in text
    for alarm in scores["alarms"]:
        assert f"**Alarm** (test): {alarm}" in text


def test_a_trials_score_and_a_comparison_are_described_too(tmp_path):
    write_json(tmp_path / "metrics.json", {"val": {"metrics": {"macro_f1": 0.5}, "baselines": {}, "alarms": []}})
    assert "On val: macro_f1 .500." in summarize_run(Run(folder=tmp_path, method="prompts trial", identity={}))
    (tmp_path / "metrics.json").unlink()
    methods = {name: score_of(quality) for name, quality in {"good": 1.0, "poor": 0.2}.items()}
    write_json(tmp_path / "comparison.json", {"split": "test", "best": "good", "methods": methods})
    text = summarize_run(Run(folder=tmp_path, method="compare", identity={}))
    assert "Best of 2 methods on the same images (test): **good**." in text
    assert re.search(r"\| good \| 40 \| 1\.000 \(", text)


def score_of(right):
    """The entry of metrics.json of 40 predictions of two classes, of which so many are right."""
    labels = ["a", "b"] * 20
    chance = np.where(np.arange(40) < right * 40, 0.9, 0.1)
    first = np.where(np.array(labels) == "a", chance, 1 - chance)
    table = pd.DataFrame({"image_id": map(str, range(40)), "label": labels, "prob_a": first, "prob_b": 1 - first})
    return get_kind("classification").score(table, ["a", "b"]).to_json()


def test_an_experiment_of_an_older_version_opens_as_model_training_too(tracked, tmp_path):
    run, config, *_ = tracked
    config = replace(config, out=tmp_path)
    client = MlflowClient(tracking_uri(tmp_path))
    client.create_experiment("clipcovid", (tmp_path / "artifacts").as_uri())
    assert track(run, config, tags={})
    assert client.get_experiment_by_name("clipcovid").tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_study_has_the_runs_of_its_done_steps_beneath_it(tracked, tmp_path):
    run, config, client, (found,) = tracked
    settings = StudySettings(name="study", out=config.out)
    study = SimpleNamespace(settings=settings, folder=tmp_path / "study")
    write_json(study.folder / "plan.json", {})
    steps = [SimpleNamespace(name=name, folder=run.folder) for name in ("done", "failed")]
    outcomes = Outcomes(folder=study.folder, steps={"done": Outcome(state="done"), "failed": Outcome(state="failed")})
    show_study(study, [*steps, SimpleNamespace(name="done", folder=tmp_path / "no run")], outcomes)
    above = client.get_run(client.get_run(found.info.run_id).data.tags["mlflow.parentRunId"])
    assert (above.info.run_name, above.info.status) == ("study", "FAILED")
    assert above.data.params["seeds"] == ""
    client.delete_tag(found.info.run_id, "mlflow.parentRunId")
    outcomes.steps = {"failed": Outcome(state="done")}
    show_study(study, steps[:1], outcomes)
    assert "mlflow.parentRunId" not in client.get_run(found.info.run_id).data.tags
    assert client.get_run(above.info.run_id).info.status == "FINISHED"
    client.delete_run(above.info.run_id)


def test_runs_that_mlflow_does_not_know_are_told(tracked, tmp_path):
    run, config, *_ = tracked
    unknown = Run(folder=tmp_path, method="study", identity={})
    assert nest_runs(unknown, config.out, [run.folder]) == [run.folder]
    assert nest_runs(run, config.out, [tmp_path / "unknown"]) == [tmp_path / "unknown"]


def test_figures_predictions_prompts_and_environment_are_artifacts(tracked):
    _, _, client, (found,) = tracked
    names = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert {"figures", "predictions", "metrics.json", "config.json", "prompts.json", "environment.txt"} <= names
    figures = {item.path for item in client.list_artifacts(found.info.run_id, "figures")}
    assert figures == {"figures/test_confusion.png", "figures/test_roc.png", "figures/test_classes.png"}


def test_weights_and_states_are_no_artifacts(tracked):
    run, config, client, (found,) = tracked
    for place in ("checkpoint", "state", "folds/fold-1/checkpoint", "trials/0/checkpoint", "figures"):
        (run.folder / place).mkdir(parents=True, exist_ok=True)
        (run.folder / place / "model.safetensors").write_bytes(b"weights")
    (run.folder / "figures" / "model.safetensors").unlink()
    assert track(run, config, tags={})
    names = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert names.isdisjoint({"checkpoint", "state", "folds", "trials"})


@pytest.fixture
def silent():
    """The address of a server that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["nobody", "silent", "no folder", "not writable", "no database", "postgres"])
def test_a_store_that_takes_nothing_is_one_warning_and_soon(tracked, kind, silent, tmp_path, monkeypatch, capfd):
    run, config, _, _ = tracked
    (tmp_path / "file").write_text("this is no database, but text that is long enough to be read as one" * 9)
    places = {
        "nobody": "http://user:secret@127.0.0.1:9",
        "silent": silent,
        "no folder": f"sqlite:///{tmp_path}/none/mlflow.db",
        "not writable": "sqlite:////proc/mlflow.db",
        "no database": f"sqlite:///{tmp_path}/file",
        "postgres": "postgresql://user:secret@127.0.0.1:9/mlflow",
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", places[kind])
    monkeypatch.setattr(store, "STORE_TIMEOUT_S", 1)
    began = time.monotonic()
    shown = LiveTracker(run, config)
    for epoch in (1, 2, 3):
        shown({"epoch": epoch, "train/loss": 1.0})
    shown.end("FAILED")
    assert time.monotonic() - began < 2
    assert not track(run, config, tags={})
    error = capfd.readouterr().err
    assert error.startswith("warning: MLflow at ")
    assert "did not take the run" in error
    assert error.count("\n") == 1
    assert "secret" not in error


def test_a_store_in_use_is_none_that_takes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "STORE_TIMEOUT_S", 0.1)
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN IMMEDIATE")
        check_store(f"sqlite:///{path}")


def test_lines_of_a_training_go_to_its_one_run_from_any_process(tracked):
    run, config, client, (found,) = tracked
    shown = pickle.loads(pickle.dumps(LiveTracker(run, config)))
    for epoch in (1, 2):
        shown({"epoch": epoch, "val/loss": 1 / epoch})
    assert shown.run_id == found.info.run_id
    history = client.get_metric_history(found.info.run_id, "epoch/loss/val")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]


def test_the_first_charts_are_of_losses(tracked):
    run, config, client, (found,) = tracked
    line = {"epoch": 1, "lr": 0.1, "seconds": 1.0, "images_per_s": 2.0}
    line |= {"train/loss": 1.0, "train/accuracy": 0.5, "val/accuracy": 0.5, "val/loss": 1.0}
    LiveTracker(run, config)(line)
    names = client.get_run(found.info.run_id).data.metrics
    charts = sorted(names, key=lambda name: (name.rpartition("/")[0], name))  # as MLflow's pages sort them
    assert charts[:2] == ["epoch/loss/train", "epoch/loss/val"]
    assert not any(name.endswith("/epoch") for name in names)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (ValueError("a bug"), "FAILED"),
        (UserError("The loss is not finite"), "FAILED"),
    ],
)
def test_how_a_training_ended_is_shown(tracked, error, status, monkeypatch):
    run, config, _, _ = tracked
    ended = []
    monkeypatch.setattr(LiveTracker, "end", lambda self, how: ended.append((self.run.name, how)))

    def train():
        with live_tracker(config) as watch:
            watch(run)
            raise error

    with pytest.raises(type(error)):
        train()
    assert ended == [(run.name, status)]


def test_a_run_fails_and_is_finished_later(tracked):
    run, config, client, (found,) = tracked
    shown = LiveTracker(run, config)
    for status in ("RUNNING", "FAILED", "FINISHED"):
        if status == "RUNNING":
            shown({"epoch": 1, "train/loss": 1.0})
        elif status == "FAILED":
            shown.end(status)
        else:
            assert track(run, config, tags={})
        assert client.get_run(found.info.run_id).info.status == status


def test_a_run_that_was_left_running_is_said_to_go_on(tracked, capsys):
    run, config, client, (found,) = tracked
    LiveTracker(run, config)({"epoch": 1, "train/loss": 1.0})  # and is killed
    capsys.readouterr()
    again = LiveTracker(run, config)
    for epoch in (2, 3):
        again({"epoch": epoch, "train/loss": 1.0})
    assert capsys.readouterr().out.count(f"note: MLflow had {run.name} as RUNNING since its process was killed") == 1
    assert track(run, config, tags={}, status="FAILED")
    assert client.get_run(found.info.run_id).info.status == "FAILED"


@pytest.mark.faults
def test_a_stopped_job_is_killed_and_says_how_to_go_on(phantoms, tmp_path):
    """The status is written by another process, should the one that is stopped get no time for it."""
    command = ["jobs/cnn.py", "--data", phantoms, "--out", tmp_path, "--name", "run", "--weights", "none"]
    command += ["--image-size", 32, "--optim.epochs", 500, "--compute.workers", 0]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    for line in process.stdout:
        if line.startswith("epoch 3/500 · train"):  # the first has opened MLflow
            break
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 143
    assert error == "Stopped: run the same command again to go on where it was.\n"
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("clipcovid").experiment_id])
    assert found.info.status == "KILLED"


@pytest.fixture
def nameless():
    """What becomes a user that no file knows, without a home, and a folder of its own."""
    become = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", sys.executable]
    if not shutil.which("setpriv") or subprocess.run([*become, "-c", "import mlflow.version"], cwd="/").returncode:
        pytest.skip("no other user can run this Python")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 54321, 54321)
        yield become, Path(folder)


def test_a_user_without_a_name_is_no_obstacle(tracked, nameless):
    """As in containers."""
    run, config, _, _ = tracked
    become, folder = nameless
    shutil.copytree(run.folder, folder / run.name)
    (folder / run.name).chmod(0o777)
    run = replace(run, folder=folder / run.name)
    (folder / "task").write_bytes(pickle.dumps((run, replace(config, out=folder))))
    code = (
        "import pickle; from pathlib import Path; from clipcovid import environment\n"
        "environment.set_home()  # as every job does\n"
        "from clipcovid.tracking.runs import track\n"
        f"run, config = pickle.loads(Path({str(folder / 'task')!r}).read_bytes())\n"
        "assert track(run, config, tags={})"
    )
    names = {"HOME", "USER", "LOGNAME", "LNAME", "USERNAME"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([*become, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("clipcovid").experiment_id])
    assert found.info.status == "FINISHED"
    assert "mlflow.user" not in found.data.tags


def test_names_that_mlflow_would_refuse_are_made_fit():
    assert _sanitize_metric_name("f1/Größe (mm) é?") == "f1/Größe _mm_ é_"


def test_the_environment_and_the_revision_are_told():
    assert any(line.startswith("torch==") for line in packages())
    assert len(revision()["mlflow.source.git.commit"]) == 40


def test_a_copy_without_a_repository_has_the_revision_that_came_with_it(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "tracking" / "provenance.py"))
    assert revision() == {}
    monkeypatch.setenv(REVISION_VARIABLE, "1a2b3c4d")
    assert revision() == {"mlflow.source.git.commit": "1a2b3c4d"}
