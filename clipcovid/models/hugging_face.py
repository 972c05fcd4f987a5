"""CLIP between open_clip and Hugging Face's `CLIPModel`, both ways and exactly: the same numbers under other names."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from clipcovid.config import UserError, summarize_error
from clipcovid.io.files import atomic_write, write_json, write_text
from clipcovid.models.clip_model import Clip
from clipcovid.models.state_dicts import check_not_quantized, check_weights, largest_state_dict
from clipcovid.models.weights import HF_CONFIG, HF_IMAGE_CONFIGS, hf_weights

VOCABULARY_SIZE = 49408
START, END = ("<|startoftext|>", 49406), ("<|endoftext|>", 49407)
LAYER_NORM_EPS = 1e-5  # PyTorch's and so open_clip's default for LayerNorm
PIL_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
# What CLIPModel can express of a tower, or what matters in training only; all else must be as open_clip has it by default.
_TOWER_FIELDS = {"layers", "width", "mlp_ratio", "norm_kwargs"}
_VISION = _TOWER_FIELDS | {"head_width", "patch_size", "image_size", "patch_dropout"}
_TEXT = _TOWER_FIELDS | {"context_length", "vocab_size", "heads"}
_CONFIG_FIELDS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"}

_Name = tuple[str, tuple[str, ...], bool]
"""A tensor's name in open_clip, the one or three (query, key, value) of it in CLIPModel, and whether it is transposed."""


def conversion_problem(model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any] | None = None) -> str:
    """Why a CLIPModel can't be what open_clip builds from `model_cfg`, or can't prepare images so; empty where it can."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    if vision.get("timm_model_name"):
        return "its image tower is timm's"
    if isinstance(vision.get("layers"), list | tuple):
        return "its image tower is a ResNet"
    if text.get("hf_model_name"):
        return "its text tower is another Hugging Face model"
    if (
        text.get("hf_tokenizer_name")
        or text.get("tokenizer_kwargs")
        or text.get("vocab_size", VOCABULARY_SIZE) != VOCABULARY_SIZE
    ):
        return "its tokenizer is not CLIP's"
    if model_cfg.get("custom_text") or model_cfg.get("multimodal_cfg"):
        return "its text tower is a custom one"
    if model_cfg.get("init_logit_bias") is not None:
        return "its logits have a bias, as SigLIP's"
    if unsupported := [key for key in sorted(set(model_cfg) - _CONFIG_FIELDS) if model_cfg[key]]:
        return f"it has {', '.join(unsupported)}"
    for cfg, kind, expressible in ((vision, CLIPVisionCfg, _VISION), (text, CLIPTextCfg, _TEXT)):
        default, settings = dataclasses.asdict(kind()), dataclasses.asdict(kind(**cfg))
        if unsupported := [key for key in default if key not in expressible and settings[key] != default[key]]:
            return f"a tower has {', '.join(unsupported)}"
        if set(settings["norm_kwargs"] or {}) - {"eps"}:
            return "a tower has other layer norms"
    if not all(isinstance(vision.get(key, 0), int) for key in ("image_size", "patch_size")):
        return "its images or patches are not square"
    preprocess = preprocess_cfg or {}
    if (
        preprocess.get("resize_mode", "shortest") == "longest"
        or preprocess.get("interpolation", "bicubic") not in PIL_RESAMPLING
    ):
        return "its images are resized in another way"
    return ""


def save_hf_clip(folder: Path, clip: Clip) -> None:
    """Write a folder that transformers' CLIPModel, CLIPImageProcessor and CLIPTokenizer load: float32 safetensors.

    The tokenizer gives open_clip's ids, but for what ftfy repairs before open_clip tokenizes (curly quotes, ligatures, HTML
    entities), a last capital Σ, and the names of the start and end marks. What `conversion_problem`
    gives a reason for is a `UserError`.
    """
    from safetensors.torch import save_file

    preprocess = cast(Any, clip.model.visual).preprocess_cfg
    state = {name: value.detach().float().cpu() for name, value in clip.model.state_dict().items()}
    reason = conversion_problem(clip.model_cfg, preprocess) or (
        "its logits have a bias" if "logit_bias" in state else ""
    )
    if reason:
        raise UserError(
            f"The model can't be written as a Hugging Face CLIPModel: {reason}; use open_clip's checkpoint."
        )
    converted: dict[str, torch.Tensor] = {}
    for name, theirs, transposed in _names(clip.model_cfg):
        value = state.pop(name)
        for part, at in zip(value.chunk(len(theirs)) if len(theirs) > 1 else [value], theirs, strict=True):
            converted[at] = (part.T if transposed else part).contiguous().clone()  # safetensors refuses shared memory
    if state:
        raise UserError(
            f"The model can't be written as a Hugging Face CLIPModel: it has {', '.join(sorted(state)[:4])}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "model.safetensors") as partial:
        save_file(converted, partial, metadata={"format": "pt"})
    write_json(folder / HF_CONFIG, _hf_config(clip.model_cfg))
    write_json(folder / HF_IMAGE_CONFIGS[0], _image_processor(preprocess))
    _write_tokenizer(folder, clip.tokenizer)


def load_hf_clip(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """A local CLIPModel folder as open_clip's model config, its state dict in float32, and how it normalises images.

    Without a preprocessor config the means are CLIP's own, as in transformers. A folder that open_clip can't express, that
    is damaged, or that lacks weights or has others is a `UserError`.
    """
    model_cfg = _model_cfg(folder)
    _check_tokenizer(folder)
    theirs = _read_weights(folder)
    state = {}
    missing = [at for _, parts, _ in _names(model_cfg) for at in parts if at not in theirs]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} weights of a CLIPModel, {missing[0]} first: give the whole model, as "
            "CLIPModel.save_pretrained writes it."
        )
    check_not_quantized({at: theirs[at] for _, parts, _ in _names(model_cfg) for at in parts}, str(folder))
    for name, parts, transposed in _names(model_cfg):
        tensors = [theirs.pop(at).float() for at in parts]
        state[name] = (
            tensors[0].T.contiguous() if transposed else torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        )
    if extra := sorted(name for name in theirs if not name.endswith("embeddings.position_ids")):  # 0, 1, 2, … of old
        raise UserError(
            f"{folder} has {len(extra)} weights that no CLIPModel has, {extra[0]} first: it is another model."
        )
    return model_cfg, state, _preprocess_cfg(folder)


def _names(model_cfg: Mapping[str, Any]) -> list[_Name]:
    """Every tensor of the model under both its names."""
    vision, text = _towers(model_cfg)
    names: list[_Name] = [
        ("logit_scale", ("logit_scale",), False),
        ("visual.class_embedding", ("vision_model.embeddings.class_embedding",), False),
        ("visual.conv1.weight", ("vision_model.embeddings.patch_embedding.weight",), False),
        ("visual.positional_embedding", ("vision_model.embeddings.position_embedding.weight",), False),
        ("visual.proj", ("visual_projection.weight",), True),
        ("token_embedding.weight", ("text_model.embeddings.token_embedding.weight",), False),
        ("positional_embedding", ("text_model.embeddings.position_embedding.weight",), False),
        ("text_projection", ("text_projection.weight",), True),
    ]
    modules = [
        ("visual.ln_pre", "vision_model.pre_layrnorm"),  # sic
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ]
    for ours, theirs, layers in (
        ("visual.transformer", "vision_model", vision["layers"]),
        ("transformer", "text_model", text["layers"]),
    ):
        for layer in range(layers):
            block, its = f"{ours}.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}"
            for kind in ("weight", "bias"):
                three = tuple(f"{its}.self_attn.{part}_proj.{kind}" for part in "qkv")
                names.append((f"{block}.attn.in_proj_{kind}", three, False))
            modules += [
                (f"{block}.attn.out_proj", f"{its}.self_attn.out_proj"),
                (f"{block}.ln_1", f"{its}.layer_norm1"),
                (f"{block}.ln_2", f"{its}.layer_norm2"),
                (f"{block}.mlp.c_fc", f"{its}.mlp.fc1"),
                (f"{block}.mlp.c_proj", f"{its}.mlp.fc2"),
            ]
    return names + [(f"{a}.{kind}", (f"{b}.{kind}",), False) for a, b in modules for kind in ("weight", "bias")]


def _towers(model_cfg: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """open_clip's settings of the image and the text tower, defaults filled in."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision, text = CLIPVisionCfg(**model_cfg["vision_cfg"]), CLIPTextCfg(**model_cfg["text_cfg"])
    return dataclasses.asdict(vision), dataclasses.asdict(text)


def _hf_config(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """CLIPModel's config.json."""
    vision, text = _towers(model_cfg)

    def tower(cfg: dict[str, Any], heads: int) -> dict[str, Any]:
        return {
            "hidden_size": cfg["width"],
            "intermediate_size": int(cfg["width"] * cfg["mlp_ratio"]),  # as open_clip rounds it
            "num_hidden_layers": cfg["layers"],
            "num_attention_heads": heads,
            "hidden_act": "quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
            "layer_norm_eps": (cfg["norm_kwargs"] or {}).get("eps", LAYER_NORM_EPS),
            "projection_dim": model_cfg["embed_dim"],
        }

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model_cfg["embed_dim"],
        "dtype": "float32",
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            **tower(vision, vision["width"] // vision["head_width"]),
        },
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": START[1],
            "eos_token_id": END[1],  # where the text is pooled; open_clip takes the highest id, which is the same
            "pad_token_id": END[1],
            **tower(text, text["heads"]),
        },
    }


def _model_cfg(folder: Path) -> dict[str, Any]:
    """open_clip's model config from a CLIPModel's config.json."""
    from transformers import CLIPConfig

    try:  # fills in defaults, and knows the ways in which older versions wrote it
        config = CLIPConfig.from_dict(json.loads((folder / HF_CONFIG).read_bytes()))
    except Exception as error:  # each version validates in its own way
        raise UserError(f"{folder / HF_CONFIG} is no config of a CLIPModel ({summarize_error(error)}).") from error
    vision, text = cast(Any, config.vision_config), cast(Any, config.text_config)
    image, patch = _square(vision.image_size), _square(vision.patch_size)
    acts = {vision.hidden_act, text.hidden_act}
    for wrong, reason in (
        (
            acts not in ({"gelu"}, {"quick_gelu"}),
            f"its activations are {', '.join(sorted(acts))}, not gelu or quick_gelu",
        ),
        (image is None or patch is None, "its images or patches are not square"),
        (vision.num_channels != 3, f"its images have {vision.num_channels} channels"),
        (
            text.vocab_size != VOCABULARY_SIZE,
            f"its vocabulary has {text.vocab_size} tokens, not CLIP's {VOCABULARY_SIZE}",
        ),
        # 2 is how the first versions wrote it, which pool at the highest id
        (text.eos_token_id not in (2, END[1]), f"its texts end at {text.eos_token_id}, not at CLIP's {END[1]}"),
    ):
        if wrong:
            raise UserError(f"{folder} can't be a model of open_clip: {reason}; use another checkpoint.")

    def tower(hf: Any) -> dict[str, Any]:
        width, inner = hf.hidden_size, hf.intermediate_size
        return {
            "width": width,
            "layers": hf.num_hidden_layers,
            "mlp_ratio": inner / width if inner % width == 0 else (inner + 0.5) / width,  # open_clip rounds down
        } | ({"norm_kwargs": {"eps": hf.layer_norm_eps}} if hf.layer_norm_eps != LAYER_NORM_EPS else {})

    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            "image_size": image,
            "patch_size": patch,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            **tower(vision),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
            **tower(text),
        },
    }


def _square(size: Any) -> int | None:
    """The side of a size given as one number or two equal ones."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    return sides.pop() if len(sides) == 1 else None


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder, shards joined."""
    tensors: dict[str, torch.Tensor] = {}
    for path in hf_weights(folder):
        tensors |= largest_state_dict(path)
    check_weights(tensors, str(folder))
    return tensors


def _image_processor(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """CLIPImageProcessor's preprocessor_config.json."""
    size = preprocess["size"]
    side = int(size if isinstance(size, int) else size[0])
    square, cropped = {"height": side, "width": side}, preprocess["resize_mode"] == "shortest"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if cropped else square,
        "resample": PIL_RESAMPLING[preprocess["interpolation"]],
        "do_center_crop": cropped,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }


def _preprocess_cfg(folder: Path) -> dict[str, Any]:
    """open_clip's preprocess config; the size follows from the model."""
    from open_clip.transform import PreprocessCfg

    default, processor = dataclasses.asdict(PreprocessCfg()), None
    try:
        for name in HF_IMAGE_CONFIGS:
            if processor is None and (folder / name).is_file():
                read = json.loads((folder / name).read_bytes())
                processor = read if name == HF_IMAGE_CONFIGS[0] else read.get("image_processor")
        if processor is None:
            return default
        if not processor.get("do_rescale", True) or abs(processor.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise UserError(f"{folder} does not scale pixels to 0–1: use another checkpoint.")
        normalised = processor.get("do_normalize", True)
        size = processor.get("size", {})
        squashed = isinstance(size, dict) and "height" in size
        resample = processor.get("resample", PIL_RESAMPLING["bicubic"])
        preprocess = default | {
            "mean": tuple(processor.get("image_mean", default["mean"])) if normalised else (0.0, 0.0, 0.0),
            "std": tuple(processor.get("image_std", default["std"])) if normalised else (1.0, 1.0, 1.0),
            "resize_mode": "squash" if squashed else "shortest",
            "interpolation": {number: name for name, number in PIL_RESAMPLING.items()}[resample],
        }
        if len(preprocess["mean"]) != 3 or len(preprocess["std"]) != 3:
            raise ValueError("not three channels")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} describes how images are prepared in a way that is not understood ({error})."
        ) from error
    return preprocess


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """The ids of open_clip's SimpleTokenizer, with the marks of start and end named as in transformers."""
    plain = {token: number for token, number in tokenizer.encoder.items() if number < START[1]}
    return plain | dict((START, END))


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """CLIPTokenizer's files."""
    vocabulary = json.dumps(_vocabulary(tokenizer), ensure_ascii=False)
    write_text(folder / "vocab.json", vocabulary)
    ranked = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, ranked)]) + "\n")
    marks = {"bos_token": START[0], "eos_token": END[0], "unk_token": END[0], "pad_token": END[0]}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", settings | marks)
    write_json(folder / "special_tokens_map.json", marks)


def _check_tokenizer(folder: Path) -> None:
    """Refuse a vocabulary other than CLIP's, by which open_clip would tokenize; a folder without any is taken for CLIP's."""
    from open_clip.tokenizer import SimpleTokenizer

    for name in ("vocab.json", "tokenizer.json"):
        if not (folder / name).is_file():
            continue
        try:
            read = json.loads((folder / name).read_text(encoding="utf-8"))
            vocabulary = read if name == "vocab.json" else read["model"]["vocab"]
            same = vocabulary | dict((START, END)) == _vocabulary(SimpleTokenizer())
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / name} is no vocabulary ({error}): download it again.") from error
        if not same:
            raise UserError(f"{folder / name} is not CLIP's vocabulary: use a checkpoint that kept CLIP's tokenizer.")
