import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import HERE

from clipcovid.config import ClipConfig, OptimConfig, UserError
from clipcovid.data.manifest import read_manifest, write_manifest
from clipcovid.data.prepare import PrepareConfig, prepare
from clipcovid.data.sources import PhantomConfig
from clipcovid.evaluate.predictions import read_predictions
from clipcovid.inference import predict as module
from clipcovid.inference.predict import PredictConfig, predict_split
from clipcovid.io.files import write_json
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.finetune.config import FinetuneConfig
from clipcovid.methods.hybrid.config import HybridConfig
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.prompts import PromptsConfig
from clipcovid.training.trainer import train_model
from clipcovid.workflows.train import embeddings_for

TINY = ClipConfig(model="tiny", pretrained="none")


def quiet(text):
    pass


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory) -> dict[str, Path]:
    """A finished run of every kind."""
    out = tmp_path_factory.mktemp("runs")
    words = out / "words.yaml"
    words.write_text("{COVID-19: [sick lungs], Non-COVID: [other lungs], Normal: [clear lungs]}")
    prompts = PromptsConfig(prompts=str(words))
    common = {"data": phantoms, "out": out, "compute": HERE, "optim": OptimConfig(epochs=1, batch_size=32)}
    configs = {
        "cnn": CnnConfig(weights="none", image_size=32, **common),
        "hybrid": HybridConfig(weights="none", clip=TINY, prompts=prompts, **common),
        "concat": HybridConfig(weights="none", clip=TINY, join="concat", **common),
        "finetune": FinetuneConfig(clip=TINY, hf=False, prompts=prompts, **common),
        "lora": FinetuneConfig(clip=TINY, hf=False, method="lora", **common),
        "probe": ProbeConfig(clip=TINY, **(common | {"optim": ProbeConfig.optim})),
    }
    made = {
        name: train_model(config, embeddings=embeddings_for(config), log=quiet).run.folder
        for name, config in configs.items()
    }
    words.write_text("{Normal: [what no checkpoint reads any more]}")
    return made


@pytest.fixture
def other(tmp_path):
    """Another prepared set, whose classes have names of their own."""
    folder = tmp_path / "other"
    prepare(PrepareConfig(out=folder, phantom=PhantomConfig(images=30, size=64, seed=9), compute=HERE), log=quiet)
    manifest = read_manifest(folder)

    def rename(names):
        table = manifest.table.assign(label=manifest.table["label"].map(names))
        classes = tuple(dict.fromkeys(name for name in names.values() if name))
        write_manifest(folder, type(manifest)(table=table, classes=classes, dataset="other", info=manifest.info))
        return folder

    return rename


def ask(run, data, out, **settings):
    return PredictConfig(run=run, data=data, out=out, compute=HERE, **settings)


def table_of(run, split="test"):
    table, _ = read_predictions(run / "predictions" / f"{split}.parquet")
    return table.sort_values("image_id").reset_index(drop=True)


@pytest.mark.parametrize("kind", ["cnn", "hybrid", "concat", "finetune", "lora", "probe"])
def test_a_checkpoint_predicts_what_the_run_did(runs, phantoms, tmp_path, kind):
    found = predict_split(ask(runs[kind], phantoms, tmp_path), quiet)
    ours, theirs = table_of(runs[kind]), table_of(found.run.folder)
    assert ours["image_id"].tolist() == theirs["image_id"].tolist()
    assert np.abs(ours.filter(like="prob_").to_numpy() - theirs.filter(like="prob_").to_numpy()).max() < 1e-5
    assert not predict_split(ask(runs[kind], phantoms, tmp_path), quiet).created


def test_a_checkpoint_holds_the_words_that_it_predicts_with(runs, phantoms, tmp_path):
    for kind in ("finetune", "hybrid"):
        words = json.loads((runs[kind] / "checkpoint" / "prompts.json").read_text())
        assert words["Normal"] == ["clear lungs"]
    old = shutil.copytree(runs["finetune"], tmp_path / "old")
    (old / "checkpoint" / "prompts.json").unlink()  # as older versions left it
    about = json.loads((old / "checkpoint" / "config.json").read_text())
    about["config"]["prompts"]["prompts"] = str(tmp_path / "own.json")
    write_json(old / "checkpoint" / "config.json", about)
    with pytest.raises(UserError, match="no such prompt file"):
        predict_split(ask(old, phantoms, tmp_path), quiet)
    write_json(tmp_path / "own.json", words)
    found = predict_split(ask(old, phantoms, tmp_path, name="again"), quiet)
    ours, theirs = table_of(runs["finetune"]), table_of(found.run.folder)
    assert np.abs(ours.filter(like="prob_").to_numpy() - theirs.filter(like="prob_").to_numpy()).max() < 1e-5


def test_runs_of_equal_weights_and_other_settings_are_predicted_apart(runs, phantoms, tmp_path):
    plain, mirrored = runs["cnn"], shutil.copytree(runs["cnn"], tmp_path / "mirrored")
    about = json.loads((mirrored / "checkpoint" / "config.json").read_text())
    about["config"]["tta"] = True
    write_json(mirrored / "checkpoint" / "config.json", about)
    one, other = (predict_split(ask(run, phantoms, tmp_path), quiet).run.folder for run in (plain, mirrored))
    assert one != other
    assert not np.allclose(table_of(one).filter(like="prob_"), table_of(other).filter(like="prob_"))


@pytest.mark.parametrize("kind", ["cnn", "probe"])
def test_images_that_were_learned_from_are_predicted_but_not_scored(runs, phantoms, tmp_path, kind):
    manifest = read_manifest(phantoms)
    found = predict_split(ask(runs[kind], phantoms, tmp_path, split="all"), quiet)
    table = table_of(found.run.folder, "all")
    learned = set(manifest.table["image_id"][manifest.table["split"] != "test"])
    assert set(table["image_id"]) == set(manifest.table["image_id"])
    assert set(table["image_id"][table["trained_on"]]) == learned
    assert found.scores.n == len(manifest.table) - len(learned)
    note = (
        f"{len(learned)} of {len(manifest.table)} images are among those that the model learned from, by their pixels"
    )
    assert note in found.scores.notes[0]
    own = json.loads((runs[kind] / "metrics.json").read_text())["test"]
    assert found.scores.metrics["macro_f1"] == pytest.approx(own["metrics"]["macro_f1"])
    seen = predict_split(ask(runs[kind], phantoms, tmp_path, split="train"), quiet)
    assert (seen.scores, seen.run.metrics()) == (None, {})
    assert "The model learned from all" in seen.unscored_reason
    again = predict_split(ask(runs[kind], phantoms, tmp_path, split="train"), quiet)
    assert (again.scores, again.unscored_reason, again.created) == (None, seen.unscored_reason, False)


def test_an_encoder_that_has_changed_is_refused(runs, phantoms, tmp_path):
    run = shutil.copytree(runs["probe"], tmp_path / "run")
    about = json.loads((run / "checkpoint" / "config.json").read_text())
    assert about["encoder"] == {"clip.weights": "none", "clip.seed": "0"}
    write_json(run / "checkpoint" / "config.json", about | {"encoder": {"clip.weights": "as they were"}})
    with pytest.raises(UserError, match="learned from embeddings of other weights than those that are in none now"):
        predict_split(ask(run, phantoms, tmp_path), quiet)


def test_classes_that_the_model_does_not_know_are_refused_mapped_or_left_out(runs, other, tmp_path):
    data = other({"COVID-19": "COVID-19", "Non-COVID": "Pneumonia", "Normal": "Other"})
    with pytest.raises(UserError, match=r"not 'Pneumonia', 'Other' of other: .* --map '?Pneumonia=…'? '?Other=…'? \("):
        predict_split(ask(runs["cnn"], data, tmp_path), quiet)
    for wrong in ("Pneumonia", "Cancer=Normal", "Pneumonia=Cancer"):
        with pytest.raises(UserError, match="must be DATA-CLASS=MODEL-CLASS"):
            predict_split(ask(runs["cnn"], data, tmp_path, map=(wrong,)), quiet)
    for second in ("Pneumonia=Normal", "Pneumonia="):
        with pytest.raises(UserError, match="--map: 'Pneumonia' is mapped twice, to 'Non-COVID' and to"):
            predict_split(ask(runs["cnn"], data, tmp_path, map=("Other=", "Pneumonia=Non-COVID", second)), quiet)
    found = predict_split(ask(runs["cnn"], data, tmp_path, split="all", map=("Pneumonia=Non-COVID", "Other=")), quiet)
    table, about = read_predictions(found.run.folder / "predictions" / "all.parquet")
    assert set(table["label"]) == {"COVID-19", "Non-COVID"}
    assert about["classes"] == ["COVID-19", "Non-COVID", "Normal"]
    left_out = int((read_manifest(data).table["label"] == "Other").sum())
    assert any(str(left_out) in note for note in found.scores.notes)


def test_images_without_labels_are_predicted_but_not_scored(runs, other, tmp_path):
    data = other({"COVID-19": "", "Non-COVID": "", "Normal": ""})
    found = predict_split(ask(runs["cnn"], data, tmp_path, split="all"), quiet)
    assert found.scores is None
    assert len(table_of(found.run.folder, "all")) == 30
    assert found.run.metrics() == {}


def test_what_is_predicted_is_not_predicted_again_after_a_death(runs, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 20)
    seen, call = [], module.PredictionActor.__call__

    def dying(self, item):
        seen.append(item["path"])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return call(self, item)

    monkeypatch.setattr(module.PredictionActor, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        predict_split(ask(runs["cnn"], phantoms, tmp_path, split="all"), quiet)
    found = predict_split(ask(runs["cnn"], phantoms, tmp_path, split="all"), quiet)
    assert len(seen) == 3 + 3  # of five
    whole = predict_split(ask(runs["cnn"], phantoms, tmp_path / "whole", split="all"), quiet)
    pd.testing.assert_frame_equal(table_of(found.run.folder, "all"), table_of(whole.run.folder, "all"), rtol=1e-5)


def test_what_is_no_run_is_refused(phantoms, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        predict_split(ask(tmp_path, phantoms, tmp_path), quiet)
