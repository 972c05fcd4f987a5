"""Searching for hyperparameters."""

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import LOCAL, interruptible, run_and_list_imports

from clipcovid.cli import from_cli
from clipcovid.config import ClipConfig, ComputeConfig, OptimConfig, UserError, flatten_resolved, override
from clipcovid.methods.caption.config import DualEncoderConfig
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.coop.config import CoopConfig
from clipcovid.methods.finetune.config import FinetuneConfig
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.methods.registry import METHODS
from clipcovid.ray_backend.tune import SearchOptions, Trial, hyperparameter_importance, search
from clipcovid.search_space import Choice, IntUniform, LogUniform, Uniform, read_space
from clipcovid.workflows.sweep import SweepConfig, sweep, training_command, validate_metric, validate_space

TINY = ClipConfig(model="tiny", pretrained="none")


def probe(data, out, **settings):
    optim = OptimConfig(epochs=20, batch_size=64, lr=0.01, weight_decay=0, clip_norm=0, keep="last")
    return ProbeConfig(data=data, out=out, clip=TINY, optim=optim, compute=LOCAL, **settings)


def test_every_task_has_a_space_whose_keys_and_values_its_config_takes():
    for method in METHODS.values():
        assert validate_space(SweepConfig(task=method.config(data="unused"))) is method.space


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "optim.lrate: {log: [1.0e-5, 0.1]}",
            "'optim.lrate', which is no setting of cnn to search; near it are optim.lr",
        ),
        ("data: {choice: [a, b]}", "'data', which is no setting"),
        ("optim.lr: {log: [0, 1]}", "must be"),
        ("optim.lr: {uniform: [1, 0]}", "must be"),
        ("optim.lr: 3", "must be"),
        ("optim.epochs: {choice: [-1, 5]}", "--optim.epochs -1"),
        ("- a", "mapping"),
    ],
)
def test_a_space_that_can_not_be_is_one_sentence(tmp_path, text, match):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UserError, match=match) as said:
        validate_space(SweepConfig(task=CnnConfig(data="unused"), space=tmp_path / "space.yaml"))
    assert "\n" not in str(said.value)


def test_trials_that_read_embeddings_all_read_the_same(tmp_path):
    (tmp_path / "space.yaml").write_text("clip.pretrained: {choice: [openai, laion2b_s34b_b79k]}")
    with pytest.raises(UserError, match="all trials read the same embeddings"):
        validate_space(SweepConfig(task=ProbeConfig(data="unused"), space=tmp_path / "space.yaml"))
    with pytest.raises(UserError, match="are a curve"):
        SweepConfig(task=ProbeConfig(data="unused", shots=("1", "2")))
    with pytest.raises(UserError, match="other folds"):
        SweepConfig(task=CnnConfig(data="unused", fold="1/5"), confirm_seeds=2)


def test_a_score_that_a_task_does_not_report_is_named():
    assert validate_metric(SweepConfig(task=CnnConfig(data="unused"))) == ("macro_f1", "max")
    assert validate_metric(SweepConfig(task=CnnConfig(data="unused"), metric="loss")) == ("loss", "min")
    with pytest.raises(UserError, match="--metric iou is not reported by cnn: use one of macro_f1, accuracy") as said:
        validate_metric(SweepConfig(task=CnnConfig(data="unused"), metric="iou"))
    assert "\n" not in str(said.value)
    for method in METHODS.values():
        task = method.load()
        assert task.validation_metrics[task.monitor[0]] == task.monitor[1]


def test_a_space_of_ones_own(tmp_path):
    (tmp_path / "space.yaml").write_text(
        "a: {log: [1.0e-3, 1]}\nb: {uniform: [-1, 1]}\nc: {int: [1, 4]}\nd: {choice: [x, 2]}"
    )
    assert read_space(tmp_path / "space.yaml") == {
        "a": LogUniform(1e-3, 1),
        "b": Uniform(-1, 1),
        "c": IntUniform(1, 4),
        "d": Choice(("x", 2)),
    }


@pytest.mark.parametrize(
    ("task", "values"),
    [
        (
            CnnConfig(data=Path("d")),
            {"optim.lr": 0.003, "augment.flip": True, "class_weights": "balanced", "tta": True},
        ),
        (FinetuneConfig(data=Path("d"), clip=TINY), {"method": "lora", "hf": False, "lora.targets": ("attn", "c_fc")}),
        (
            DualEncoderConfig(data=Path("a b"), weights="none", caption_template="{plane}, a scan"),
            {"loss": "soft", "optim.batch_size": 128},
        ),
        (CoopConfig(data=Path("d"), clip=TINY, init="a chest X-ray of"), {"optim.lr": 0.01}),
    ],
)
def test_the_command_trains_what_was_best(task, values):
    words = shlex.split(training_command(task, values))
    assert words[:2] == ["clipcovid", task.task.replace("_", "-")]
    assert flatten_resolved(from_cli(type(task), "", words[2:])) == flatten_resolved(override(task, values))


def try_all(tmp_path, **settings):
    """A sweep of one number, whose trials fail at the first try of some of them, and always of others."""

    def stumbling(params, report, *, path):
        """A trial that fails at the first try of some, and always of others, which raise, or die as if out of memory."""
        x = params["values"]["x"]
        if x > 0.85:
            os.kill(os.getpid(), signal.SIGKILL)
        if x > 0.7:
            raise ValueError("too large")
        marker = path / params["name"]
        if x > 0.5 and not marker.exists():
            marker.write_text("tried")
            raise OSError("only this once")
        for epoch in range(1, 5):
            report({"score": 1 - abs(x - 0.4), "epoch": float(epoch)}, path)
        return {"score": 1 - abs(x - 0.4), "epoch": 5.0}

    given = {
        "count": 10,
        "mode": "max",
        "algorithm": "optuna",
        "stop_early": False,
        "epochs": 4,
        "max_concurrent": 0,
        "workers": 0,
        "seed": 0,
    }
    compute = ComputeConfig(address="local")
    options = SearchOptions(folder=tmp_path / "sweep", compute=compute, **(given | settings))
    return search(stumbling, {"x": Uniform(0, 1)}, options, {"path": tmp_path})


@pytest.mark.faults
def test_a_trial_that_fails_is_tried_again_then_marked_and_the_sweep_ends(cluster, tmp_path):
    trials = try_all(tmp_path)
    assert len(trials) == 10
    for trial in trials:
        x = trial.params["values"]["x"]
        assert trial.state == ("failed" if x > 0.7 else "finished"), trial
        assert ("too large" in trial.error) == (0.7 < x <= 0.85)
        assert bool(trial.error) == (x > 0.7)
    assert max(trial.params["values"]["x"] for trial in trials) > 0.85
    assert {trial.state for trial in trials} == {"finished", "failed"}
    again = try_all(tmp_path)  # finished before: nothing is tried again
    assert {trial.params["name"]: trial.params["values"] for trial in again} == {
        trial.params["name"]: trial.params["values"] for trial in trials
    }
    assert {trial.params["name"]: trial.state for trial in again} == {
        trial.params["name"]: trial.state for trial in trials
    }


@pytest.fixture(scope="module")
def finished(cluster, phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("hparams")
    task = probe(Path("data"), Path("out"), name="sweep")
    config = SweepConfig(task=task, trials=5, confirm_seeds=2, metric="accuracy")
    with pytest.MonkeyPatch.context() as patch:  # paths mean in trials what they mean here
        patch.chdir(out)
        Path("data").symlink_to(phantoms)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            sweep(config)
    lines = [line.split(" · ") for line in said.getvalue().splitlines() if line.startswith("trial ")]
    ends = [line for line in lines if line[1].startswith("score")]
    assert [end[0] for end in ends] == [f"trial {n} of 5" for n in range(1, 6)]
    assert all(end[2].startswith("best") for end in ends)
    return replace(config, task=probe(out / "data", out / "out", name="sweep")), out / "out" / "sweep"


def test_a_sweep_leaves_the_best_with_its_checkpoint_and_all_trials(finished, capsys):
    config, folder = finished
    trials = json.loads((folder / "trials.json").read_text())
    best = json.loads((folder / "best.json").read_text())
    assert len(trials) == 5
    known = [trial["score"] for trial in trials if trial["state"] == "finished"]
    assert best["score"] == max(known)
    assert best["metric"] == "accuracy"
    history = json.loads((folder / "trials" / trials[0]["name"] / "history.json").read_text())["epochs"]
    assert {f"val/{name}" for name in METHODS["probe"].load().validation_metrics} <= set(history[0])
    kept = sorted(path.parent.name for path in (folder / "trials").glob("*/checkpoint"))
    assert kept == [trial["name"] for trial in trials if trial["values"] == best["values"]]
    assert {path.stem for path in (folder / "figures").glob("*.png")} >= {"history", "parallel"}
    assert len(list((folder / "seeds").glob("*/metrics.json"))) == 2
    sweep(config)
    assert "finished already" in capsys.readouterr().out


def test_mlflow_has_a_child_for_each_trial_and_none_has_failed(finished):
    from mlflow import MlflowClient

    config, _ = finished
    client = MlflowClient(f"sqlite:///{config.task.out.resolve()}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("clipcovid").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    states = [run.data.tags["clipcovid.trial"] for run in runs if run not in parents]
    assert len(states) == 5 + 2
    assert states.count("seed") == 2
    assert set(states) <= {"finished", "pruned", "seed"}


def test_resuming_what_was_never_begun_is_refused(phantoms, tmp_path):
    with pytest.raises(UserError, match="--resume"):
        sweep(SweepConfig(task=probe(phantoms, tmp_path, name="none"), resume=True))


def test_importance_tells_what_matters_from_what_does_not():
    space = {"x": Uniform(0, 1), "n": IntUniform(1, 9), "kind": Choice(("a", "b")), "lr": LogUniform(1e-4, 1)}
    rng = np.random.default_rng(0)
    trials = [
        Trial(
            params={
                "values": {
                    "x": rng.random(),
                    "n": int(rng.integers(1, 10)),
                    "kind": str(rng.choice(["a", "b"])),
                    "lr": 10 ** rng.uniform(-4, 0),
                }
            },
            metrics={},
            state="finished",
        )
        for _ in range(40)
    ]
    for trial in trials:
        trial.metrics["score"] = trial.params["values"]["x"] + 0.3 * (trial.params["values"]["kind"] == "a")
    shares = hyperparameter_importance(trials, space, seed=0)
    assert list(shares)[:2] == ["x", "kind"]
    assert shares["x"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)
    assert hyperparameter_importance(trials[:3], space, seed=0) == {}


@pytest.mark.parametrize("script", ["tune/hparams.py", "tune/prompts.py"])
def test_the_scripts_start_without_torch_and_explain_themselves(script):
    done, imported = run_and_list_imports(script, "--help")
    assert done.returncode == 0
    assert "torch" not in imported
    assert "--compute" in done.stdout or "--trials" in done.stdout


def test_a_sweeps_flags_may_stand_before_or_behind_the_task():
    task, own = ["cnn", "--data", "d", "--optim.epochs", "3"], ["--trials", "8", "--metric", "loss"]
    behind, before = (from_cli(SweepConfig, "", words) for words in (task + own, own + task))
    assert (
        behind
        == before
        == SweepConfig(task=CnnConfig(data=Path("d"), optim=OptimConfig(epochs=3)), trials=8, metric="loss")
    )


def test_an_unknown_task_is_named(tmp_path):
    done = subprocess.run([sys.executable, "tune/hparams.py", "resnet"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "resnet" in done.stderr


def test_a_population_is_searched_only_for_what_may_change_while_training(tmp_path):
    config = SweepConfig(task=CnnConfig(data="unused"), search="pbt")
    assert "optim.lr" in validate_space(config)
    assert "optim.batch_size" not in validate_space(config)
    (tmp_path / "space.yaml").write_text("optim.batch_size: {choice: [16, 32]}")
    with pytest.raises(UserError, match="--search pbt changes settings during"):
        validate_space(SweepConfig(task=CnnConfig(data="unused"), search="pbt", space=tmp_path / "space.yaml"))


@pytest.mark.faults
@pytest.mark.parametrize("algorithm", ["bohb", "random"])
def test_trials_end_whatever_stops_them(cluster, tmp_path, algorithm):
    def climbing(params, report, *, path):
        for epoch in range(1, 9):
            report({"score": params["values"]["x"] * epoch, "epoch": float(epoch)}, path)
        return {"score": params["values"]["x"] * 9, "epoch": 9.0}

    def tried(folder):
        compute = ComputeConfig(address="local")
        how = {"count": 9, "mode": "max", "stop_early": True, "epochs": 9, "workers": 0, "max_concurrent": 0, "seed": 3}
        options = SearchOptions(folder=folder, compute=compute, algorithm=algorithm, **how)
        trials = search(climbing, {"x": Uniform(0, 1)}, options, {"path": folder})
        return {trial.params["values"]["x"]: trial.state for trial in trials}

    states = tried(tmp_path / "a")
    assert len(states) == 9
    assert set(states.values()) <= {"finished", "pruned"}
    assert states[max(states)] == "finished"
    if algorithm == "random":
        assert states.keys() == tried(tmp_path / "b").keys()


@pytest.mark.faults
def test_trials_may_have_workers(cluster, phantoms, tmp_path, capfd):
    task = probe(phantoms, tmp_path, name="two")
    task = override(task, {"compute.workers": 1, "optim.epochs": 2})
    sweep(SweepConfig(task=task, trials=2))
    trials = json.loads((tmp_path / "two" / "trials.json").read_text())
    assert [trial["state"] for trial in trials] == ["finished"] * 2
    assert "PlacementGroupCleaner" not in "".join(capfd.readouterr())


@pytest.mark.faults
def test_those_behind_go_on_from_the_weights_of_those_ahead(cluster, phantoms, tmp_path):
    optim = OptimConfig(epochs=10, batch_size=64, lr=0.01, weight_decay=0, keep="last")
    task = CnnConfig(
        data=phantoms,
        out=tmp_path,
        name="pbt",
        arch="resnet10t",
        weights="none",
        image_size=32,
        optim=optim,
        compute=LOCAL,
    )
    (tmp_path / "space.yaml").write_text("optim.lr: {log: [1.0e-7, 1.0e-2]}")
    sweep(SweepConfig(task=task, trials=4, search="pbt", space=tmp_path / "space.yaml"))
    trials = json.loads((tmp_path / "pbt" / "trials.json").read_text())
    assert [trial["state"] for trial in trials] == ["finished"] * 4
    adopted = [trial for trial in trials if "-" in trial["name"]]
    assert adopted
    for trial in adopted:
        folder = tmp_path / "pbt" / "trials" / trial["name"]
        history = json.loads((folder / "history.json").read_text())["epochs"]
        assert [line["epoch"] for line in history] == list(range(int(history[0]["epoch"]), 11))
        assert history[0]["epoch"] > 1  # the other one had trained until then
        assert trial["score"] == pytest.approx(
            json.loads((folder / "metrics.json").read_text())["val"]["metrics"]["macro_f1"]
        )
        assert json.loads((folder / "config.json").read_text())["identity"]["optim.lr"] == trial["values"]["optim.lr"]


@pytest.mark.faults
def test_an_interrupted_sweep_says_how_to_go_on_and_goes_on(phantoms, tmp_path):
    flags = ["--trials", "6", "--max-concurrent", "1", "--no-early-stopping", "--search", "random"]
    task = ["cnn", "--data", phantoms, "--out", tmp_path, "--name", "sweep", "--arch", "resnet10t", "--weights", "none"]
    more = ["--image-size", "32", "--optim.epochs", "6", "--compute.address", "local"]
    command = [sys.executable, "tune/hparams.py", *map(str, task), *flags, *more]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    until = time.time() + 200
    while not list((tmp_path / "sweep" / "trials").glob("*/_SUCCESS")) and time.time() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "run the same command again to go on" in said[1]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep" / "trials").glob("*/_SUCCESS")}
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "The best again: clipcovid cnn" in done.stdout
    trials = json.loads((tmp_path / "sweep" / "trials.json").read_text())
    assert [trial["state"] for trial in trials] == ["finished"] * 6
    for path, when in before.items():
        assert path.stat().st_mtime_ns == when
