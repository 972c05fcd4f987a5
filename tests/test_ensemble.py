"""Ensembles: the rules beside plain ones, that no test label is used, and the run as a whole."""

import json
import shutil
import sqlite3

import numpy as np
import pandas as pd
import pytest
from made_predictions import CLASSES, make
from sklearn.metrics import log_loss

from clipcovid.errors import UserError
from clipcovid.evaluate import ensemble, plots
from clipcovid.evaluate.compare import compare
from clipcovid.evaluate.ensemble import EnsembleConfig, fit_ensemble, fit_weights
from clipcovid.evaluate.load_predictions import load_method_predictions, load_validation
from clipcovid.evaluate.metrics import classification_metrics
from clipcovid.evaluate.predictions import read_predictions, write_predictions
from clipcovid.evaluate.probabilities import class_probabilities
from clipcovid.evaluate.temperature import fit_temperature, scale_probabilities
from clipcovid.runs import SUCCESS_MARKER
from clipcovid.workflows.ensemble import ensemble_runs

RULES = ("mean", "weights", "stacking")


def fit_alone(rule, truth, members, penalty):
    """The rule fitted on these images, with the temperatures of each member."""
    temperatures = [fit_temperature(truth, member) for member in members]
    return ensemble._fit(rule, truth, members, temperatures, penalty)


def members_of(n=150, signals=(1.0, 0.5, 0.0), seed=0):
    """The true class, and the probabilities of methods that know more or less of it."""
    labels, first = make(n, signal=signals[0], seed=seed)
    truth = np.array([CLASSES.index(label) for label in labels])
    others = []
    for number, signal in enumerate(signals[1:], 1):
        odds = np.exp(np.random.default_rng(seed + 100 * number).normal(size=(n, 3)) + signal * np.eye(3)[truth])
        others.append(odds / odds.sum(axis=1, keepdims=True))
    return truth, np.stack([first, *others])


def patients(n, size=3):
    return [f"p{i // size}" for i in range(n)]


# The rules


def test_weights_are_those_of_expectation_maximization():
    truth, members = members_of()
    true = members[:, np.arange(150), truth]
    weights = np.full(3, 1 / 3)
    for _ in range(20_000):
        weights = weights * (true / (weights @ true)).mean(axis=1)
    found = fit_weights(truth, members)
    assert found == pytest.approx(weights, abs=1e-4)
    assert found.sum() == pytest.approx(1)
    gains = (true / (found @ true)).mean(axis=1)  # the conditions of Karush, Kuhn and Tucker
    assert gains[found > 1e-3] == pytest.approx(1, abs=1e-3)
    assert (gains <= 1 + 1e-3).all()


def test_a_member_that_knows_nothing_gets_no_weight():
    truth, members = members_of(600, signals=(2.0, 0.0))
    assert fit_weights(truth, members)[1] < 0.05


def test_the_mean_of_copies_is_the_scaled_member():
    truth, members = members_of(signals=(1.0,))
    fitted, _ = fit_ensemble("mean", truth, np.repeat(members, 3, axis=0), patients(150), folds=5, seed=0)
    expected = scale_probabilities(members[0], fit_temperature(truth, members[0]))
    assert fitted.predict(np.repeat(members, 3, axis=0)) == pytest.approx(expected)


@pytest.mark.parametrize("rule", RULES)
def test_out_of_fold_predictions_are_of_rules_fitted_on_other_patients(rule):
    truth, members = members_of()
    fitted, out_of_fold = fit_ensemble(rule, truth, members, patients(150), folds=5, seed=0)
    splits = ensemble._folds(truth, patients(150), 5, 0, each_class=False)
    assert len(splits) == 5
    assert sorted(np.concatenate([held_out for _, held_out in splits])) == list(range(150))
    penalty = getattr(fitted, "penalty", 1.0)
    for fitted_on, held_out in splits:
        assert not {row // 3 for row in fitted_on} & {row // 3 for row in held_out}
        alone = fit_alone(rule, truth[fitted_on], members[:, fitted_on], penalty)
        assert out_of_fold[held_out] == pytest.approx(alone.predict(members[:, held_out]))
    assert out_of_fold.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("rule", RULES)
def test_methods_that_err_apart_are_better_together(rule):
    truth, members = members_of(900, signals=(1.0, 1.0, 1.0))
    fitted, out_of_fold = fit_ensemble(rule, truth[:450], members[:, :450], [""] * 450, folds=5, seed=0)
    alone = [log_loss(truth[450:], member[450:]) for member in members]
    assert log_loss(truth[450:], fitted.predict(members[:, 450:])) < min(alone) - 0.05
    assert log_loss(truth[:450], out_of_fold) < min(log_loss(truth[:450], member[:450]) for member in members) - 0.05


def test_stacking_takes_the_penalty_of_the_least_loss():
    truth, members = members_of()
    fitted, out_of_fold = fit_ensemble("stacking", truth, members, patients(150), folds=5, seed=0)
    losses = {}
    for penalty in ensemble.PENALTIES:
        predicted = np.empty((150, 3))
        for fitted_on, held_out in ensemble._folds(truth, patients(150), 5, 0, each_class=True):
            alone = fit_alone("stacking", truth[fitted_on], members[:, fitted_on], penalty)
            predicted[held_out] = alone.predict(members[:, held_out])
        losses[penalty] = log_loss(truth, predicted)
    assert fitted.penalty == min(losses, key=losses.get)
    assert log_loss(truth, out_of_fold) == pytest.approx(min(losses.values()))


def test_two_classes_are_stacked_too():
    truth, members = members_of(200)
    kept = truth < 2
    pairs = members[:, kept, :2] / members[:, kept, :2].sum(axis=2, keepdims=True)
    fitted, out_of_fold = fit_ensemble("stacking", truth[kept], pairs, [""] * kept.sum(), folds=5, seed=0)
    assert fitted.predict(pairs).sum(axis=1) == pytest.approx(1)
    assert log_loss(truth[kept], out_of_fold) < np.log(2)
    assert len(fitted.to_json("abc")["coefficients"][0]) == 6


def test_too_few_patients_are_refused():
    truth, members = members_of(30)
    with pytest.raises(UserError, match="too few patients to fit an ensemble on: it needs two"):
        fit_ensemble("mean", truth, members, ["p"] * 30, folds=5, seed=0)
    rare = ["one" if label == 0 else f"p{row}" for row, label in enumerate(truth)]
    with pytest.raises(UserError, match="two, of each class; --rule mean"):
        fit_ensemble("stacking", truth, members, rare, folds=5, seed=0)
    fit_ensemble("weights", truth, members, rare, folds=5, seed=0)


# Runs


def table_of(split, n, member, signals=(1.0, 0.5, 0.0)):
    truth, members = members_of(n, signals, seed=len(split))
    table = pd.DataFrame({"image_id": [f"{split}{i:03}" for i in range(n)]})
    table["label"] = [CLASSES[i] for i in truth]
    table["patient_id"] = [f"{split}{i // 3}" for i in range(n)]
    table[[f"prob_{name}" for name in CLASSES]] = members[member]
    return table


def make_run(folder, member, change=None, **about):
    metadata = {"method": f"method{member}", "task": "classification", "identity": {"member": member}}
    metadata |= {"manifest_hash": "m1", "split_hash": "s1", "classes": list(CLASSES)}
    for split, n in (("val", 90), ("test", 60)):
        table = table_of(split, n, member)
        table = change(table, split) if change else table
        write_predictions(folder / "predictions" / f"{split}.parquet", table, **metadata | {"split": split} | about)
    (folder / "config.json").write_text(json.dumps({"method": metadata["method"], "identity": {}, "config": {}}))
    (folder / SUCCESS_MARKER).write_text("")
    return folder


@pytest.fixture
def runs(tmp_path):
    return tuple(make_run(tmp_path / "outputs" / f"run{member}", member) for member in range(3))


@pytest.fixture
def quick(monkeypatch):
    """Without figures and MLflow, which take longest."""
    monkeypatch.setattr(plots, "save_figures", lambda made, folder: [])
    monkeypatch.setattr("clipcovid.workflows.report.track", lambda *arguments, **options: False)


def ensemble_of(runs, tmp_path, **options):
    return ensemble_runs(EnsembleConfig(runs=runs, out=tmp_path / "outputs", **options))


@pytest.mark.parametrize("rule", RULES)
def test_an_ensemble_is_a_method_that_compare_takes(runs, tmp_path, quick, rule):
    run = ensemble_of(runs, tmp_path, rule=rule)
    assert run.is_done
    methods = load_method_predictions([*runs, run.folder], "test")
    comparison = compare(methods)
    name = f"ensemble-{rule}"
    assert set(comparison.methods) == {"method0", "method1", "method2", name}
    table, metadata = read_predictions(run.folder / "predictions" / "test.parquet")
    assert (metadata["split_hash"], metadata["manifest_hash"], metadata["classes"]) == ("s1", "m1", list(CLASSES))
    expected = classification_metrics(table["label"].tolist(), class_probabilities(table, CLASSES), CLASSES)
    stored = run.metrics()["test"]
    assert stored["metrics"] == pytest.approx(expected)
    assert stored["metrics"]["accuracy"] > 1 / 3
    assert "method0, method1, method2, fitted on 90 validation images" in stored["notes"][0]
    assert "fitted on other patients' images" in " ".join(run.metrics()["val"]["notes"])
    assert ("with 27 coefficients" in stored["notes"][0]) == (rule == "stacking")
    validation = load_validation(next(method for method in methods if method.name == name))
    assert len(validation) == 90
    fitted = json.loads((run.folder / "ensemble.json").read_text())
    assert list(fitted["members"]) == ["method0", "method1", "method2"]
    if rule == "weights":
        weights = [member["weight"] for member in fitted["members"].values()]
        assert sum(weights) == pytest.approx(1)
        assert weights[0] > weights[2]


@pytest.mark.parametrize("rule", RULES)
def test_labels_of_the_test_change_no_prediction(tmp_path, quick, rule):
    def flip(table, split):
        return table.assign(label=table["label"][::-1].tolist()) if split == "test" else table

    predicted = []
    for name, change in (("as it is", None), ("flipped", flip)):
        made = tuple(make_run(tmp_path / name / f"run{member}", member, change) for member in range(2))
        run = ensemble_of(made, tmp_path / name, rule=rule)
        table, _ = read_predictions(run.folder / "predictions" / "test.parquet")
        predicted.append(class_probabilities(table, CLASSES))
    assert (predicted[0] == predicted[1]).all()


def test_ensembles_are_known_by_what_their_members_predict(runs, tmp_path, quick):
    first = ensemble_of(runs, tmp_path)
    moved = tuple(shutil.copytree(run, tmp_path / "elsewhere" / f"{9 - at}") for at, run in enumerate(runs))
    assert ensemble_of(moved, tmp_path).identity == first.identity

    def change(table, split):
        table.loc[0, [f"prob_{name}" for name in CLASSES]] = [0.2, 0.3, 0.5]
        return table

    make_run(runs[0], 0, change)
    assert ensemble_of(runs, tmp_path).identity != first.identity
    assert ensemble_of(runs, tmp_path, rule="weights").identity != first.identity


def test_ensembles_join_ensembles(runs, tmp_path, quick):
    first = ensemble_of(runs[:2], tmp_path, rule="weights", name="two")
    assert ensemble_of((first.folder, runs[2]), tmp_path).is_done


def test_images_that_a_member_learned_from_are_marked_and_neither_fitted_on_nor_scored(runs, tmp_path, quick):
    def learn(table, split):
        table.insert(3, "trained_on", table.index < 6)
        return table

    make_run(runs[0], 0, learn)
    run = ensemble_of(runs, tmp_path)
    for split, n in (("val", 90), ("test", 60)):
        table, _ = read_predictions(run.folder / "predictions" / f"{split}.parquet")
        assert table["image_id"][table["trained_on"]].tolist() == [f"{split}{i:03}" for i in range(6)]
        assert run.metrics()[split]["n"] == n - 6
        assert any("6 of" in note and "not scored" in note for note in run.metrics()[split]["notes"])
        assert "fitted on 84 validation images" in run.metrics()[split]["notes"][0]
    plain = tuple(
        make_run(tmp_path / "plain" / f"run{member}", member, lambda table, split: table[6:]) for member in range(3)
    )
    rest = ensemble_of(plain, tmp_path / "plain")
    assert rest.metrics()["test"]["metrics"] == pytest.approx(run.metrics()["test"]["metrics"])
    assert len(load_method_predictions([runs[1], run.folder], "test")[0].table) == 54


def test_baselines_know_the_train_split_where_a_member_does(runs, tmp_path, quick):
    first = ensemble_of(runs, tmp_path)
    assert first.metrics()["test"]["baselines"]["majority"]["from"] == "scored labels"
    scores = first.metrics()
    scores["test"]["baselines"]["majority"]["from"] = "train"
    (runs[1] / "metrics.json").write_text(json.dumps(scores))
    assert ensemble_of(runs, tmp_path).metrics()["test"]["baselines"]["majority"]["from"] == "train"


def refused(runs, tmp_path, words, **options):
    with pytest.raises(UserError, match=words) as error:
        ensemble_of(runs, tmp_path, **options)
    assert "\n" not in str(error.value)


def test_what_is_no_ensemble_is_refused(runs, tmp_path, quick):
    refused(runs[:1], tmp_path, "joins several runs: name the folders of two or more")
    refused((runs[0], runs[0] / ".." / "run0"), tmp_path, "joins several runs")
    refused((runs[0], runs[1] / "predictions" / "test.parquet"), tmp_path, "is a file; an ensemble needs val and test")
    refused(runs, tmp_path, "--folds 1 must be at least 2", folds=1)
    (runs[2] / "predictions" / "val.parquet").unlink()
    refused(runs, tmp_path, r"run2 has no predictions of val.*--split val")
    make_run(runs[2], 2, split_hash="s2")
    refused(runs, tmp_path, "split hash of .*run2 is s2, but that of .*run0 is s1")
    make_run(runs[2], 2, lambda table, split: table[1:])
    refused(runs, tmp_path, "run2 lacks 1 of the images that")
    four = [*CLASSES, "Tuberculosis"]
    make_run(runs[2], 2, lambda table, split: table.assign(**{"prob_Tuberculosis": 0.0}), classes=four)
    refused(runs, tmp_path, "classes of .*run2 is COVID-19, Non-COVID, Normal, Tuberculosis, but")
    make_run(runs[2], 2)
    table, about = read_predictions(runs[2] / "predictions" / "val.parquet")
    write_predictions(runs[2] / "predictions" / "val.parquet", table, **about | {"identity": {"other": 1}})
    refused(runs, tmp_path, "val.parquet has another identity than test.parquet beside it")


def test_stacking_needs_every_class_in_validation(runs, tmp_path, quick):
    def lack(table, split):
        return table[table["label"] != "Normal"] if split == "val" else table

    lacking = tuple(make_run(run, member, lack) for member, run in enumerate(runs))
    refused(lacking, tmp_path, "--rule stacking learns classes .* none is of Normal: use --rule mean", rule="stacking")
    assert ensemble_of(lacking, tmp_path, rule="weights").is_done


def test_segmentations_are_refused(tmp_path, quick):
    rows = pd.DataFrame({"image_id": ["i", "i"], "region": ["lung", "infection"], "tp": 1, "fp": 0, "fn": 0, "tn": 3})
    made = tuple(
        make_run(tmp_path / f"seg{member}", member, lambda table, split: rows, task="segmentation") for member in (0, 1)
    )
    refused(made, tmp_path, "An ensemble joins classifications; .*seg0 predicts segmentation")


def test_the_job_draws_figures_and_shows_its_run_in_mlflow(runs, tmp_path, capsys):
    run = ensemble_of(runs, tmp_path, name="joined")
    assert {path.name for path in (run.folder / "figures").iterdir()} == {
        f"{split}_{name}.png" for split in ("val", "test") for name in ("confusion", "classes", "roc")
    }
    assert "Ensemble: " in capsys.readouterr().out
    with sqlite3.connect(tmp_path / "outputs" / "mlflow.db") as database:
        names = [name for (name,) in database.execute("SELECT name FROM runs")]
        metrics = dict(database.execute("SELECT key, value FROM latest_metrics"))
        tags = dict(database.execute("SELECT key, value FROM tags"))
    assert names == ["joined"]
    assert metrics["test/accuracy"] == pytest.approx(run.metrics()["test"]["metrics"]["accuracy"])
    assert tags["clipcovid.method"] == "ensemble-mean"
    assert tags["members"] == "method0, method1, method2"
