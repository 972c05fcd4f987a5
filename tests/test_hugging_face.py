"""CLIP as open_clip and as Hugging Face have it: the same embeddings, whichever way it went."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import Evil
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from clipcovid.config import ClipConfig, UserError
from clipcovid.identity import weights_hash
from clipcovid.models.clip import load_clip, save_clip
from clipcovid.models.clip_model import Clip
from clipcovid.models.hugging_face import conversion_problem, load_hf_clip, save_hf_clip
from clipcovid.models.lora import add_adapters, merge_adapters

CLOSE = {"atol": 1e-5, "rtol": 0}
TINY = ClipConfig(model="tiny", pretrained="none")
TEXTS = [
    "a chest X-ray of COVID-19 pneumonia",
    "NORMAL!! chest   x-ray\n\twithout   FINDINGS.",
    "Patient's 3.5 cm nodule (≥ 2×), 37.2 °C — it'll, don't…",
    "Röntgenaufnahme: Ärzte sehen Größe µ",
    "rayos X de tórax, niño de 5 años; 胸部X線写真 肺炎 😷🫁",
    "рентген ГРУДНОЙ клетки",
    "e\u0301tude d'une lésion ½ ²",
    "",
    "!",
    "a_b-c/d <b>&%$#@ 1234567890",
    "word " * 100,
    "Pneumonoultramicroscopicsilicovolcanoconiosis " * 20,
]


def perturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Nothing stays as it was initialised: biases 0, LayerNorms 1 and the temperature would hide what gets lost."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)


def pixels(side: int = 128) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def of_open_clip(model, tokenizer, side):
    return model.encode_image(pixels(side)), model.encode_text(tokenizer(TEXTS)), model.logit_scale.exp()


@torch.no_grad()
def of_hf(folder, side):
    model = CLIPModel.from_pretrained(folder).eval()
    context = model.config.text_config.max_position_embeddings
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=context, return_tensors="pt")
    seen = model.vision_model(pixels(side)).pooler_output
    read = model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    return model.visual_projection(seen), model.text_projection(read), model.logit_scale.exp()


def of_clip(clip: Clip):
    return of_open_clip(clip.model, clip.tokenizer, clip.image_size)


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def small(quick_gelu: bool = False, **text) -> Clip:
    """A perturbed model whose every size differs from the others, so that no two can be mixed up."""
    model_cfg = {
        "embed_dim": 24,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": 48,
            "layers": 2,
            "width": 36,
            "head_width": 12,
            "patch_size": 16,
            "mlp_ratio": 3.7362,
            "norm_kwargs": {"eps": 1e-3},
        },
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3} | text,
    }
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**model_cfg)
    perturb(model)
    how = {"size": 48, "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
    open_clip.model.set_model_preprocess_cfg(model, open_clip.transform.PreprocessCfg(**how).__dict__)
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    return Clip(model, tokenizer, model_cfg, device="cpu", dtype=torch.float32)


def hf_model(folder: Path, act: str = "quick_gelu", eos: int = 49407, **saved) -> Path:
    """A small random CLIPModel of Hugging Face, all weights perturbed; `saved` as save_pretrained takes it."""
    config = CLIPConfig(
        projection_dim=20,
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 101,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "hidden_act": act,
            "layer_norm_eps": 1e-4,
            "projection_dim": 20,
        },
        text_config={
            "hidden_size": 30,
            "intermediate_size": 123,  # int(30 * (123 / 30)) is 122
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "max_position_embeddings": 24,
            "hidden_act": act,
            "projection_dim": 20,
            "eos_token_id": eos,
        },
    )
    torch.manual_seed(2)
    model = CLIPModel(config)
    perturb(model, seed=2)
    model.save_pretrained(folder, **saved)
    return folder


def loaded(folder: Path) -> Clip:
    return load_clip(ClipConfig(pretrained=str(folder)))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """Our tiny, perturbed, saved in both forms."""
    clip = load_clip(TINY)
    perturb(clip.model)
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    save_clip(folder, clip)
    return clip, folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return hf_model(tmp_path_factory.mktemp("theirs"))


def test_tiny_is_the_same_in_all_its_forms(tiny_folder):
    clip, folder = tiny_folder
    expected = of_clip(clip)
    assert_equal(of_hf(folder / "hf", 128), expected)
    assert_equal(of_clip(loaded(folder.parent)), expected)
    plain = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
    assert_equal(of_open_clip(plain, clip.tokenizer, 128), expected)
    again = loaded(folder / "hf")
    assert_equal(of_clip(again), expected)
    back = again.model.state_dict()
    for name, value in clip.model.state_dict().items():
        assert torch.equal(back[name], value), name


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_model_of_odd_sizes_is_the_same_in_all_its_forms(quick_gelu, tmp_path):
    clip = small(quick_gelu)
    save_hf_clip(tmp_path, clip)
    expected = of_clip(clip)
    assert_equal(of_hf(tmp_path, 48), expected)
    back = loaded(tmp_path)
    assert_equal(of_clip(back), expected)
    assert back.model_cfg == clip.model_cfg | {
        "vision_cfg": back.model_cfg["vision_cfg"],
        "text_cfg": {**clip.model_cfg["text_cfg"], "mlp_ratio": 4.0},
    }
    assert (torch.stack(of_clip(small(not quick_gelu))[:1]) - expected[0]).abs().max() > 1e-3  # the activation matters


@pytest.mark.parametrize(("act", "eos"), [("quick_gelu", 49407), ("gelu", 49407), ("quick_gelu", 2)])
def test_their_model_is_loaded_exactly_and_survives_the_way_back(act, eos, tmp_path, tiny_folder):
    folder = hf_model(tmp_path / "theirs", act, eos)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(tiny_folder[1] / "hf" / name, folder)
    expected, clip = of_hf(folder, 32), loaded(folder)
    assert_equal(of_clip(clip), expected)
    assert clip.image_size == 32
    assert clip.tokenizer.context_length == 24
    save_clip(tmp_path / "ours", clip)
    assert_equal(of_clip(loaded(tmp_path / "ours")), expected)
    assert_equal(of_hf(tmp_path / "ours/hf", 32), expected)
    first, again = load_file(folder / "model.safetensors"), load_file(tmp_path / "ours/hf/model.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_shards_and_pickles_give_the_same(tmp_path, theirs):
    expected = of_clip(loaded(theirs))
    shards = hf_model(tmp_path / "shards", max_shard_size="1MB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert_equal(of_clip(loaded(shards)), expected)
    old = tmp_path / "old"  # as the first versions of transformers wrote it
    shutil.copytree(theirs, old, ignore=shutil.ignore_patterns("*.safetensors"))
    positions = {f"{tower}_model.embeddings.position_ids": torch.arange(17)[None] for tower in ("text", "vision")}
    torch.save(load_file(theirs / "model.safetensors") | positions, old / "pytorch_model.bin")
    assert_equal(of_clip(loaded(old)), expected)
    gone = next(iter(shards.glob("*.safetensors")))
    gone.unlink()
    with pytest.raises(UserError, match=f"names {gone.name}, which is not there"):
        loaded(shards)
    outside = f"../{theirs.name}/model.safetensors"
    edit(shards / "model.safetensors.index.json", weight_map={"logit_scale": outside})
    with pytest.raises(UserError, match="which is not there"):  # nothing outside the folder is read
        loaded(shards)


def test_code_in_a_pickle_is_not_run(tmp_path, theirs):
    shutil.copytree(theirs, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"logit_scale": Evil(str(tmp_path / "ran"))}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="could run code"):
        loaded(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_half_precision_and_identity(tmp_path, theirs):
    config = ClipConfig(pretrained=str(theirs))
    half = load_clip(config, precision="bf16")
    assert half.model.visual.conv1.weight.dtype == torch.bfloat16
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    assert (half.encode_images(images) * loaded(theirs).encode_images(images)).sum(dim=1).min() > 0.99
    same, other = tmp_path / "same", tmp_path / "other"
    for copy in (same, other):
        shutil.copytree(theirs, copy)
    vision = json.loads((other / "config.json").read_text())["vision_config"]
    edit(other / "config.json", vision_config=vision | {"layer_norm_eps": 1e-2})
    assert weights_hash(replace(config, pretrained=str(same)), 0) == weights_hash(config, 0)
    assert weights_hash(replace(config, pretrained=str(other)), 0) != weights_hash(config, 0)
    shards = replace(config, pretrained=str(hf_model(tmp_path / "shards", max_shard_size="1MB")))
    before, last = weights_hash(shards, 0), sorted((tmp_path / "shards").glob("*.safetensors"))[-1]
    save_file({name: value + 1 for name, value in load_file(last).items()}, last)
    assert weights_hash(shards, 0) != before


def test_the_tokenizer_gives_the_same_ids(tiny_folder):
    clip, folder = tiny_folder
    tokenizer = CLIPTokenizer.from_pretrained(folder / "hf")
    assert tokenizer.model_max_length == 77

    def ids(text):
        row = clip.tokenizer([text])[0].tolist()
        return row[: row.index(49407) + 1]

    for text in TEXTS:
        assert tokenizer(text, truncation=True, max_length=77)["input_ids"] == ids(text), text
    # What ftfy repairs for open_clip only, as save_hf says
    assert tokenizer('"don\'t" & co')["input_ids"] == ids("“don’t” &amp; co")
    assert tokenizer("“don’t” &amp; co")["input_ids"] != ids("“don’t” &amp; co")


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_the_image_processor_does_what_open_clips_transform_does(mode, tmp_path):
    clip = small()
    clip.model.visual.preprocess_cfg["resize_mode"] = mode
    save_hf_clip(tmp_path, clip)
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((120, 90), Image.Resampling.BICUBIC)
    how = clip.model.visual.preprocess_cfg
    expected = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**how), is_train=False)(image)
    found = CLIPImageProcessor.from_pretrained(tmp_path)(images=image, return_tensors="pt")["pixel_values"][0]
    assert (found - expected).abs().max() < 3 / 255 / 0.1  # Pillow and torchvision resize alike but for rounding
    back = loaded(tmp_path).model.visual.preprocess_cfg
    lists = [{key: list(np.ravel(value)) for key, value in cfg.items() if key != "size"} for cfg in (back, how)]
    assert lists[0] == lists[1]


def test_what_transformers_saves_again_is_loaded_too(tmp_path):
    """The processor makes one file of the preprocessing, and the model's own forward gives open_clip's logits."""
    clip = small(quick_gelu=True)
    save_hf_clip(tmp_path / "a", clip)
    model, info = CLIPModel.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(info.values()), info
    processor = CLIPProcessor.from_pretrained(tmp_path / "a")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8))
    given = processor(text=TEXTS, images=image, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**given).logits_per_image
        seen = clip.model.encode_image(given["pixel_values"], normalize=True)
        expected = clip.logit_scale * seen @ clip.model.encode_text(clip.tokenizer(TEXTS), normalize=True).T
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path / "b")
    processor.save_pretrained(tmp_path / "b")
    again = loaded(tmp_path / "b")
    assert_equal(of_clip(again), of_clip(clip))
    assert list(again.model.visual.preprocess_cfg["mean"]) == [0.4, 0.5, 0.6]


def test_preprocessing_that_is_said_in_other_ways(tmp_path, theirs):
    shutil.copytree(theirs, tmp_path, dirs_exist_ok=True)
    assert load_hf_clip(tmp_path)[2]["mean"] == open_clip.OPENAI_DATASET_MEAN
    said = {"size": 32, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    found = loaded(tmp_path).model.visual.preprocess_cfg
    assert (list(found["mean"]), list(found["std"]), found["interpolation"]) == ([0.5] * 3, [0.25] * 3, "bilinear")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said | {"do_normalize": False}))
    assert load_hf_clip(tmp_path)[2]["std"] == (1.0, 1.0, 1.0)
    for wrong in ({"do_rescale": False}, {"resample": 77}, {"image_mean": 3}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said | wrong))
        with pytest.raises(UserError):
            load_hf_clip(tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("missing", "lacks 1 weights of a CLIPModel, text_model.*: give the whole model"),
        ("quantized", "holds visual_projection.weight as whole numbers .int8."),
        ("unexpected", "has 1 weights that no CLIPModel has, classifier.weight"),
        ("shape", "can't be loaded: .*size mismatch"),
        ("garbage", "is text .'not weights at all'"),
        ("no weights", "holds no weights"),
        ("activation", "activations are gelu, quick_gelu"),
        ("end", "texts end at 5"),
        ("vocabulary", "vocabulary has 50000 tokens"),
        ("tokens", "is not CLIP's vocabulary"),
        ("siglip", "is a Hugging Face model of the type siglip"),
        ("nothing", "holds no open_clip_config.json.*Hugging Face"),
        ("not json", "holds no open_clip_config.json"),
    ],
)
def test_a_wrong_or_damaged_folder_is_one_sentence(damage, says, tmp_path, theirs):
    shutil.copytree(theirs, tmp_path, dirs_exist_ok=True)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    state, text = load_file(weights), json.loads(config.read_text())["text_config"]
    if damage == "missing":
        state.pop("text_model.encoder.layers.1.self_attn.k_proj.bias")
    elif damage == "unexpected":
        state["classifier.weight"] = torch.zeros(2, 2)
    elif damage == "quantized":
        state["visual_projection.weight"] = state["visual_projection.weight"].to(torch.int8)
    elif damage == "shape":
        state["visual_projection.weight"] = torch.zeros(20, 47)
    elif damage in ("activation", "end", "vocabulary"):
        wrong = {"activation": {"hidden_act": "gelu"}, "end": {"eos_token_id": 5}, "vocabulary": {"vocab_size": 50000}}
        edit(config, text_config=text | wrong[damage])
    elif damage == "tokens":
        (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    elif damage == "siglip":
        edit(config, model_type="siglip")
    elif damage == "nothing":
        config.unlink()
    elif damage == "not json":
        config.write_text("{")
    save_file(state, weights)
    if damage == "garbage":
        weights.write_bytes(b"not weights at all")
    elif damage == "no weights":
        weights.unlink()
    with pytest.raises(UserError, match=says) as error:
        loaded(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ViT-B-32", ""),
        ("ViT-B-32-quickgelu", ""),
        ("ViT-L-14-336", ""),
        ("ViT-H-14", ""),
        ("ViT-bigG-14", ""),
        ("ViT-B-16-plus-240", ""),
        ("RN50", "ResNet"),
        ("convnext_base", "timm"),
        ("roberta-ViT-B-32", "Hugging Face"),
        ("coca_ViT-B-32", "custom|tower has"),
        ("ViT-B-16-SigLIP", "timm"),
        ("EVA02-B-16", "timm"),
        ("ViT-SO400M-14-SigLIP", "timm"),
        ("ViT-B-32-256", ""),
    ],
)
def test_what_can_be_converted(name, reason):
    import re

    found = conversion_problem(open_clip.get_model_config(name))
    assert bool(found) == bool(reason)
    assert re.search(reason, found)


def test_what_cannot_be_expressed_is_refused_and_left_out(tmp_path):
    base = small()
    for changes in (
        {"init_logit_bias": -10.0},
        {"custom_text": True},
        {"nonscalar_logit_scale": True},
        {"text_cfg": base.model_cfg["text_cfg"] | {"no_causal_mask": True}},
        {"text_cfg": base.model_cfg["text_cfg"] | {"ls_init_value": 0.1}},
        {"text_cfg": base.model_cfg["text_cfg"] | {"tokenizer_kwargs": {"clean": "canonicalize"}}},
        {"vision_cfg": base.model_cfg["vision_cfg"] | {"pool_type": "avg"}},
        {"vision_cfg": base.model_cfg["vision_cfg"] | {"image_size": [48, 32]}},
        {"vision_cfg": base.model_cfg["vision_cfg"] | {"no_ln_pre": True}},
    ):
        assert conversion_problem(base.model_cfg | changes), changes
    assert conversion_problem(base.model_cfg, {"resize_mode": "longest"})
    base.model.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))  # as SigLIP's loss adds one
    with pytest.raises(UserError, match="bias"):
        save_hf_clip(tmp_path / "a", base)
    assert not (tmp_path / "a").exists()
    save_clip(tmp_path / "b", base)
    assert not (tmp_path / "b/hf").exists()
    save_clip(tmp_path / "c", small(), hf=False)
    assert not (tmp_path / "c/hf").exists()
    padded = small()
    padded.model.visual.preprocess_cfg["resize_mode"] = "longest"
    with pytest.raises(UserError, match="resized"):
        save_hf_clip(tmp_path / "d", padded)


def test_a_merged_lora_checkpoint_is_the_adapted_model(tmp_path):
    clip = small()
    before = of_clip(clip)
    handle = add_adapters(clip.model, r=4, alpha=8.0, dropout=0.0, targets=("attn", "c_fc", "c_proj"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in clip.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    clip.model.eval()
    expected = of_clip(clip)
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(expected[:2], before[:2], strict=True))
    merge_adapters(handle)
    save_clip(tmp_path, clip)
    assert not any("lora" in name for name in load_file(tmp_path / "model.safetensors"))
    plain = open_clip.create_model(f"local-dir:{tmp_path}", require_pretrained=True).eval()
    for form in (
        of_open_clip(plain, clip.tokenizer, 48),
        of_hf(tmp_path / "hf", 48),
        of_clip(loaded(tmp_path)),
        of_clip(loaded(tmp_path / "hf")),
    ):
        assert_equal(form, expected)
