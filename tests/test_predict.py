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
from clipcovid.pipeline import embeddings_for
from clipcovid.tasks.configs import CnnConfig, FinetuneConfig, HybridConfig, ProbeConfig
from clipcovid.train.launch import launch

TINY = ClipConfig(model="tiny", pretrained="none")


def quiet(text):
    pass


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory) -> dict[str, Path]:
    """A finished run of every kind."""
    out = tmp_path_factory.mktemp("runs")
    common = {"data": phantoms, "out": out, "compute": HERE, "optim": OptimConfig(epochs=1, batch_size=32)}
    configs = {
        "cnn": CnnConfig(weights="none", image_size=32, **common),
        "hybrid": HybridConfig(weights="none", clip=TINY, **common),
        "concat": HybridConfig(weights="none", clip=TINY, join="concat", **common),
        "finetune": FinetuneConfig(clip=TINY, hf=False, **common),
        "lora": FinetuneConfig(clip=TINY, hf=False, method="lora", **common),
        "probe": ProbeConfig(clip=TINY, **(common | {"optim": ProbeConfig.optim})),
    }
    return {
        name: launch(config, embeddings=embeddings_for(config), log=quiet).run.folder
        for name, config in configs.items()
    }


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
    assert not predict_split(ask(runs[kind], phantoms, tmp_path), quiet).fresh


def test_classes_that_the_model_does_not_know_are_refused_mapped_or_left_out(runs, other, tmp_path):
    data = other({"COVID-19": "COVID-19", "Non-COVID": "Pneumonia", "Normal": "Other"})
    with pytest.raises(UserError, match="but not Pneumonia, Other of other: say what they are with --map Pneumonia="):
        predict_split(ask(runs["cnn"], data, tmp_path), quiet)
    for wrong in ("Pneumonia", "Cancer=Normal", "Pneumonia=Cancer"):
        with pytest.raises(UserError, match="must be DATA-CLASS=MODEL-CLASS"):
            predict_split(ask(runs["cnn"], data, tmp_path, map=(wrong,)), quiet)
    found = predict_split(ask(runs["cnn"], data, tmp_path, split="all", map=("Pneumonia=Non-COVID", "Other=")), quiet)
    table, about = read_predictions(found.run.folder / "predictions" / "all.parquet")
    assert set(table["label"]) == {"COVID-19", "Non-COVID"}
    assert about["classes"] == ["COVID-19", "Non-COVID", "Normal"]
    left_out = int((read_manifest(data).table["label"] == "Other").sum())
    assert any(str(left_out) in note for note in found.scores["notes"])


def test_images_without_labels_are_predicted_but_not_scored(runs, other, tmp_path):
    data = other({"COVID-19": "", "Non-COVID": "", "Normal": ""})
    found = predict_split(ask(runs["cnn"], data, tmp_path, split="all"), quiet)
    assert found.scores is None
    assert len(table_of(found.run.folder, "all")) == 30
    assert found.run.metrics() == {}


def test_what_is_predicted_is_not_predicted_again_after_a_death(runs, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 20)
    seen, call = [], module.Predicting.__call__

    def dying(self, item):
        seen.append(item["path"])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return call(self, item)

    monkeypatch.setattr(module.Predicting, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        predict_split(ask(runs["cnn"], phantoms, tmp_path, split="all"), quiet)
    found = predict_split(ask(runs["cnn"], phantoms, tmp_path, split="all"), quiet)
    assert len(seen) == 3 + 3  # of five
    whole = predict_split(ask(runs["cnn"], phantoms, tmp_path / "whole", split="all"), quiet)
    pd.testing.assert_frame_equal(table_of(found.run.folder, "all"), table_of(whole.run.folder, "all"), rtol=1e-5)


def test_what_is_no_run_is_refused(phantoms, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        predict_split(ask(tmp_path, phantoms, tmp_path), quiet)
