"""Comparisons that predict: trained, probed and zero-shot runs on another prepared set, and CLIP against CNN in words."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import HERE
from made_predictions import CLASSES
from sklearn.metrics import accuracy_score

from clipcovid.config import ClipConfig, OptimConfig, UserError
from clipcovid.data.manifest import read_manifest, write_manifest
from clipcovid.data.prepare import PrepareConfig, prepare
from clipcovid.data.sources import PhantomConfig
from clipcovid.evaluate.compare import CompareConfig
from clipcovid.evaluate.external_gap import SHORTCUT_WARNING
from clipcovid.evaluate.predictions import read_predictions
from clipcovid.inference.embed import EmbedConfig, embed
from clipcovid.inference.predict import PredictConfig
from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.finetune.config import FinetuneConfig
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.models.clip import load_clip
from clipcovid.prompts import TEMPLATE
from clipcovid.report.findings import Finding
from clipcovid.training.trainer import train_model
from clipcovid.workflows.clip_vs_cnn import predict_candidates, usual_phrase
from clipcovid.workflows.compare import compare_runs
from clipcovid.workflows.predict import predict_run
from clipcovid.workflows.prompt_search import Candidate, PromptSpace, read_space
from clipcovid.workflows.train import embeddings_for

TINY = ClipConfig(model="tiny", pretrained="none")


def quiet(text):
    pass


@pytest.fixture(scope="module")
def out(phantoms, tmp_path_factory):
    """A folder with the runs zeroshot, cnn and probe."""
    out = tmp_path_factory.mktemp("outputs")
    common = {"data": phantoms, "out": out, "compute": HERE}
    training = OptimConfig(epochs=2, batch_size=16)
    for config in (
        CnnConfig(weights="none", image_size=32, optim=training, name="cnn", **common),
        ProbeConfig(clip=TINY, name="probe", **common),
    ):
        train_model(config, embeddings=embeddings_for(config), log=quiet)
    zeroshot(ZeroshotConfig(clip=TINY, name="zeroshot", **common), quiet)
    return out


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "other"
    prepare(PrepareConfig(out=folder, phantom=PhantomConfig(images=45, size=64, seed=9), compute=HERE), log=quiet)
    return folder


@pytest.fixture
def other(drawn, tmp_path):
    """Another prepared set, with other names of classes; `shared`: how many of its images are also in a manifest."""

    def make(names, same=(), name="other"):
        folder = shutil.copytree(drawn, tmp_path / name)
        manifest = read_manifest(folder)
        table = manifest.table.assign(label=manifest.table["label"].map(names))
        table.loc[table.index[: len(same)], "sha256"] = list(same)
        classes = tuple(dict.fromkeys(filter(None, names.values())))
        write_manifest(folder, replace(manifest, table=table, classes=classes, dataset=name))
        return folder

    return make


@pytest.fixture(autouse=True)
def untracked(monkeypatch):
    """Without MLflow and without files of figures, which take longest."""
    monkeypatch.setattr("clipcovid.workflows.compare.report_run", lambda *args, **how: None)
    monkeypatch.setattr("clipcovid.evaluate.plots.save_figures", lambda made, folder: [])


SAME = {"COVID-19": "COVID-19", "Non-COVID": "Non-COVID", "Normal": "Normal"}
TWO = {"COVID-19": "positive", "Non-COVID": "negative", "Normal": "negative"}


def compared(out, *external, runs=("cnn", "probe", "zeroshot"), name="comparison", **how):
    config = CompareConfig(
        runs=tuple(out / run for run in runs), external=external, out=out, name=name, compute=HERE, **how
    )
    folder = compare_runs(config).folder
    return json.loads((folder / "comparison.json").read_text()), folder


def test_every_method_is_scored_on_the_other_set_beside_its_own(out, other, capsys, monkeypatch):
    figures = {}
    monkeypatch.setattr("clipcovid.evaluate.plots.save_figures", lambda made, folder: figures.update(made))
    content, folder = compared(out, other(SAME))
    (test,) = content["external"]
    assert set(test["gaps"]) == set(content["methods"]) == {"cnn-resnet18", "probe-linear", "zeroshot"}
    for name, gaps in test["gaps"].items():
        table, _ = read_predictions(f"{test['runs'][name]}/predictions/all.parquet")
        best = table.filter(like="prob_").idxmax(axis=1).str.removeprefix("prob_")
        assert gaps["accuracy"]["external"] == pytest.approx(accuracy_score(table["label"], best))
        assert gaps["accuracy"]["internal"] == pytest.approx(content["methods"][name]["metrics"]["accuracy"])
        assert gaps["accuracy"]["low"] <= gaps["accuracy"]["value"] <= gaps["accuracy"]["high"]
    assert test["n"] == 45
    assert test["shared"] == {}
    text = (folder / "comparison.md").read_text()
    shown = " ".join(capsys.readouterr().out.split())
    for said in (SHORTCUT_WARNING, "External: other"):
        assert said in text
        assert said in shown
    assert len(figures["external_other"].axes) == 2


def test_predictions_are_made_once(out, other, monkeypatch):
    data = other(SAME, name="again")
    first, _ = compared(out, data, name="once")
    monkeypatch.setattr("clipcovid.inference.predict.score_split", None)  # what would be called for new predictions
    second, _ = compared(out, data, name="twice")
    assert second["external"] == first["external"]


def test_images_of_the_internal_set_are_left_out_counted_and_said(out, phantoms, other):
    manifest = read_manifest(phantoms)
    train, test = (manifest.rows(split)["sha256"].tolist() for split in ("train", "test"))
    data = other(SAME, same=[*train[:4], *test[:2]], name="sharing")
    content, _ = compared(out, data, name="shared")
    (entry,) = content["external"]
    assert entry["shared"] == {"test": 2, "train": 4}
    assert entry["left_out"] == 6
    assert entry["n"] == 45 - 6
    assert any("by their pixels. clipcovid audit --against" in alarm for alarm in entry["alarms"])
    splits = read_manifest(data).table["split"].tolist()[:6]
    split = min(splits, key=splits.count)
    content, _ = compared(out, data, runs=("cnn", "zeroshot"), name="shared-split", external_split=split)
    (entry,) = content["external"]
    assert sum(entry["shared"].values()) == entry["left_out"] == splits.count(split) < 6
    assert any(alarm.startswith(f"The {split} split of") for alarm in entry["alarms"])
    whole = other(SAME, same=manifest.table["sha256"].tolist()[:45], name="itself")
    with pytest.raises(UserError, match=r"All 45 images of .*itself .*: it is not external"):
        compared(out, whole, name="none")


def test_classes_are_mapped_and_merged(out, other):
    data = other({"COVID-19": "COVID-19", "Non-COVID": "Pneumonia", "Normal": "Other"}, name="renamed")
    with pytest.raises(UserError, match=r"not 'Pneumonia', 'Other' of renamed: .* --external-map '?Pneumonia=…'?"):
        compared(out, data)
    with pytest.raises(UserError, match="--external-map 'Cancer=Normal' names no class of the external sets"):
        compared(out, data, external_map=("Cancer=Normal",))
    with pytest.raises(UserError, match="--external-map: 'Other' is mapped twice, to '' and to 'Normal'"):
        compared(out, data, external_map=("Pneumonia=Non-COVID", "Other=", "Other=Normal"))
    content, _ = compared(out, data, name="mapped", external_map=("Pneumonia=Non-COVID", "Other="))
    assert content["external"][0]["label_map"] == {"COVID-19": "COVID-19", "Pneumonia": "Non-COVID", "Other": ""}
    assert content["external"][0]["n"] == int((read_manifest(data).table["label"] != "Other").sum())
    two = other(TWO, name="two")
    content, _ = compared(out, two, name="merged", external_map=("positive=COVID-19", "negative=Non-COVID+Normal"))
    (test,) = content["external"]
    assert test["classes"] == ["COVID-19", "negative"]
    table, _ = read_predictions(f"{test['runs']['cnn-resnet18']}/predictions/all.parquet")
    labels = read_manifest(two).table.set_index("image_id")["label"]
    covid = labels.reindex(table["image_id"]).to_numpy() == "positive"
    right = (table["prob_COVID-19"] > table["prob_Non-COVID"] + table["prob_Normal"]).to_numpy() == covid
    assert test["gaps"]["cnn-resnet18"]["accuracy"]["external"] == pytest.approx(right.mean())


def test_a_set_with_one_class_is_an_alarm_and_the_next_set_is_scored(out, other):
    one = other(dict.fromkeys(SAME, "only"), name="one")
    content, folder = compared(
        out, one, other(SAME), runs=("cnn", "probe"), name="one-class", external_map=("only=COVID-19",)
    )
    lone, scored = content["external"]
    assert lone["methods"] == {}
    assert "'COVID-19' is the only class that both sets have images of" in lone["alarms"][0]
    assert scored["n"] == 45
    text = (folder / "comparison.md").read_text()
    assert "External: one" in text
    assert ", not scored" in text
    assert text.count("is the best on both sets") + text.count("is the best on the internal set") == 1


def test_a_set_without_an_image_to_score_is_refused_before_anything_is_predicted(out, other, monkeypatch):
    monkeypatch.setattr("clipcovid.workflows.external.predict_run", None)
    data, unlabelled = other(dict.fromkeys(SAME, "only"), name="gone"), other(dict.fromkeys(SAME, ""), name="bare")
    with pytest.raises(
        UserError, match=r"^--external-map leaves out all images of .*gone that .*: map 'only' to classes"
    ):
        compared(out, other(SAME), data, external_map=("only=",))
    with pytest.raises(UserError, match=r"^No image of the test split of .*bare has a class"):
        compared(out, unlabelled, external_split="test")


def test_methods_that_cannot_predict_are_skipped_and_named(out, other, tmp_path):
    lone = tmp_path / "lone.parquet"
    shutil.copy(out / "cnn/predictions/test.parquet", lone)
    data = other(SAME, name="skipping")
    config = CompareConfig(runs=(out / "probe", lone), external=(data,), out=out, name="skipped", compute=HERE)
    content = json.loads((compare_runs(config).folder / "comparison.json").read_text())
    (test,) = content["external"]
    assert test["skipped"] == {"cnn-resnet18": "is a file of predictions, or a variant of a run"}
    assert list(test["gaps"]) == ["probe-linear"]
    with pytest.raises(UserError, match=r"No method can predict .*skipping: cnn-resnet18 is a file of predictions"):
        compare_runs(replace(config, runs=(lone,), name="nobody"))


def test_a_zero_shot_run_predicts_other_data_with_its_own_words(out, phantoms, other, tmp_path):
    run = out / "zeroshot"
    same = predict_run(PredictConfig(run=run, data=phantoms, out=tmp_path, compute=HERE), quiet)
    ours, _ = read_predictions(run / "predictions/test.parquet")
    theirs, _ = read_predictions(same.run.folder / "predictions/test.parquet")
    pd.testing.assert_frame_equal(ours, theirs)
    assert same.created
    assert not predict_run(PredictConfig(run=run, data=phantoms, out=tmp_path, compute=HERE), quiet).created
    unlabelled = other(dict.fromkeys(SAME, ""), name="unlabelled")
    found = predict_run(PredictConfig(run=run, data=unlabelled, split="all", out=tmp_path, compute=HERE), quiet)
    assert found.scores is None
    table, _ = read_predictions(found.run.folder / "predictions/all.parquet")
    assert len(table) == 45
    assert np.allclose(table.filter(like="prob_").sum(axis=1), 1)
    changed = shutil.copytree(run, tmp_path / "changed")
    about = json.loads((changed / "config.json").read_text())
    about["identity"]["clip.weights"] = "0123"
    (changed / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="was made with other weights than those that are in none now"):
        predict_run(PredictConfig(run=changed, data=phantoms, out=tmp_path, compute=HERE), quiet)


# CLIP against CNN


def test_a_comparison_says_it_in_words_from_its_runs(out, other, capsys, monkeypatch):
    few = PromptSpace((TEMPLATE, "{}", "findings of {}"), (3,), {name: (name, f"no {name}") for name in CLASSES})
    monkeypatch.setattr("clipcovid.workflows.clip_vs_cnn.read_space", lambda path, classes: few)
    data = other({"COVID-19": "Edema", "Non-COVID": "Non-COVID", "Normal": "Normal"}, name="edema")
    _, folder = compared(out, data, name="words", clip_vs_cnn=True, external_map=("Edema=COVID-19",))
    findings = [Finding.from_json(entry) for entry in json.loads((folder / "clip_vs_cnn.json").read_text())["findings"]]
    assert [finding.check for finding in findings] == [
        "New classes",
        "Robustness to phrasing: templates",
        "Robustness to phrasing: names of the classes",
        "Trained classes",
        "Over-fitting",
        "Where each wins",
    ]
    assert findings[0].numbers["classes"][-1]["class"] == "Edema"
    assert [finding.numbers["paraphrases"] for finding in findings[1:3]] == [3, 8]
    assert set(findings[4].numbers) == {"zeroshot", "probe-linear", "cnn-resnet18"}
    shown, text = " ".join(capsys.readouterr().out.split()), (folder / "comparison.md").read_text()
    for finding in findings:
        assert finding.summary in text
        assert " ".join(finding.summary.split())[:60] in shown


def test_the_words_of_a_run_give_its_own_predictions(out, phantoms):
    """The single prompt is one of the paraphrases, so what is predicted with it must be what the run has."""
    space, manifest = read_space(None, CLASSES), read_manifest(phantoms)
    embeddings = embed(EmbedConfig(data=phantoms, clip=TINY, compute=HERE), quiet)
    clip = load_clip(TINY, precision=embeddings.encoder["precision"])
    chosen = [f"a chest X-ray of {usual_phrase(name, space.phrases[name])}" for name in CLASSES]
    texts = clip.encode_texts(chosen).numpy()[None]
    rows = manifest.rows("test")
    alone = PromptSpace((TEMPLATE,), (1,), dict.fromkeys(CLASSES, ("phrase",)))
    candidate = Candidate((0,), ((0,),) * 3)
    predicted = predict_candidates(embeddings.load(rows["image_id"]).astype(np.float32), texts, alone, [candidate])[0]
    own = pd.read_parquet(out / "zeroshot/predictions/test.parquet").set_index("image_id").loc[rows["image_id"]]
    assert [CLASSES[at] for at in predicted] == own.filter(like="prob_").idxmax(axis=1).str[5:].tolist()


def test_an_encoder_that_was_trained_on_the_data_is_not_called_zero_shot(out, phantoms, tmp_path, monkeypatch):
    few = PromptSpace((TEMPLATE, "{}"), (2,), {name: (name,) for name in CLASSES})
    monkeypatch.setattr("clipcovid.workflows.clip_vs_cnn.read_space", lambda path, classes: few)
    training = OptimConfig(epochs=1, batch_size=32)
    tuned = train_model(
        FinetuneConfig(clip=TINY, hf=False, data=phantoms, out=tmp_path, optim=training, compute=HERE), log=quiet
    ).run.folder
    clip = ClipConfig(model="tiny", pretrained=str(tuned))
    run = zeroshot(ZeroshotConfig(clip=clip, data=phantoms, out=tmp_path, name="tuned", compute=HERE), quiet).run.folder
    config = CompareConfig(runs=(run, out / "cnn"), clip_vs_cnn=True, out=tmp_path, name="tuned-words", compute=HERE)
    findings = json.loads((compare_runs(config).folder / "clip_vs_cnn.json").read_text())["findings"]
    assert "New classes" not in [finding["check"] for finding in findings]
    assert not any("learned from no image" in finding["summary"] for finding in findings)


def test_without_a_clip_there_is_nothing_to_set_against_a_cnn(out):
    with pytest.raises(UserError, match="--clip-vs-cnn needs a method that starts from a CLIP"):
        compare_runs(CompareConfig(runs=(out / "cnn",), clip_vs_cnn=True, out=out, name="alone", compute=HERE))


def test_without_its_data_set_nothing_can_be_said(out, tmp_path):
    run = shutil.copytree(out / "zeroshot", tmp_path / "zeroshot")
    about = json.loads((run / "config.json").read_text())
    about["config"]["data"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"--clip-vs-cnn reads the compared images, and .*gone\) is not there"):
        compare_runs(CompareConfig(runs=(run,), clip_vs_cnn=True, out=tmp_path, name="gone", compute=HERE))
