import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import Evil
from PIL import Image
from safetensors.torch import load_file, save_file
from torchscript_files import scripted

from clipcovid.config import ClipConfig, ImagesConfig, UserError
from clipcovid.data.images import decode_pixels, fit_image
from clipcovid.identity import weights_hash
from clipcovid.inference.zeroshot import classify
from clipcovid.models import clip as clip_module
from clipcovid.models.clip import load_clip, save_clip
from clipcovid.models.clip_model import class_embeddings
from clipcovid.models.state_dicts import print_note

TINY = ClipConfig(model="tiny", pretrained="none")
TEXTS = ["a chest X-ray of COVID-19 pneumonia", "a normal chest X-ray", "a dog"]


@pytest.fixture(scope="module")
def tiny():
    return load_clip(TINY)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """A colour PNG that is not square, with structure at all scales."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 52, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(pixels).resize((311, 237), Image.Resampling.BICUBIC).save(path)
    return path


def images(n=5, size=128, channels=None):
    shape = (n, size, size) if channels is None else (n, size, size, channels)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def test_zero_shot_logits_equal_plain_open_clips(picture, tmp_path):
    """The same ViT-B-32 weights, read from the same file, and the same picture: only the order of the sums may differ."""
    weights = tmp_path / "vit.safetensors"
    torch.manual_seed(3)
    plain, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    save_file(plain.state_dict(), weights)
    plain = open_clip.create_model("ViT-B-32", pretrained=str(weights)).eval()
    with torch.no_grad():
        image = plain.encode_image(preprocess(Image.open(picture))[None], normalize=True)
        text = plain.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS), normalize=True)
        expected = (plain.logit_scale.exp() * image @ text.T).numpy()

    ours = load_clip(ClipConfig(model="ViT-B-32", pretrained=str(weights)))
    how = ImagesConfig(size=ours.image_size, mode="rgb", fit="crop")
    pixels = fit_image(decode_pixels(picture.read_bytes(), max_pixels=how.max_pixels), how)
    logits = ours.logit_scale * (ours.encode_images(pixels[None]) @ ours.encode_texts(TEXTS).T).numpy()
    assert np.abs(logits - expected).max() < 1e-4
    probabilities = torch.from_numpy(expected).double().softmax(dim=-1).numpy()
    assert np.abs(classify(ours, [pixels], TEXTS) - probabilities).max() < 1e-5


def test_the_model_of_openais_weights_uses_their_activation(monkeypatch):
    """OpenAI's weights were trained with QuickGELU, which open_clip's ViT-B-32 does not have unless told so."""
    asked = {}

    def create(name, **settings):
        asked.update(settings)
        raise RuntimeError("no network in tests")

    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setattr(clip_module, "check_clip_available", lambda config: None)
    with pytest.raises(UserError, match="can't be had"):
        load_clip(ClipConfig(model="ViT-B-32", pretrained="openai"))
    assert asked["force_quick_gelu"] is True
    assert asked["require_pretrained"] is True
    with pytest.raises(UserError):
        load_clip(ClipConfig(model="ViT-B-32", pretrained="laion2b_s34b_b79k"))
    assert asked["force_quick_gelu"] is False


def test_gray_pixels_give_what_the_same_pixels_in_three_channels_give(tiny):
    gray = images()
    torch.testing.assert_close(tiny.encode_images(gray), tiny.encode_images(np.repeat(gray[..., None], 3, axis=3)))


def test_pixels_of_another_size_are_resized_as_pillow_does(tiny):
    noise = Image.fromarray(images(1, 50)[0])  # smooth at 200 px: Pillow clips between its two passes, torch at the end
    big = np.asarray(noise.resize((200, 200), Image.Resampling.BICUBIC))[None]
    small = fit_image(big[0], ImagesConfig(size=128))
    difference = (tiny.preprocess(big) - tiny.preprocess(small[None])).abs().max()
    assert difference < 3 / 255 / 0.26  # rounding in two passes against one: at most a few grey levels


def test_features_have_unit_length_and_do_not_depend_on_the_batch(tiny):
    pixels = images(7)
    features = tiny.encode_images(pixels)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(features[3:4], tiny.encode_images(pixels[3:4]), atol=1e-5, rtol=0)
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_half_precision_stays_close(tiny):
    half = load_clip(TINY, precision="bf16")
    cosine = (half.encode_images(images()) * tiny.encode_images(images())).sum(dim=1)
    assert cosine.min() > 0.99


def test_random_weights_follow_from_the_seed(tiny):
    pixels = images(2)
    assert torch.equal(load_clip(TINY).encode_images(pixels), tiny.encode_images(pixels))
    assert not torch.equal(load_clip(TINY, seed=1).encode_images(pixels), tiny.encode_images(pixels))
    assert weights_hash(TINY, 0) != weights_hash(TINY, 1)


@pytest.mark.parametrize("wrap", ["run", "checkpoint", "file", "pt"])
def test_what_is_saved_is_loaded_whole(wrap, tmp_path, tiny):
    other = load_clip(TINY, seed=5)  # loading must change every weight of seed 0's model
    folder = tmp_path / "run" / "checkpoint"
    save_clip(folder, other)
    if wrap == "pt":
        torch.save(other.model.state_dict(), tmp_path / "weights.pt")
    place = {
        "run": folder.parent,
        "checkpoint": folder,
        "file": folder / "model.safetensors",
        "pt": tmp_path / "weights.pt",
    }
    loaded = load_clip(ClipConfig(model="tiny", pretrained=str(place[wrap])))
    for name, value in other.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert loaded.image_size == 128
    assert loaded.encode_texts(["a"]).shape == (1, 128)


def test_open_clip_itself_loads_our_checkpoint(tmp_path, tiny):
    save_clip(tmp_path, tiny)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}", require_pretrained=True).eval()
    with torch.no_grad():
        features = theirs.encode_image(tiny.preprocess(images()), normalize=True)
    torch.testing.assert_close(features, tiny.encode_images(images()))


def test_a_file_is_known_by_its_content(tmp_path, tiny):
    save_clip(tmp_path / "a", tiny)
    save_clip(tmp_path / "b", tiny)
    same = [weights_hash(ClipConfig(model="tiny", pretrained=str(tmp_path / name)), 0) for name in "ab"]
    assert same[0] == same[1]
    save_clip(tmp_path / "b", load_clip(TINY, seed=1))
    assert weights_hash(ClipConfig(model="tiny", pretrained=str(tmp_path / "b")), 0) != same[0]


@pytest.mark.parametrize(
    ("model", "pretrained", "says"),
    [
        ("tiny", "openai", "tiny has no published weights"),
        ("ViT-B-31", "none", "is unknown: use .*ViT-B-32"),
        ("ViT-B-32", "opanai", "is no weights tag of ViT-B-32: use .*openai"),
        ("tiny", "gone.safetensors", "no such file"),
        ("tiny", "outputs/gone", "no such file"),
        ("hf-hub:org/model", "gone.pt", "brings its own weights"),
    ],
)
def test_weights_that_cannot_be_meant_are_one_sentence(model, pretrained, says):
    with pytest.raises(UserError, match=says) as error:
        load_clip(ClipConfig(model=model, pretrained=pretrained))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["other model", "missing tensor", "no weights", "garbage", "pickle"])
def test_damaged_or_foreign_weights_never_become_random_ones(damage, tmp_path, tiny):
    save_clip(tmp_path, tiny)
    path = tmp_path / "model.safetensors"
    config = ClipConfig(model="tiny", pretrained=str(tmp_path))
    state = tiny.model.state_dict()
    if damage == "other model":
        config = ClipConfig(model="ViT-B-32", pretrained=str(path))
    elif damage == "missing tensor":
        save_file({name: state[name].contiguous() for name in list(state)[1:]}, path)
    elif damage == "no weights":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"not weights at all")
    elif damage == "pickle":  # code in a checkpoint is not run
        config = ClipConfig(model="tiny", pretrained=str(tmp_path / "evil.pt"))
        torch.save({"a": Evil(str(tmp_path / "ran"))}, tmp_path / "evil.pt")
    with pytest.raises(UserError):
        load_clip(config)
    assert not (tmp_path / "ran").exists()


CLIP_WRAPPERS = {
    "torch.compile": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "both": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "model_state_dict": lambda s: {"model_state_dict": s, "epoch": 3},
    "open_clip's trainer": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "best": np.float64(0.9)},
    "Lightning": lambda s: {"state_dict": {f"clip.{k}": v for k, v in s.items()}, "hyper_parameters": {"lr": 1}},
    "half precision": lambda s: {k: v.half() for k, v in s.items()},
}


@pytest.mark.parametrize("wrapper", CLIP_WRAPPERS)
def test_wrapped_weights_give_the_features_of_the_plain_ones(wrapper, tmp_path):
    other = load_clip(TINY, seed=5)
    torch.save(CLIP_WRAPPERS[wrapper](dict(other.model.state_dict())), tmp_path / "weights.pt")
    loaded = load_clip(ClipConfig(model="tiny", pretrained=str(tmp_path / "weights.pt")))
    difference = (loaded.encode_images(images()) - other.encode_images(images())).abs().max()
    assert difference <= (1e-2 if wrapper == "half precision" else 0)


def test_openais_archive_is_loaded_without_being_run_and_with_its_activation(tmp_path, tiny, capsys, monkeypatch):
    print_note.cache_clear()
    sizes = {"input_resolution": 128, "context_length": 77, "vocab_size": 49408}
    halves = {name: value.half() for name, value in load_clip(TINY, seed=5).model.state_dict().items()}
    path = scripted(tmp_path / "tiny.pt", halves | {name: torch.tensor(value) for name, value in sizes.items()})
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("ran the archive"))
    loaded = load_clip(ClipConfig(model="tiny", pretrained=str(path)))
    assert torch.equal(loaded.model.visual.conv1.weight, halves["visual.conv1.weight"].float())
    assert "QuickGELU" in type(loaded.model.visual.transformer.resblocks[0].mlp.gelu).__name__
    assert loaded.model_cfg["quick_gelu"]
    assert "gets QuickGELU" in capsys.readouterr().err


def test_a_hugging_face_file_wants_its_folder(tmp_path):
    save_clip(tmp_path, load_clip(TINY))
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf.safetensors")
    torch.save(load_file(tmp_path / "hf.safetensors"), tmp_path / "hf.bin")
    for name in ("hf.safetensors", "hf.bin"):
        with pytest.raises(UserError, match=r"weights file of a Hugging Face CLIPModel.*give its folder"):
            load_clip(ClipConfig(model="tiny", pretrained=str(tmp_path / name)))


def test_what_does_not_fit_says_what_it_looks_like(tmp_path, tiny):
    save_clip(tmp_path, tiny)
    with pytest.raises(
        UserError, match=r"does not fit ViT-S-32: .*missing.*another shape.*looks like an open_clip tiny"
    ):
        load_clip(ClipConfig(model="ViT-S-32", pretrained=str(tmp_path / "model.safetensors")))


def test_weights_with_nan_are_refused_wherever_they_come_from(tmp_path):
    broken = load_clip(TINY, seed=1)
    with torch.no_grad():
        broken.model.visual.proj[0, 0] = float("nan")
    save_clip(tmp_path, broken)
    torch.save(broken.model.state_dict(), tmp_path / "weights.pt")
    for place in (tmp_path, tmp_path / "model.safetensors", tmp_path / "weights.pt", tmp_path / "hf"):
        with pytest.raises(UserError, match="1 numbers that are not finite in"):
            load_clip(ClipConfig(model="tiny", pretrained=str(place)))


def test_an_open_clip_folder_of_several_weights_is_ambiguous(tmp_path, tiny):
    save_clip(tmp_path, tiny)
    (tmp_path / "model.safetensors").rename(tmp_path / "epoch_1.safetensors")
    (tmp_path / "epoch_2.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"several weights files \(epoch_1.safetensors, epoch_2.pt\)"):
        load_clip(ClipConfig(pretrained=str(tmp_path)))


def test_the_same_weights_of_another_architecture_are_another_encoder(tmp_path, tiny):
    save_clip(tmp_path, tiny)
    before = weights_hash(ClipConfig(pretrained=str(tmp_path)), 0)
    about = json.loads((tmp_path / "open_clip_config.json").read_text())
    about["model_cfg"]["quick_gelu"] = True
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    assert weights_hash(ClipConfig(pretrained=str(tmp_path)), 0) != before


def test_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"can't be had.*HF_HUB_OFFLINE.*hf download nobody/.*a local file"):
        load_clip(ClipConfig(model="hf-hub:nobody/nothing-of-this-name"))


def test_overflow_counts_what_the_context_cuts_off(tiny):
    assert tiny.count_truncated(["short", "also short"]) == {"texts": 0, "tokens": 0}
    assert tiny.count_truncated(["short", "word " * 100]) == {"texts": 1, "tokens": 100 + 2 - 77}


def test_an_ensemble_is_the_normalised_mean_of_its_prompts(tiny):
    rows = class_embeddings(tiny, {"a": TEXTS[:2], "b": TEXTS[2:]})
    encoded = tiny.encode_texts(TEXTS).numpy()
    mean = encoded[:2].mean(axis=0)
    np.testing.assert_allclose(rows[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(rows[1], encoded[2], atol=1e-6)


def test_a_checkpoint_says_what_it_is(tmp_path, tiny):
    save_clip(tmp_path, tiny)
    assert json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 128
    assert clip_module.CONFIG_FOLDER.joinpath("tiny.json").exists()
