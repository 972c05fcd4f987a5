import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clouds import CLASSES, MACHINE, Cloud, train
from conftest import HERE, shown_below

from clipcovid.config import ClipConfig, OptimConfig, UserError
from clipcovid.evaluate.predictions import read_predictions
from clipcovid.methods.coop.config import CoopConfig
from clipcovid.methods.coop.task import PromptLearner, context_tokens
from clipcovid.methods.task import load_checkpoint
from clipcovid.methods.tip_adapter.config import TipAdapterConfig
from clipcovid.methods.tip_adapter.task import CacheModel
from clipcovid.models.clip import load_clip
from clipcovid.models.clip_model import class_embeddings
from clipcovid.models.dual_encoder import DualEncoderSpec, build_dual_encoder
from clipcovid.prompts import PromptsConfig, build_prompts
from clipcovid.training.loop import predict
from clipcovid.training.trainer import train_model
from clipcovid.workflows.method import train_method
from clipcovid.workflows.train import embeddings_for

TINY = ClipConfig(model="tiny", pretrained="none")
FAST = OptimConfig(epochs=10, batch_size=64, lr=0.02, weight_decay=0, precision="fp32")


def quiet(text):
    pass


class Seen(Cloud):
    """A cloud of as many dimensions as tiny CLIP has."""

    def __init__(self, spread=0.3, seed=0):
        super().__init__(spread, seed)
        width = load_clip(TINY).encode_texts(["a"]).shape[1]
        rng = np.random.default_rng(seed)
        self.features = (self.features.astype(np.float32) @ rng.normal(size=(13, width))).astype(np.float16)


@pytest.fixture(scope="module")
def cloud():
    return Seen()


def hf_clip():
    encoders = {"arch": "resnet10t", "weights": "none", "text": "mini", "text_weights": "none"}
    towers = DualEncoderSpec(**encoders, width=32, projection="linear", image_size=64, context=32, vocabulary=200)
    return build_dual_encoder(
        towers, ["a chest X-ray of normal lungs", "photo x y of viral pneumonia of both lungs"], 0
    )


@pytest.mark.parametrize("words", ["a chest X-ray of", "photo"])
@pytest.mark.parametrize("kind", ["tiny", "hf"])
def test_learned_words_that_are_real_words_give_the_text_itself(words, kind):
    clip = load_clip(TINY) if kind == "tiny" else hf_clip()
    endings = ["normal lungs", "viral pneumonia of both lungs"]
    vectors = context_tokens(clip, words)
    module = PromptLearner(vectors[None], clip.encode_texts(endings), clip.logit_scale)
    module.attach(clip, endings)
    expected = clip.encode_texts([f"{words} {ending}" for ending in endings])
    torch.testing.assert_close(module.encode(), expected, atol=1e-5, rtol=0)
    assert (module.encode() - clip.encode_texts(endings)).abs().max() > 1e-3


def test_only_the_words_learn_and_they_learn(cloud, tmp_path):
    before = load_clip(TINY).model.state_dict()
    task, module, sets, _ = train(cloud, tmp_path, CoopConfig, clip=TINY, words=4, optim=FAST)
    assert [name for name, weight in module.named_parameters() if weight.requires_grad] == ["words"]
    after = module.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    truth = cloud.part("test")[1]
    trained = (predict(task.predictor(module), sets["test"], MACHINE).argmax(1) == truth).mean()
    untrained = (
        predict(task.predictor(task.build(sets["val"], cloud)), sets["test"], MACHINE).argmax(1) == truth
    ).mean()
    assert trained > max(untrained, 0.6) + 0.1


def test_words_of_each_class_and_words_to_start_from(cloud, tmp_path):
    one = OptimConfig(epochs=1, batch_size=64)
    _, module, _, _ = train(cloud, tmp_path / "a", CoopConfig, clip=TINY, words=4, per_class=True, optim=one)
    assert module.words.shape[:2] == (3, 4)
    assert not torch.equal(module.words[0], module.words[1])
    _, module, _, _ = train(cloud, tmp_path / "b", CoopConfig, clip=TINY, init="an X-ray", optim=one)
    assert module.words.shape[:2] == (1, load_clip(TINY).token_counts(["an X-ray"])[0] - 2)


def test_too_many_words_are_refused(cloud, tmp_path):
    with pytest.raises(UserError, match=r"100 learned words are too many.*Give fewer --words"):
        train(cloud, tmp_path, CoopConfig, clip=TINY, words=100)
    with pytest.raises(UserError, match="--words 0 must be"):
        CoopConfig(data="unused", words=0)


def test_logits_keep_their_digits_under_autocast():
    """In bf16 logits near 100 would have steps of a half, which are factors of 1.6 in probability."""
    seen, texts, keys = (
        F.normalize(torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows)), dim=-1)
        for rows in (40, 3, 20)
    )
    memory = CacheModel(keys, F.one_hot(torch.arange(20) % 3).float(), texts, 100.0)
    words = PromptLearner(torch.zeros(1, 4, 8), texts, 100.0)
    for logits in (lambda: memory(seen), lambda: memory(seen, initial_keys=True), lambda: words(seen, texts)):
        exact = logits()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(logits(), exact)


@pytest.mark.parametrize("kind", [CoopConfig, TipAdapterConfig])
def test_a_whole_run_predicts_the_same_from_its_checkpoint_without_a_clip(kind, phantoms, tmp_path, monkeypatch):
    config = kind(data=phantoms, out=tmp_path, clip=TINY, shots=("8",), optim=FAST, compute=HERE)
    embeddings = embeddings_for(config)
    done = train_model(config, embeddings=embeddings, log=quiet)
    table, _ = read_predictions(done.run.folder / "predictions" / "test.parquet")
    monkeypatch.setattr(f"clipcovid.methods.{kind.task}.task.load_clip", None)
    task, module, state = load_checkpoint(done.run.folder)
    examples = task.examples(phantoms, done.manifest, "test", embeddings)
    again = task.predictions_table(examples, predict(task.test_predictor(module, state), examples, MACHINE), state)
    probabilities = [name for name in again if name.startswith("prob_")]
    assert len(probabilities) == 3
    merged = table.set_index("image_id").loc[again["image_id"], probabilities]
    np.testing.assert_allclose(merged, again[probabilities], atol=1e-5)
    size = (done.run.folder / "checkpoint" / "model.safetensors").stat().st_size
    assert size < 200_000


def test_a_curve_has_a_run_for_each_number_of_shots(phantoms, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("clipcovid.workflows.few_shot.DRAWS_PER_SHOT", 2)
    one = OptimConfig(epochs=1, batch_size=64)
    train_method(TipAdapterConfig(data=phantoms, out=tmp_path, clip=TINY, shots=("1", "2"), optim=one, compute=HERE))
    (folder,) = tmp_path.glob("tip_adapter-curve-*")
    assert (folder / "figures" / "shots.png").exists()
    assert len(list((folder / "runs").glob("tip_adapter-*-shot-*"))) == 4
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training ")]
    assert [line.split(" · ")[:2] for line in lines[-2:]] == [
        ["training 3 of 4", "2 shots"],
        ["training 4 of 4", "2 shots"],
    ]
    assert all((" left" in line) == (line != lines[-1]) for line in lines)
    assert len(shown_below(tmp_path)[folder.name]) == 4


def naive_tip(seen, keys, labels, texts, scale, weight, sharpness):
    """The paper's formula, an image and a key at a time, each class's sum scaled to the mean class size."""
    counts = np.bincount(labels, minlength=len(texts))
    logits = np.zeros((len(seen), len(texts)))
    for i, one in enumerate(seen):
        one = one / np.linalg.norm(one)
        for k in range(len(texts)):
            logits[i, k] = scale * float(one @ texts[k])
        for key, label in zip(keys, labels, strict=True):
            near = np.exp(-sharpness * (1 - float(one @ (key / np.linalg.norm(key)))))
            logits[i, label] += weight * near * counts[counts > 0].mean() / counts[label]
    return logits


def test_a_memory_is_the_papers_formula(cloud, tmp_path):
    still = OptimConfig(epochs=1, batch_size=64, lr=1e-12)
    task, module, sets, chosen = train(cloud, tmp_path, TipAdapterConfig, clip=TINY, optim=still)
    texts = class_embeddings(load_clip(TINY), build_prompts(PromptsConfig(), CLASSES))
    keys, labels = cloud.part("train")
    scale = load_clip(TINY).logit_scale
    for weight, sharpness in ((0.0, 1.0), (1.0, 5.5), (10.0, 20.0)):
        module.weight[1], module.sharpness[1] = weight, sharpness
        expected = naive_tip(cloud.part("test")[0][:20], keys, labels, texts, scale, weight, sharpness)
        found = predict(task.variants(module, cloud)["training-free"], sets["test"], MACHINE)[:20]
        np.testing.assert_allclose(found, F.softmax(torch.from_numpy(expected), dim=1), atol=1e-4)
    assert set(chosen) == {"trained", "training-free"}


def test_the_validation_split_chooses_how_much_the_memory_weighs(cloud, tmp_path):
    task, module, sets, chosen = train(cloud, tmp_path, TipAdapterConfig, clip=TINY, optim=FAST, shots=("4",))
    best = task.validation_scores(sets["val"], predict(task.predictor(module), sets["val"], MACHINE))["macro_f1"]
    for weight in (0.0, 1.0, 30.0):
        module.weight[0] = weight
        other = task.validation_scores(sets["val"], predict(task.predictor(module), sets["val"], MACHINE))["macro_f1"]
        assert other <= best
    assert chosen["trained"]["weight"] > 0
    assert module.keys.shape[0] == 12
    assert not torch.equal(module.keys, module.plain)


def test_a_memory_without_images_of_a_class_is_finite(cloud, tmp_path):
    alone = Seen()
    table = alone.manifest.table
    kept = table[(table["split"] != "train") | (table["label"] != "a")]
    alone.manifest = type(alone.manifest)(table=kept.reset_index(drop=True), classes=CLASSES, dataset="no a")
    task, module, sets, _ = train(alone, tmp_path, TipAdapterConfig, clip=TINY, optim=FAST)
    assert np.isfinite(predict(task.predictor(module), sets["test"], MACHINE)).all()
    assert module.values[:, 0].sum() == 0
