"""Captioning jobs: the dual encoder and the captioner, from training to predictions of other data."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import HERE

from clipcovid.config import ClipConfig, ImagesConfig, OptimConfig, UserError
from clipcovid.data.manifest import read_manifest, write_manifest
from clipcovid.evaluate import captions
from clipcovid.evaluate.captions import BASELINES
from clipcovid.evaluate.predictions import read_predictions
from clipcovid.inference import predict as prediction
from clipcovid.inference.predict import PredictConfig, predict_split
from clipcovid.methods.caption.config import DualEncoderConfig
from clipcovid.methods.captioner.config import CaptionerConfig
from clipcovid.methods.captioner.task import tokenize
from clipcovid.methods.configs import NO_AUGMENT
from clipcovid.methods.contrastive import contrastive_loss, soft_loss
from clipcovid.methods.task import load_checkpoint, make_task
from clipcovid.models.decoder import build_decoder, load_or_train_tokenizer
from clipcovid.training.trainer import train_model
from clipcovid.workflows.train import embeddings_for, train

OTHERS = {"hypothesis_frequent", "hypothesis_random", "hypothesis_nearest"}


def quiet(text):
    pass


@pytest.fixture(scope="module", autouse=True)
def without_java():
    """METEOR takes many seconds to start; test_caption_scores.py has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions.shutil, "which", lambda name: None)
        yield


def caption(data, out, **settings):
    optim = OptimConfig(epochs=2, batch_size=16, lr=1e-3, precision="fp32")
    given = {"weights": "none", "captions": "dataset", "image_size": 32, "width": 32, "optim": optim, "compute": HERE}
    return DualEncoderConfig(data=data, out=out, augment=NO_AUGMENT, **(given | settings))


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    config = caption(phantoms, tmp_path_factory.mktemp("caption"), name="caption")
    return train_model(config, log=quiet)


@pytest.fixture
def bare(phantoms, tmp_path):
    """The phantoms without captions, labels and further columns; to be changed at will."""
    data = tmp_path / "bare"
    data.mkdir()
    (data / "images").symlink_to(phantoms / "images")
    manifest = read_manifest(phantoms)
    write_manifest(data, dataclasses.replace(manifest, table=manifest.table.assign(caption="", label="")))
    return data


def test_a_run_has_captions_from_the_training_split_with_ranks_and_baselines(finished, phantoms):
    table, about = read_predictions(finished.run.folder / "predictions" / "test.parquet")
    manifest = read_manifest(phantoms)
    said = set(manifest.rows("train")["caption"])
    assert about["task"] == "captions"
    assert set(table["image_id"]) == set(manifest.rows("test")["image_id"])
    for column in {"hypothesis", *OTHERS}:
        assert set(table[column]) <= said, column
    assert set(table["hypothesis_own"]) <= set(table["reference"])
    truth = manifest.table.set_index("image_id")["caption"]
    assert (table["reference"] == table["image_id"].map(truth)).all()
    assert table["hypothesis_frequent"].nunique() == 1
    assert table["image_to_text_rank"].between(1, len(table)).all()
    right = table["image_to_text_rank"] == 1
    assert (table.loc[right, "hypothesis_own"] == table.loc[right, "reference"]).all()
    body = finished.scores
    assert set(body.baselines) == {BASELINES[name] for name in (*OTHERS, "hypothesis_own")}
    assert body.metrics["image_to_text/recall_1"] == pytest.approx(right.mean())
    assert (finished.run.folder / "figures" / "test_captions.png").exists()
    json.dumps(body.to_json(), allow_nan=False)


def test_its_checkpoint_predicts_the_same_again(finished, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "ROWS_PER_SHARD", 5)  # ranks are among all images, however few are kept at once
    config = PredictConfig(run=finished.run.folder, data=phantoms, out=tmp_path, compute=HERE)
    again = predict_split(config, log=quiet)
    ours, theirs = (
        read_predictions(run.folder / "predictions" / "test.parquet")[0] for run in (again.run, finished.run)
    )
    pd.testing.assert_frame_equal(ours, theirs)


def test_images_without_a_caption_get_one_and_no_score(finished, bare, tmp_path):
    predicted = predict_split(PredictConfig(run=finished.run.folder, data=bare, out=tmp_path, compute=HERE), log=quiet)
    table, _ = read_predictions(predicted.run.folder / "predictions" / "test.parquet")
    assert predicted.scores is None
    assert "reference" not in table
    assert (table["hypothesis"] != "").all()


def test_its_encoders_are_a_clip_for_every_other_job(finished, phantoms):
    from clipcovid.inference.embed import EmbedConfig, embed

    encoder = ClipConfig(pretrained=str(finished.run.folder), precision="fp32")
    store = embed(EmbedConfig(data=phantoms, clip=encoder, compute=HERE), log=quiet)
    ids = read_manifest(phantoms).rows("test")["image_id"]
    task, module, state = load_checkpoint(finished.run.folder)
    examples = task.examples(phantoms, task.config.resolve_manifest(read_manifest(phantoms)), "test", state)
    batch = examples.read(np.arange(5))
    padding = state.clip.model.text.config.pad_token_id
    assert (batch["tokens"] != padding).any(axis=0).all(), "a batch is no wider than its longest caption"
    there = {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()}
    with torch.no_grad():
        own = task.test_predictor(module, state)(there)[:, 0]
    assert torch.from_numpy(store.load(ids[:5]).astype(np.float32)).allclose(own, atol=2e-3)


def test_long_odd_and_missing_captions(bare, tmp_path):
    manifest = read_manifest(bare)
    texts = ["胸部レントゲン写真", "a normal chest", "a chest", ""]
    first = ~manifest.table["split"].duplicated()  # of each split: scoring so long a text takes seconds
    written = ["word " * 2000 if long else texts[number % 4] for number, long in enumerate(first)]
    write_manifest(bare, dataclasses.replace(manifest, table=manifest.table.assign(caption=written)))
    said = []
    trained = train_model(
        caption(bare, tmp_path, context=24, optim=OptimConfig(epochs=1, batch_size=16)), log=said.append
    )
    text = " ".join(said)
    train = manifest.table["split"] == "train"
    missing = sum(not caption for caption, there in zip(written, train, strict=True) if there)
    assert f"{missing} training images without a caption are left out." in said
    assert "captions are longer than the model's context and cut off" in text
    assert "caption tokens are cut off" in text
    assert trained.scores.n < len(manifest.rows("test"))
    assert any("without a caption are left out" in note for note in trained.scores.notes)
    write_manifest(bare, manifest)
    with pytest.raises(UserError, match=r"No image of the train split .* has a caption"):
        train_model(caption(bare, tmp_path, name="none"), log=quiet)
    with pytest.raises(UserError, match="planet"):
        train_model(caption(bare, tmp_path, name="t", captions="template", caption_template="a {planet}"), log=quiet)


def test_towers_of_an_open_clip_and_frozen_ones(phantoms, tmp_path):
    tiny = {"towers": "clip", "clip": ClipConfig(model="tiny", pretrained="none")}
    one_epoch = OptimConfig(epochs=1, batch_size=16)
    assert train_model(caption(phantoms, tmp_path, optim=one_epoch, **tiny), log=quiet).scores.n > 0
    config = caption(phantoms, tmp_path, freeze="image", loss="soft")
    manifest = config.resolve_manifest(read_manifest(phantoms))
    task = make_task(config, manifest.classes, ImagesConfig(**manifest.info["images"]))
    state = task.setup(phantoms, manifest)
    examples = task.examples(phantoms, manifest, "train", state, training=True)
    trained = {name for name, weight in task.build(examples, state).named_parameters() if weight.requires_grad}
    assert not any(name.startswith("clip.visual.trunk") for name in trained)
    assert any(name.startswith("clip.visual.head") for name in trained)
    assert any(name.startswith("clip.text.transformer") for name in trained)
    module, batch = task.build(examples, state).train(), examples.read(np.arange(8))
    still = {name: value.clone() for name, value in module.clip.visual.trunk.named_buffers()}
    module(torch.from_numpy(batch["image"]), torch.from_numpy(batch["tokens"]))
    assert all(torch.equal(value, still[name]) for name, value in module.clip.visual.trunk.named_buffers())
    assert module.clip.text.transformer.training


def test_soft_targets_are_those_of_a_naive_loop():
    drawn = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images, texts = F.normalize(drawn, dim=-1)
    logits, shares = 3 * images @ texts.T, torch.zeros(7, 7, dtype=torch.float64)
    for i in range(7):
        for j in range(7):
            shares[i, j] = torch.exp(3 * (images[i] @ images[j] + texts[i] @ texts[j]) / 2)
        shares[i] /= shares[i].sum()
    there = -(shares * logits.log_softmax(dim=1)).sum(dim=1).mean()
    back = -(shares * logits.T.log_softmax(dim=1)).sum(dim=1).mean()
    assert soft_loss(images, texts, torch.tensor(3.0)).item() == pytest.approx(((there + back) / 2).item())
    whole = contrastive_loss(images, texts, torch.tensor(3.0), None, torch.arange(7), "soft")
    assert whole.item() == pytest.approx(soft_loss(images.float(), texts.float(), torch.tensor(3.0)).item())


def captioner(data, out, **settings):
    optim = OptimConfig(epochs=20, batch_size=16, lr=3e-3)
    given = {
        "captions": "dataset",
        "context": 48,
        "clip": ClipConfig(model="tiny", pretrained="none"),
        "optim": optim,
        "beams": 2,
    }
    return CaptionerConfig(data=data, out=out, compute=HERE, **(given | settings))


@pytest.fixture(scope="module")
def written(phantoms, tmp_path_factory):
    config = captioner(phantoms, tmp_path_factory.mktemp("captioner"))
    return train_model(config, embeddings=embeddings_for(config), log=quiet)


def test_a_template_that_can_not_be_filled_is_known_before_images_are_embedded(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr("clipcovid.workflows.train.embed", lambda *_: pytest.fail("embedded first"))
    config = captioner(phantoms, tmp_path, captions="template", caption_template="a scan of {nowhere}")
    with pytest.raises(UserError, match=r"\{nowhere\}, and this data set has no such column"):
        train(config)


def test_a_captioner_writes_sentences_by_both_searches(written, phantoms):
    table, about = read_predictions(written.run.folder / "predictions" / "test.parquet")
    assert about["task"] == "captions"
    assert {"hypothesis", "hypothesis_greedy", "reference", *OTHERS} <= set(table)
    words = set(re.findall(r"\w+", " ".join(read_manifest(phantoms).rows("train")["caption"])))
    known = [word in words for text in table["hypothesis"] for word in re.findall(r"\w+", text)]
    assert np.mean(known) > 0.8
    losses = [line["val/loss"] for line in written.run.history()]
    assert losses[-1] < 0.7 * losses[0]


def test_its_checkpoint_writes_the_same_again(written, phantoms, bare, tmp_path):
    config = PredictConfig(run=written.run.folder, data=phantoms, out=tmp_path, compute=HERE)
    again = predict_split(config, log=quiet)
    ours, theirs = (
        read_predictions(run.folder / "predictions" / "test.parquet")[0] for run in (again.run, written.run)
    )
    pd.testing.assert_frame_equal(ours, theirs)
    other = predict_split(dataclasses.replace(config, data=bare), log=quiet)
    table, _ = read_predictions(other.run.folder / "predictions" / "test.parquet")
    assert table["hypothesis"].tolist() == theirs.set_index("image_id").loc[table["image_id"], "hypothesis"].tolist()


def test_a_decoder_can_learn_a_caption_by_heart():
    texts = ["a large left effusion, 7 cm", "両側のすりガラス影", "normal"]
    words = load_or_train_tokenizer("mini", texts, 400)
    module = build_decoder("mini", words, feature_dim=8, prefix=2, context=96, dropout=0.0, seed=0)
    images = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    task = make_task(captioner("unused", "unused", context=96), ("a",), ImagesConfig())
    tokens, cut = tokenize(words, texts, 96)
    assert cut == 0
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(60):
        task.loss(module, {"embedding": images, "tokens": torch.from_numpy(tokens)})["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    module.eval()
    for beams in (1, 3):
        ids = module.generate(images, beams=beams, length=40)
        assert [text.strip() for text in words.batch_decode(ids, skip_special_tokens=True)] == texts


def test_a_published_gpt2_is_loaded_whole(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    words = load_or_train_tokenizer("mini", ["a b c", "d e f"], 300)
    torch.manual_seed(5)
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_positions=64, n_embd=16, n_layer=2, n_head=2, **ends))
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    how = {"feature_dim": 8, "prefix": 2, "dropout": 0.1, "seed": 0}
    module = build_decoder(str(tmp_path), load_or_train_tokenizer(str(tmp_path), [], 0), context=40, **how)
    for key, value in model.state_dict().items():
        assert module.body.state_dict()[key].equal(value), key
    with pytest.raises(UserError, match="64 places"):
        build_decoder(str(tmp_path), words, context=90, **how)
    with pytest.raises(UserError, match="can't be had"):
        build_decoder(str(tmp_path / "nowhere"), words, context=40, **how)


def test_settings_that_can_not_be_are_refused(tmp_path):
    with pytest.raises(UserError, match="accumulate"):
        caption(tmp_path, tmp_path, optim=OptimConfig(accumulate=2))
    with pytest.raises(UserError, match="--width"):
        caption(tmp_path, tmp_path, width=1)
    with pytest.raises(UserError, match="--beams"):
        captioner(tmp_path, tmp_path, beams=0)
