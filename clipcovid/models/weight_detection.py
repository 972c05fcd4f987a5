"""What a set of weights seems to be, by its tensors' names and shapes, and what a folder says it holds. No torch here."""

import importlib.util
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from clipcovid.config import ClipConfig, UserError, summarize_error
from clipcovid.models.weights import HF_CONFIG, OPENCLIP_CONFIG, TEXT_TOWER_FOLDER, checkpoint_folder, is_hf

Shapes = Mapping[str, Sequence[int]]

_RESNETS: dict[tuple[int | bool, ...], str] = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
    (3, 8, 36, 3, True): "resnet152",
}
_DENSENETS: dict[tuple[int, ...], str] = {
    (6, 12, 24, 16): "densenet121",
    (6, 12, 32, 32): "densenet169",
    (6, 12, 36, 24): "densenet161",
    (6, 12, 48, 32): "densenet201",
}
_VITS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
_VGGS = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}
_FAMILIES = (  # the end of a tensor's name, and what has one; the first that fits
    ("wte.weight", "a GPT-2 of Hugging Face"),
    ("embeddings.word_embeddings.weight", "a text encoder of BERT's make"),
    ("relative_position_bias_table", "a Swin transformer"),
    ("conv_stem.weight", "an EfficientNet or kin of timm"),
    ("conv_dw.weight", "a ConvNeXt of timm"),
)


def describe_weights(shapes: Shapes) -> str:
    """A noun with its article, e.g. "a resnet50 of timm or torchvision"; empty where nothing is known."""
    names = list(shapes)
    first = {name.partition(".")[0] for name in names}
    if any("lora_A" in name for name in names):
        return "low-rank adapters without the model that they belong to"
    if {"vision_model", "text_model"} <= first:
        return "a CLIPModel of Hugging Face"
    if "vision_model" in first:
        return "a vision model of Hugging Face"
    for describe in (_clip, _encoder):
        if found := describe(shapes):
            segments = any(name.endswith("segmentation_head.0.weight") for name in names)
            return f"a segmentation network on {found}" if segments else found
    return next((what for end, what in _FAMILIES if any(name.endswith(end) for name in names)), "")


def _clip(shapes: Shapes) -> str:
    """An open_clip model, by its image tower."""
    found = _tensors_beside(shapes, "visual.conv1.weight")
    if found is None:
        return "an open_clip model with an image encoder of timm" if any(".trunk." in name for name in shapes) else ""
    _, inner = found
    if "visual.class_embedding" not in inner:
        return "an open_clip CLIP with a ResNet for images"
    width, _, patch, _ = inner["visual.conv1.weight"]
    places = inner.get("visual.positional_embedding", (1, 0))[0]
    text = inner.get("ln_final.weight") or inner.get("text.ln_final.weight") or (0,)
    seen = {
        "embed_dim": (inner.get("visual.proj") or (0, 0))[1],
        "width": width,
        "layers": _count(inner, r"visual\.transformer\.resblocks\.(\d+)\."),
        "patch_size": patch,
        "image_size": patch * math.isqrt(max(places - 1, 0)),
        "text": text[0],
        "text_layers": _count(inner, r"(?:text\.)?transformer\.resblocks\.(\d+)\."),
    }
    return f"an open_clip {_architecture_name(seen) or 'CLIP with a vision transformer'}"


def _encoder(shapes: Shapes) -> str:
    """An image classifier or encoder of timm or torchvision."""
    if (found := _tensors_beside(shapes, "layer1.0.conv1.weight")) is not None:
        blocks = [_count(found[1], rf"layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
        known = _RESNETS.get((*blocks, "layer1.0.conv3.weight" in found[1]))
        return f"a {known} of timm or torchvision" if known else "a ResNet of timm or torchvision"
    if (
        found := _tensors_beside(shapes, "patch_embed.proj.weight")
    ) is not None and "blocks.0.attn.qkv.weight" in found[1]:
        shape = found[1]["patch_embed.proj.weight"]
        size = _VITS.get(shape[0])
        return f"a vit_{size}_patch{shape[-1]} of timm" if size else "a vision transformer of timm"
    if (found := _tensors_beside(shapes, "features.denseblock1.denselayer1.conv1.weight")) is not None:
        layers = tuple(_count(found[1], rf"features\.denseblock{block}\.denselayer(\d+)\.") for block in (1, 2, 3, 4))
        return f"a {_DENSENETS.get(layers, 'DenseNet')} of timm or torchvision"
    if (found := _tensors_beside(shapes, "features.0.weight")) is not None and len(found[1]["features.0.weight"]) == 4:
        convolutions = sum(name.startswith("features.") and len(shape) == 4 for name, shape in found[1].items())
        return f"a {_VGGS.get(convolutions, 'VGG')} of timm or torchvision"
    return ""


def _tensors_beside(shapes: Shapes, end: str) -> tuple[str, dict[str, Sequence[int]]] | None:
    """The prefix of the tensor whose name ends so, and all tensors under that prefix by the rest of their names."""
    for name in shapes:
        if name == end or name.endswith(f".{end}"):
            prefix = name.removesuffix(end)
            return prefix, {key.removeprefix(prefix): value for key, value in shapes.items() if key.startswith(prefix)}
    return None


def _count(names: Iterable[str], pattern: str) -> int:
    """How many numbers the pattern's group takes at the beginning of the names."""
    found = (re.match(pattern, name) for name in names)
    return len({match[1] for match in found if match})


@cache
def _open_clip_architectures() -> dict[str, dict[str, int]]:
    """What tells open_clip's vision transformers apart, by their names, from the files of their configs."""
    known = {}
    for name, config in open_clip_configs().items():
        vision, text = config["vision_cfg"], config["text_cfg"]
        if "width" in vision and isinstance(vision.get("layers"), int) and isinstance(vision.get("image_size"), int):
            known[name] = {
                "embed_dim": config["embed_dim"],
                "width": vision["width"],
                "layers": vision["layers"],
                "patch_size": vision.get("patch_size", 16),
                "image_size": vision["image_size"],
                "text": text.get("width", 512),
                "text_layers": text.get("layers", 12),
            }
    return known


@cache
def open_clip_configs() -> dict[str, Any]:
    """Every architecture that open_clip ships, by name, and ours: read from files, for open_clip imports torch."""
    spec = importlib.util.find_spec("open_clip")
    shipped = [Path(place) / "model_configs" for place in (spec.submodule_search_locations or ())] if spec else []
    files = [file for folder in (*shipped, Path(__file__).parent / "configs") for file in sorted(folder.glob("*.json"))]
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def default_clip_model(config: ClipConfig) -> dict[str, str]:
    """The `clip.model` that a folder `--clip.pretrained` holds; a different `--clip.model` is a `UserError`."""
    place = Path(config.pretrained)
    if config.model.startswith("hf-hub:") or not place.is_dir():
        return {}
    found = architecture_name(checkpoint_folder(place))
    if config.model not in (ClipConfig.model, found):
        raise UserError(f"{place} holds a model {found}, not --clip.model {config.model}: leave --clip.model out.")
    return {"clip.model": found}


def architecture_name(folder: Path) -> str:
    """The name of the model in an open_clip or Hugging Face folder: as open_clip calls it, else what its towers are."""
    if is_hf(folder):
        about = json.loads((folder / HF_CONFIG).read_text(encoding="utf-8"))
        vision, text = about.get("vision_config", {}), about.get("text_config", {})
        seen = {
            "embed_dim": about.get("projection_dim", 512),
            "width": vision.get("hidden_size", 768),
            "layers": vision.get("num_hidden_layers", 12),
            "patch_size": vision.get("patch_size", 32),
            "image_size": vision.get("image_size", 224),
            "text": text.get("hidden_size", 512),
            "text_layers": text.get("num_hidden_layers", 12),
        }
        return _architecture_name(seen) or f"CLIPModel-{seen['width']}x{seen['layers']}"
    try:
        config = json.loads((folder / OPENCLIP_CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        vision, text = config["vision_cfg"], config["text_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / OPENCLIP_CONFIG} is no config of open_clip ({summarize_error(error)}).") from error
    for name, known in open_clip_configs().items():
        if (known["vision_cfg"], known["text_cfg"], known["embed_dim"]) == (vision, text, config.get("embed_dim")):
            return name
    image = vision.get("timm_model_name") or (
        f"ViT-{vision.get('width')}x{vision.get('layers')}" if isinstance(vision.get("layers"), int) else "ResNet"
    )
    words = text.get("hf_model_name", "")
    if words == TEXT_TOWER_FOLDER:
        words = json.loads((folder / TEXT_TOWER_FOLDER / HF_CONFIG).read_text(encoding="utf-8")).get(
            "model_type", "text"
        )
    return f"{image}+{Path(words).name}" if words else image


def _architecture_name(seen: dict[str, int]) -> str:
    """The shortest of open_clip's names for a model of these sizes; empty where there is none."""
    return min((name for name, about in _open_clip_architectures().items() if about == seen), key=len, default="")
