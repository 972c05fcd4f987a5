"""clipcovid evaluate from the command line."""

import dataclasses
import io
import json
import runpy
import sys
from pathlib import Path

import pytest
from conftest import run_and_list_imports
from rich.console import Console
from test_predictions import CLASSES, KINDS, OWN, TABLE, TRUTH, write

from clipcovid.commands.evaluate import EvaluateConfig, main
from clipcovid.config import UserError
from clipcovid.evaluate.console import print_scores
from clipcovid.evaluate.kinds.classification import KIND

JOB = Path(__file__).parents[1] / "jobs" / "evaluate.py"


def evaluate(*args):
    return run_and_list_imports(JOB, *args)


@pytest.fixture
def files(tmp_path):
    rows = [{"image_id": TRUTH[i]["image_id"], **row} for i, row in enumerate(KINDS["prob_"])]
    return "--predictions", write(tmp_path / "preds.json", rows), "--ground-truth", write(tmp_path / "gt.csv", TRUTH)


def test_prints_tables_and_writes_scores_and_figures(tmp_path, files):
    done, imported = evaluate(*files, "--out", tmp_path / "out", "--name", "mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert "clipcovid.evaluate.metrics" in imported
    assert imported.isdisjoint({"torch", "ray", "mlflow", "matplotlib.pyplot"})
    for word in (
        "accuracy",
        "95% interval",
        "majority",
        "prior",
        "macro_auroc",
        "by patient",
        "Research use only",
        "specificity",
    ):
        assert word in done.stdout, word
    folder = tmp_path / "out" / "mine"
    assert str(folder) in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["classes.png", "confusion.png", "metrics.json", "roc.png"]
    assert json.loads((folder / "metrics.json").read_text()) == OWN.to_json()


def test_json_stands_alone_on_stdout(files, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(JOB), *map(str, files), "--json"])
    runpy.run_path(str(JOB), run_name="__main__")
    assert json.loads(capsys.readouterr().out) == OWN.to_json()


def test_one_file_and_rows_by_position(tmp_path, capsys, monkeypatch):
    (tmp_path / "both.csv").write_text("y,y_pred,resnet\na,a,b\nb,a,b\n")
    (tmp_path / "truth.tsv").write_text("finding\nb\nb\n")
    two_files = ["--ground-truth", tmp_path / "truth.tsv", "--truth-column", "finding", "--match", "position"]
    for args, accuracy in (
        (["--truth-column", "y"], 0.5),
        (["--truth-column", "y", "--prediction-column", "resnet"], 0.5),
        (two_files, 0),
        ([*two_files, "--prediction-column", "resnet"], 1),
    ):
        argv = [JOB, "--predictions", tmp_path / "both.csv", "--classes", "a", "b", "--json", *args]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        runpy.run_path(str(JOB), run_name="__main__")
        assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"] == accuracy


def test_a_mistake_is_one_sentence_and_status_2(tmp_path, files):
    (tmp_path / "preds.json").write_text(json.dumps([{"image_id": "000.png", "prob_a": 0.5, "prob_b": 0.6}]))
    done, _ = evaluate(*files)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: 29 of the images in ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, files):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give another --out"):
        main(EvaluateConfig(predictions=str(files[1]), ground_truth=str(files[3]), out=str(tmp_path / "file")))


def test_tables_fit_and_take_class_names_as_they_are():
    names = ("[red]odd[/]", "A very long name of a class of images", "[/]")
    table = TABLE.rename(columns={f"prob_{c}": f"prob_{n}" for c, n in zip(CLASSES, names, strict=True)})
    table["label"] = table["label"].map(dict(zip(CLASSES, names, strict=True)))
    body = KIND.score(table.assign(patient_id=""), names)
    body = dataclasses.replace(body, alarms=["Beware of [/]."], notes=["See [/]."])
    console = Console(file=io.StringIO(), width=80)
    print_scores(body, console)
    text = console.file.getvalue()
    for word in ("[red]odd[/]", "warning: Beware of [/].", "note: See [/].", "by image", "specificity", "auprc"):
        assert word in text, word
    assert max(map(len, text.splitlines())) <= 80
