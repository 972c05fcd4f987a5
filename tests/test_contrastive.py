import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from parallel import run_ranks

from clipcovid.config import ClipConfig, ImagesConfig, OptimConfig, UserError
from clipcovid.data.manifest import read_manifest
from clipcovid.distributed import all_gather, rank, world_size
from clipcovid.methods.contrastive import (
    clip_loss,
    contrastive_loss,
    multi_positive_loss,
    positive_matrix,
    siglip_loss,
)
from clipcovid.methods.finetune.config import FinetuneConfig, LoraConfig
from clipcovid.methods.task import Examples, make_task

TINY = ClipConfig(model="tiny", pretrained="none")
KINDS = ["clip", "multi-positive", "siglip"]


def features(n=12, width=8, seed=0):
    drawn = torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=-1)


NOTHING = Examples(rows=pd.DataFrame({"image_id": [], "label": [], "caption": []}), read=lambda indices: {})


def build(task, train=NOTHING, state=None):
    return task.build(train, state or task.setup(None, None))


def task(**settings):
    config = FinetuneConfig(data="unused", clip=TINY, **settings)
    return make_task(config, ("COVID-19", "Non-COVID", "Normal"), ImagesConfig(size=64))


def naive_clip(logits):
    n, total = len(logits), 0.0
    for i in range(n):
        total -= np.log(np.exp(logits[i, i]) / sum(np.exp(logits[i, j]) for j in range(n)))
        total -= np.log(np.exp(logits[i, i]) / sum(np.exp(logits[j, i]) for j in range(n)))
    return total / (2 * n)


def test_losses_equal_naive_double_loops():
    images, texts = features()
    logits, matches = 5 * images @ texts.T, positive_matrix(torch.tensor([0, 0, 1, 2, 2, 2, 3, -1, -1, 4, 5, 0]))
    n, values = len(logits), logits.numpy()
    assert clip_loss(logits).item() == pytest.approx(naive_clip(values))
    total = 0.0
    for i in range(n):
        own = [j for j in range(n) if matches[i, j]]
        for axis in (values[i], values[:, i]):
            total -= sum(np.log(np.exp(axis[j]) / np.exp(axis).sum()) for j in own) / len(own)
    assert multi_positive_loss(logits, matches).item() == pytest.approx(total / (2 * n))
    total = 0.0
    for i in range(n):
        for j in range(n):
            sign, share = (1, 1 / sum(matches[i].tolist())) if matches[i, j] else (-1, 1)
            total += share * np.log1p(np.exp(-sign * values[i, j]))
    assert siglip_loss(logits, matches).item() == pytest.approx(total / n)


def test_an_unknown_key_matches_only_itself():
    assert positive_matrix(torch.tensor([-1, -1, -1])).equal(torch.eye(3, dtype=torch.bool))
    assert positive_matrix(torch.tensor([3, -1, 3])).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]


def test_where_captions_are_the_very_same_multi_positive_equals_clip():
    images, texts = features()
    keys = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 4, 4, 4, 5])
    logits = 20 * images @ texts[keys].T
    assert multi_positive_loss(logits, positive_matrix(keys)).item() == pytest.approx(
        clip_loss(logits).item(), abs=1e-6
    )


def test_labels_as_positives_are_another_loss_than_captions():
    images, texts = features()
    logits = 20 * images @ texts.T
    assert abs(multi_positive_loss(logits, positive_matrix(torch.arange(12) % 3)) - clip_loss(logits)) > 0.01


def test_siglip_without_the_mask_takes_equal_captions_for_negatives():
    images, texts = features()
    keys = torch.arange(12) % 3
    logits = 20 * images @ texts[keys].T
    own = torch.eye(12, dtype=torch.bool)
    gradients = []
    for matches in (own, positive_matrix(keys)):
        free = logits.clone().requires_grad_()
        siglip_loss(free, matches).backward()
        gradients.append(free.grad[0, 3].item())
    assert gradients[0] > 0 > gradients[1]  # pushed apart, drawn together


def everyones_loss(kind):
    """The loss and gradients of this process's share of the pairs."""
    images, texts = features()
    keys = torch.tensor([0, 0, 1, 2, 2, -1, 3, -1, 1, 4, 5, 0])
    share = slice(rank(), None, world_size())
    own = [value[share].clone().requires_grad_() for value in (images, texts)]
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-2.0, requires_grad=True)
    loss = contrastive_loss(*own, scale, bias, keys[share], kind)
    loss.backward()
    return loss.item(), [value.grad for value in own], scale.grad, bias.grad


@pytest.mark.parametrize("world_size", [3])
def test_the_loss_of_many_processes_is_that_of_one_and_so_are_the_gradients(world_size):
    found = run_ranks(losses_of_all_kinds, world_size)
    for kind in KINDS:
        loss, gradients, scale, bias = everyones_loss(kind)
        for number in range(world_size):
            theirs = found[number][kind]
            assert theirs[0] == pytest.approx(loss, abs=1e-6)
            for ours, other in zip(gradients, theirs[1], strict=True):
                assert (other / world_size - ours[number::world_size]).abs().max() < 1e-6  # DDP takes the mean
        assert sum(found[number][kind][2] for number in range(world_size)) / world_size == pytest.approx(scale.item())
        if kind == "siglip":
            assert found[0][kind][3].item() == pytest.approx(bias.item(), rel=1e-5)


def losses_of_all_kinds():
    return {kind: everyones_loss(kind) for kind in KINDS}


def test_gathering_alone_changes_nothing():
    tensor = torch.randn(3, 2)
    assert all_gather(tensor) is tensor


def trained_names(method):
    module = build(task(method=method))
    return [name for name, weight in module.named_parameters() if weight.requires_grad]


def test_each_method_trains_what_it_says():
    towers = {method: trained_names(method) for method in ("full", "lora", "vision", "text")}
    for method, names in towers.items():
        assert "clip.logit_scale" in names, method
    visual = {method: sum(".visual." in name for name in names) for method, names in towers.items()}
    assert visual["text"] == 0
    assert visual["full"] == visual["vision"] > 50
    assert len(towers["vision"]) == visual["vision"] + 1
    assert all("lora_" in name or name.endswith("logit_scale") for name in towers["lora"])
    assert any(".visual." in name for name in towers["lora"])
    assert any("clip.transformer" in name for name in towers["lora"])


def test_a_lora_target_that_trains_nothing_is_refused():
    with pytest.raises(UserError, match=r"out_proj.*no gradient"):
        build(task(method="lora", lora=LoraConfig(targets=("c_fc", "out_proj"))))
    with pytest.raises(UserError, match="no module of that name"):
        build(task(method="lora", lora=LoraConfig(targets=("nothing",))))


def test_lora_is_scaled_by_the_root_of_its_rank():
    chosen = task(method="lora", lora=LoraConfig(r=16, alpha=8.0))
    layer = next(inner for inner in build(chosen).modules() if hasattr(inner, "scaling"))
    assert layer.scaling["default"] == pytest.approx(8 / 16**0.5)


def test_merged_adapters_predict_as_they_did(phantoms):
    chosen = task(method="lora")
    module = build(chosen).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    batch = {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}
    with torch.no_grad():
        before = chosen.predictor(module)(batch)
        plain = task(method="full")
        assert (plain.predictor(build(plain).eval())(batch) - before).abs().max() > 1e-3
        chosen.select_on_validation(module, NOTHING, None, lambda predictor: {"macro_f1": 0.0})
        assert (chosen.predictor(module)(batch) - before).abs().max() < 1e-5
    assert not [name for name in module.state_dict() if "lora" in name]


def test_accumulation_which_would_take_negatives_away_is_refused():
    with pytest.raises(UserError, match="negatives"):
        FinetuneConfig(data="unused", optim=OptimConfig(accumulate=2))


def test_wise_ft_takes_the_mixture_that_validates_best_and_the_latest_of_equals():
    chosen = task(wise_ft=True)
    module = build(chosen)
    start = module.clip.visual.proj.detach().clone()
    with torch.no_grad():
        module.clip.visual.proj.add_(1.0)
    shares = []

    def validate(predictor):
        shares.append(float((module.clip.visual.proj - start).detach().mean()))
        return {"macro_f1": -abs(shares[-1] - 0.3)}

    assert chosen.select_on_validation(module, NOTHING, None, validate)[0]["wise_ft"] == 0.3
    assert shares == pytest.approx([step / 10 for step in range(11)], abs=1e-5)
    assert (module.clip.visual.proj - start).mean().item() == pytest.approx(0.3, abs=1e-5)
    equal, _ = chosen.select_on_validation(build(chosen), NOTHING, None, lambda predictor: {"macro_f1": 1.0})
    assert equal["wise_ft"] == 1.0


def test_siglip_gives_a_model_the_bias_that_it_lacks():
    module = build(task(loss="siglip", optim=OptimConfig(batch_size=50)))
    assert module.clip.logit_bias.item() == pytest.approx(np.log(1 / 49))
    assert module.clip.logit_bias.requires_grad


def test_siglip_starts_at_the_odds_of_a_match(phantoms):
    manifest = read_manifest(phantoms)
    chosen = task(loss="siglip", captions="labels", optim=OptimConfig(batch_size=20))
    state = chosen.setup(phantoms, manifest)
    examples = chosen.examples(phantoms, manifest, "train", state, training=True)
    keys = examples.read(np.arange(len(examples)))["key"]
    same = (keys[:, None] == keys)[~np.eye(len(keys), dtype=bool)].mean()
    assert mean_logit(chosen, examples, state) == pytest.approx(np.log(1 / (19 * (1 - same))), abs=0.2)
    alone = task(loss="siglip", captions="labels", positives="none", optim=OptimConfig(batch_size=20))
    state = alone.setup(phantoms, manifest)
    examples = alone.examples(phantoms, manifest, "train", state, training=True)
    assert mean_logit(alone, examples, state) == pytest.approx(np.log(1 / 19), abs=0.2)


@torch.no_grad()
def mean_logit(chosen, examples, state):
    """Of all pairs of training images and captions, before training, with a scale like a trained CLIP's."""
    state.model.logit_scale.fill_(np.log(90))
    module, batch = build(chosen, examples, state).eval(), examples.read(np.arange(len(examples)))
    seen, read, scale, bias = module(torch.from_numpy(batch["image"]), torch.from_numpy(batch["tokens"]))
    return (scale * seen @ read[batch["text_index"]].T + bias).mean().item()


class TestExamples:
    def read(self, phantoms, take, **settings):
        chosen = task(**settings)
        manifest = chosen.config.resolve_manifest(read_manifest(phantoms))
        return chosen.examples(phantoms, manifest, "train", chosen.setup(phantoms, manifest), training=True), take

    def test_equal_captions_are_encoded_once(self, phantoms):
        examples, _ = self.read(phantoms, None)
        batch = examples.read(np.arange(12))
        assert len(batch["tokens"]) == len(set(examples.rows["label"].iloc[:12])) <= 3
        assert len(batch["text_index"]) == len(batch["image"]) == 12
        same = [a == b for a in examples.rows["label"][:12] for b in examples.rows["label"][:12]]
        keys = batch["key"]
        assert [bool(a == b) for a in keys for b in keys] == same

    def test_labels_can_be_the_positives_of_the_data_sets_captions(self, phantoms):
        examples, _ = self.read(phantoms, None, captions="dataset", positives="label")
        batch = examples.read(np.arange(10))
        assert len(set(batch["key"].tolist())) <= 3 < len(batch["tokens"])
        unknown, _ = self.read(phantoms, None, captions="dataset", positives="none")
        assert (unknown.read(np.arange(10))["key"] == -1).all()

    def test_captions_from_a_table(self, phantoms, tmp_path):
        rows = read_manifest(phantoms).rows("train")
        table = rows[["image_id"]].assign(caption="lungs")
        table.loc[0, "caption"] = " "
        table.loc[1, "caption"] = "word " * 200
        table.to_csv(tmp_path / "captions.csv", index=False)
        examples, _ = self.read(phantoms, None, captions=str(tmp_path / "captions.csv"))
        assert len(examples) == len(rows) - 1
        assert any("without a caption" in note and count == 1 for note, count in examples.notes.items())
        assert any("cut off" in note and count == 1 for note, count in examples.notes.items())

    def test_a_table_of_other_images_is_refused(self, phantoms, tmp_path):
        (tmp_path / "c.csv").write_text("image_id,caption\nnobody,lungs\n")
        with pytest.raises(UserError, match="names none of the data set's images"):
            self.read(phantoms, None, captions=str(tmp_path / "c.csv"))
        (tmp_path / "c.csv").write_text("id,text\nnobody,lungs\n")
        with pytest.raises(UserError, match="lacks the columns caption, image_id"):
            self.read(phantoms, None, captions=str(tmp_path / "c.csv"))
