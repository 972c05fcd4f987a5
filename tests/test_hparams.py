"""Searching for hyperparameters."""

import json
import shlex
from pathlib import Path

import pytest
from conftest import LOCAL

from clipcovid.config import ClipConfig, ComputeConfig, OptimConfig, UserError, flatten, from_cli, override
from clipcovid.tasks.configs import METHODS, CaptionConfig, CnnConfig, FinetuneConfig, ProbeConfig
from clipcovid.trials import search
from tune.hparams import HparamsConfig, checked_space, command, main
from tune.spaces import SPACES, Choice, Int, Log, Uniform, read_space

TINY = ClipConfig(model="tiny", pretrained="none")


def probe(data, out, **settings):
    optim = OptimConfig(epochs=20, batch_size=64, lr=0.01, weight_decay=0, clip_norm=0, keep="last")
    return ProbeConfig(data=data, out=out, clip=TINY, optim=optim, compute=LOCAL, **settings)


def test_every_task_has_a_space_whose_keys_and_values_its_config_takes():
    assert set(SPACES) == set(METHODS)
    for name, method in METHODS.items():
        assert checked_space(HparamsConfig(task=method.config(data="unused"))) is SPACES[name]


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
        ("optim.epochs: {choice: [0, 5]}", "--optim.epochs 0"),
        ("- a", "mapping"),
    ],
)
def test_a_space_that_can_not_be_is_one_sentence(tmp_path, text, match):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UserError, match=match) as said:
        checked_space(HparamsConfig(task=CnnConfig(data="unused"), space=tmp_path / "space.yaml"))
    assert "\n" not in str(said.value)


def test_a_space_of_ones_own(tmp_path):
    (tmp_path / "space.yaml").write_text(
        "a: {log: [1.0e-3, 1]}\nb: {uniform: [-1, 1]}\nc: {int: [1, 4]}\nd: {choice: [x, 2]}"
    )
    assert read_space(tmp_path / "space.yaml") == {
        "a": Log(1e-3, 1),
        "b": Uniform(-1, 1),
        "c": Int(1, 4),
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
        (CaptionConfig(data=Path("d"), weights="none"), {"loss": "soft", "optim.batch_size": 128}),
    ],
)
def test_the_command_trains_what_was_best(task, values):
    words = shlex.split(command(task, values))
    assert words[:2] == ["python", f"jobs/{task.task}.py"]
    assert flatten(from_cli(type(task), "", words[2:])) == flatten(override(task, values))


def try_all(tmp_path, **settings):
    """A sweep of one number, whose trials fail at the first try of some of them, and always of others."""

    def stumbling(params, report, *, path):
        """A trial that fails at the first try of some, and always of others."""
        x = params["values"]["x"]
        if x > 0.7:
            raise ValueError("too large")
        marker = path / params["name"]
        if x > 0.5 and not marker.exists():
            marker.write_text("tried")
            raise OSError("only this once")
        for epoch in range(1, 5):
            report({"score": 1 - abs(x - 0.4), "epoch": float(epoch)})
        return {"score": 1 - abs(x - 0.4)}

    given = {
        "count": 6,
        "mode": "max",
        "algorithm": "optuna",
        "stop_early": False,
        "epochs": 4,
        "workers": 0,
        "seed": 0,
    }
    return search(
        stumbling,
        {"x": Uniform(0, 1)},
        settings={"path": tmp_path},
        folder=tmp_path / "sweep",
        compute=ComputeConfig(address="local"),
        **(given | settings),
    )


@pytest.mark.faults
def test_a_trial_that_fails_is_tried_again_then_marked_and_the_sweep_ends(cluster, tmp_path):
    trials = try_all(tmp_path)
    assert len(trials) == 6
    for trial in trials:
        failed = trial.task["values"]["x"] > 0.7
        assert trial.state == ("failed" if failed else "finished"), trial
        assert ("too large" in trial.error) == failed
    assert {trial.state for trial in trials} == {"finished", "failed"}
    again = try_all(tmp_path)  # finished before: nothing is tried again
    assert {trial.task["name"]: trial.task["values"] for trial in again} == {
        trial.task["name"]: trial.task["values"] for trial in trials
    }
    assert {trial.task["name"]: trial.state for trial in again} == {trial.task["name"]: trial.state for trial in trials}


@pytest.fixture(scope="module")
def finished(cluster, phantoms, tmp_path_factory):
    task = probe(phantoms, tmp_path_factory.mktemp("hparams"), name="sweep")
    config = HparamsConfig(task=task, trials=5, confirm_seeds=2)
    main(config)
    return config, task.out / "sweep"


def test_a_sweep_leaves_the_best_with_its_checkpoint_and_all_trials(finished, capsys):
    config, folder = finished
    trials = json.loads((folder / "trials.json").read_text())
    best = json.loads((folder / "best.json").read_text())
    assert len(trials) == 5
    known = [trial["score"] for trial in trials if trial["state"] == "finished"]
    assert best["score"] == max(known)
    assert best["metric"] == "macro_f1"
    kept = sorted(path.parent.name for path in (folder / "trials").glob("*/checkpoint"))
    assert kept == [trial["name"] for trial in trials if trial["values"] == best["values"]]
    assert {path.stem for path in (folder / "figures").glob("*.png")} >= {"history", "parallel"}
    assert len(list((folder / "seeds").glob("*/metrics.json"))) == 2
    main(config)
    assert "finished already" in capsys.readouterr().out


def test_mlflow_has_a_child_for_each_trial_and_none_has_failed(finished):
    from mlflow import MlflowClient

    config, _ = finished
    client = MlflowClient(f"sqlite:///{config.task.out.resolve()}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("clipcovid").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert len(runs) == 6
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["clipcovid.trial"] for run in runs if run not in parents} <= {"finished", "pruned"}


def test_resuming_what_was_never_begun_is_refused(phantoms, tmp_path):
    with pytest.raises(UserError, match="--resume"):
        main(HparamsConfig(task=probe(phantoms, tmp_path, name="none"), resume=True))
