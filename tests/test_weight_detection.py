"""What weights seem to be, and what folders say they hold."""

import json

import open_clip
import pytest
import timm
import torch
from segmentation_models_pytorch import Unet

from clipcovid.config import ClipConfig, UserError, flatten_resolved, resolve_defaults
from clipcovid.inference.embed import EmbedConfig
from clipcovid.inference.zeroshot import ZeroshotConfig
from clipcovid.methods.caption.config import DualEncoderConfig
from clipcovid.methods.captioner.config import CaptionerConfig
from clipcovid.methods.finetune.config import FinetuneConfig
from clipcovid.methods.hybrid.config import HybridConfig
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.models.clip import load_clip, save_clip
from clipcovid.models.dual_encoder import DualEncoderSpec, build_dual_encoder
from clipcovid.models.weight_detection import architecture_name, describe_weights, open_clip_configs


def shapes(model, prefix=""):
    return {prefix + name: tuple(value.shape) for name, value in model.state_dict().items()}


def on_meta(build, *args, **settings):
    with torch.device("meta"):
        return build(*args, **settings)


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        ("resnet18", "a resnet18 of timm"),
        ("resnet50", "a resnet50 of timm"),
        ("vit_base_patch16_224", "a vit_base_patch16 of timm"),
        ("densenet121", "a densenet121 of timm"),
        ("vgg16", "a vgg16 of timm"),
        ("efficientnet_b0", "an EfficientNet or kin"),
        ("convnext_tiny", "a ConvNeXt"),
        ("swin_tiny_patch4_window7_224", "a Swin transformer"),
    ],
)
def test_classifiers_are_known_whatever_is_before_their_names(arch, says):
    found = shapes(on_meta(timm.create_model, arch))
    assert says in describe_weights(found)
    assert says in describe_weights({f"module.encoder.{name}": shape for name, shape in found.items()})


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"])
def test_clips_are_known_by_open_clips_names(name):
    settings = open_clip_configs()[name]
    assert settings == open_clip.get_model_config(name)
    assert describe_weights(shapes(on_meta(open_clip.model.CLIP, **settings), "module.")) == f"an open_clip {name}"


def test_others_are_known_for_what_they_are():
    unet = Unet("resnet34", encoder_weights=None)
    assert describe_weights(shapes(unet)) == "a segmentation network on a resnet34 of timm or torchvision"
    assert "Hugging Face" in describe_weights({"vision_model.a": (1,), "text_model.b": (1,)})
    assert "adapters" in describe_weights({"base_model.lora_A.weight": (4, 8)})
    assert "BERT" in describe_weights({"bert.embeddings.word_embeddings.weight": (9, 9)})
    assert "GPT-2" in describe_weights({"transformer.wte.weight": (9, 9)})
    assert describe_weights({"a.b": (1,)}) == ""


@pytest.fixture(scope="module")
def dual(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dual")
    towers = {"arch": "resnet18", "weights": "none", "text": "mini", "text_weights": "none", "projection": "linear"}
    sizes = {"width": 16, "image_size": 32, "context": 16, "vocabulary": 300}
    save_clip(folder / "checkpoint", build_dual_encoder(DualEncoderSpec(**towers, **sizes), ["a b c", "d e f"], 0))
    return folder


def test_a_folder_says_what_it_holds(tmp_path, dual):
    save_clip(tmp_path, load_clip(ClipConfig(model="tiny", pretrained="none")))
    assert architecture_name(tmp_path) == architecture_name(tmp_path / "hf") == "tiny"
    assert architecture_name(dual / "checkpoint") == "resnet18+bert"
    about = json.loads((tmp_path / "open_clip_config.json").read_text())
    about["model_cfg"]["vision_cfg"] |= {"layers": 5, "width": 96}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    assert architecture_name(tmp_path) == "ViT-96x5"
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(UserError, match="is no config of open_clip"):
        architecture_name(tmp_path)


@pytest.mark.parametrize(
    "kind", [ProbeConfig, HybridConfig, FinetuneConfig, DualEncoderConfig, CaptionerConfig, ZeroshotConfig, EmbedConfig]
)
def test_what_is_recorded_is_the_folders_model_and_not_the_default(kind, tmp_path, dual):
    config = kind(data=tmp_path, clip=ClipConfig(pretrained=str(dual)))
    assert flatten_resolved(config)["clip.model"] == "resnet18+bert"
    assert resolve_defaults(resolve_defaults(config)).clip.model == "resnet18+bert"
    assert flatten_resolved(kind(data=tmp_path))["clip.model"] == "ViT-B-32"
    with pytest.raises(
        UserError, match=r"holds a model resnet18\+bert, not --clip\.model RN50: leave --clip\.model out"
    ):
        flatten_resolved(kind(data=tmp_path, clip=ClipConfig(model="RN50", pretrained=str(dual))))


def test_runs_are_called_after_the_folders_model(tmp_path, dual):
    config = DualEncoderConfig(data=tmp_path, towers="clip", clip=ClipConfig(pretrained=str(dual)))
    assert config.title == "caption-resnet18+bert"
    loaded = load_clip(resolve_defaults(config).clip)
    assert isinstance(loaded.model, open_clip.CustomTextCLIP)
