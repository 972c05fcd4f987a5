import json
import pickle
import time

import pytest
from conftest import LOCAL
from mlflow import MlflowClient

from clipcovid import tracking
from clipcovid.config import ClipConfig
from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.tracking import TAG, Live, packages, revision, store, track


@pytest.fixture(scope="module")
def tracked(phantoms, tmp_path_factory):
    """A zero-shot run that was shown in MLflow twice."""
    out = tmp_path_factory.mktemp("outputs")
    clip = ClipConfig(model="tiny", pretrained="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        config = ZeroshotConfig(data=phantoms, clip=clip, out=out, compute=LOCAL)
        run = zeroshot(config, lambda text: None).run
        assert track(run, config, tags={"manifest": "abc"})
        assert track(run, config, tags={"manifest": "abc"})
        client = MlflowClient(store(out))
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
    assert TAG in found.data.tags


def test_figures_predictions_prompts_and_environment_are_artifacts(tracked):
    _, _, client, (found,) = tracked
    names = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert {"figures", "predictions", "metrics.json", "config.json", "prompts.json", "environment.txt"} <= names
    figures = {item.path for item in client.list_artifacts(found.info.run_id, "figures")}
    assert figures == {"figures/test_confusion.png", "figures/test_roc.png", "figures/test_classes.png"}


def test_an_unreachable_server_is_a_warning_and_soon(tracked, monkeypatch, capsys):
    run, config, _, _ = tracked
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    assert not track(run, config, tags={})
    assert time.monotonic() - began < 30
    error = capsys.readouterr().err
    assert error.startswith("warning: MLflow at http://127.0.0.1:9 did not take the run")
    assert error.count("\n") == 1


def test_lines_of_a_training_go_to_its_one_run_from_any_process(tracked):
    run, config, client, (found,) = tracked
    live = pickle.loads(pickle.dumps(Live(run, config)))
    for epoch in (1, 2):
        live({"epoch": epoch, "val/loss": 1 / epoch})
    assert live.run_id == found.info.run_id
    history = client.get_metric_history(found.info.run_id, "epoch/val/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]


def test_lines_that_no_server_takes_are_one_warning(tracked, monkeypatch, capsys):
    run, config, _, _ = tracked
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    live = Live(run, config)
    for epoch in (1, 2, 3):
        live({"epoch": epoch})
    assert capsys.readouterr().err.count("did not take the run") == 1


def test_names_that_mlflow_would_refuse_are_made_fit():
    assert tracking._allowed("f1/Größe (mm) é?") == "f1/Größe _mm_ é_"


def test_the_environment_and_the_revision_are_told():
    assert any(line.startswith("torch==") for line in packages())
    assert len(revision()["mlflow.source.git.commit"]) == 40
