import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from clipcovid.config import UserError
from clipcovid.models.cnn import build_cnn
from clipcovid.models.normalization import ImageNormalizer

ARCHS = {
    "resnet18": 32,
    "resnet50": 32,
    "vgg16": 32,
    "vit_base_patch16_224": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "convnext_tiny": 32,
}


def build(arch="resnet18", weights="none", *, channels=1, size=32, seed=0):
    return build_cnn(arch, weights, outputs=3, channels=channels, image_size=size, packed_size=64, seed=seed)


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_architectures_classify_gray_images(arch):
    model = build(arch, size=ARCHS[arch]).eval()
    outputs = model(torch.randint(0, 256, (2, 40, 40), dtype=torch.uint8))
    assert outputs.shape == (2, 3)
    assert outputs.isfinite().all()


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_colour_files_stem_is_summed_for_gray_and_the_rest_is_loaded_as_it_is(tmp_path, ending):
    theirs = timm.create_model("resnet18", num_classes=10)
    state = {
        key: value + torch.rand(1) if value.is_floating_point() else value for key, value in theirs.state_dict().items()
    }
    path = tmp_path / f"weights.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    ours = build(weights=str(path)).body.state_dict()
    assert torch.allclose(ours["conv1.weight"], state["conv1.weight"].sum(dim=1, keepdim=True), atol=1e-6)
    for key, value in ours.items():
        if key not in ("conv1.weight", "fc.weight", "fc.bias"):
            assert value.equal(state[key]), key
    assert ours["fc.weight"].shape == (3, 512)


def test_a_gray_files_stem_is_loaded_without_a_word_of_timms(tmp_path, caplog):
    theirs = timm.create_model("resnet18", num_classes=10, in_chans=1)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = build(weights=str(tmp_path / "weights.pt")).body
    assert ours.conv1.weight.equal(theirs.conv1.weight)
    assert caplog.text == ""


def test_a_file_that_lacks_weights_or_has_others_is_refused(tmp_path):
    state = timm.create_model("resnet18", num_classes=10).state_dict()
    for name, broken, says in (
        (
            "short",
            {key: value for key, value in state.items() if key != "layer2.0.conv1.weight"},
            "layer2.0.conv1.weight",
        ),
        (
            "incomplete",
            {key: value for key, value in state.items() if "running" not in key},
            r"bn1.running_mean first.*: give a complete state dict of resnet18, as torch\.save",
        ),
        (
            "other",
            timm.create_model("resnet34", num_classes=10).state_dict(),
            "layer1.2.* first.*looks like a resnet34",
        ),
    ):
        save_file(broken, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=f"does not fit resnet18: .*{says}"):
            build(weights=str(tmp_path / f"{name}.safetensors"))
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pt is text"):
        build(weights=str(tmp_path / "text.pt"))
    with pytest.raises(UserError, match="no such file"):
        build(weights="nowhere.pt")


def test_weights_that_can_not_be_downloaded_are_no_random_ones(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"vgg16 can't be had.*or none for random weights"):
        build("vgg16", weights="pretrained")


def test_an_unknown_architecture_is_answered_with_known_ones():
    with pytest.raises(UserError, match="resnet"):
        build("resnet_18")


def test_random_weights_follow_from_the_seed():
    one, same, other = (build(seed=seed).body.conv1.weight for seed in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)


def test_the_input_is_as_large_as_the_packed_images_unless_the_architecture_knows_better():
    sized = build_cnn("resnet18", "none", outputs=3, channels=1, image_size=0, packed_size=48, seed=0)
    assert sized.pixels.size == 48
    fixed = build_cnn("vit_tiny_patch16_224", "none", outputs=3, channels=1, image_size=0, packed_size=48, seed=0)
    assert fixed.pixels.size == 224


class TestPixels:
    PLAIN = ((0.0, 0.0, 0.0), (1 / 255,) * 3)

    def test_gray_is_three_equal_channels(self):
        gray = torch.randint(0, 256, (2, 16, 16), dtype=torch.uint8)
        pixels = ImageNormalizer((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 16, torch.float32)
        assert pixels(gray).equal(pixels(gray.unsqueeze(3).expand(-1, -1, -1, 3)))
        expected = (gray[0, 3, 4] / 255 - 0.2) / 0.6
        assert pixels(gray)[0, 1, 3, 4] == pytest.approx(expected.item(), abs=1e-5)

    def test_colour_becomes_luminance_where_the_model_is_gray(self):
        colour = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
        ours = ImageNormalizer((0.0,), (1 / 255,), 16, torch.float32)(colour)[0, 0]
        theirs = np.asarray(Image.fromarray(colour[0].numpy()).convert("L"), np.float32)
        assert np.abs(ours.numpy() - theirs).max() <= 1

    def test_resizing_is_pillows_bicubic(self):
        image = torch.randint(0, 256, (1, 60, 60), dtype=torch.uint8)
        ours = ImageNormalizer((0.0,), (1 / 255,), 24, torch.float32)(image)[0, 0]
        theirs = Image.fromarray(image[0].numpy()).resize((24, 24), Image.Resampling.BICUBIC)
        assert np.abs(ours.numpy() - np.asarray(theirs, np.float32)).max() <= 1.01
