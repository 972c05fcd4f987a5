"""What tells one run, encoder, file or table from another: every fingerprint is made here. No torch.

Where something lies, and what computes it, counts for nothing; what it is made of does: the settings, the images and their
split, how their pixels were packed, and the content of weights and texts.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from clipcovid.config import ClipConfig, Scalar, flatten
from clipcovid.files import plain
from clipcovid.models.weights import hf_files, locate

LEFT_OUT = {"compute", "out", "name", "data"}  # sections of a config that make no other run


class Data(Protocol):
    """What is asked of a manifest."""

    @property
    def content_hash(self) -> str:
        """Of all its cells."""

    @property
    def split_hash(self) -> str:
        """Of its images, labels, patients and splits."""

    @property
    def info(self) -> dict[str, Any]:
        """Its metadata, of which `pack_hash` says how pixels were made."""


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hex digits of the SHA-256 of `value` as canonical JSON; what has no form in it: TypeError."""
    text = json.dumps(value, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, 16 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def folder_hash(folder: Path) -> str:
    """Of a Hugging Face folder's weights and its configs: the same weights with another activation are another encoder."""
    return files_hash(hf_files(folder))


def files_hash(paths: Sequence[Path]) -> str:
    """Of the content of several files in their order, 16 hex digits; of one file its own."""
    hashes = [file_hash(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


def file_or_name(value: str) -> str:
    """The hash of a file or of a Hugging Face folder, and anything else as it is."""
    path = Path(value)
    if value and path.is_dir():
        return folder_hash(path)
    return file_hash(path) if path.is_file() else value


def weights_of(config: ClipConfig, seed: int) -> dict[str, str]:
    """What tells an encoder's weights from others. Loads nothing; weights that can't be meant are a `UserError`.

    Files are known by their content, a published tag or hub model by its name, random weights by their seed.
    """
    place = locate(config)
    if isinstance(place, list):
        return {"weights": files_hash(place)}
    return {"weights": place} | ({"seed": str(seed)} if place == "none" else {})


def config_identity(config: Any, **hashes: str) -> dict[str, Scalar]:
    """A config without compute, out, name and the data's path, plus `hashes`."""
    kept = {key: value for key, value in flatten(config).items() if key.split(".")[0] not in LEFT_OUT}
    return kept | hashes


def texts_hash(image_ids: Sequence[str], texts: Sequence[str]) -> str:
    """Of each image's text."""
    return digest([list(image_ids), list(texts)])


def run_identity(config: Any, data: Data, captions: Mapping[str, str]) -> dict[str, Any]:
    """What makes two trainings the same; `captions`: what tells the texts that are learned from others."""
    kept = config_identity(config, split_hash=data.split_hash, pack_hash=data.info["pack_hash"])
    kept = {key: value for key, value in kept.items() if key not in ("clip.pretrained", "weights", "captions", "text")}
    return {"task": config.task} | kept | config.weights_identity() | dict(captions)


def sweep_identity(training: Mapping[str, Any], search: Sequence[Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two sweeps of hyperparameters the same: the training, how it is searched, and what."""
    return dict(training) | {
        "search": list(search),
        "space": digest({key: repr(value) for key, value in space.items()}),
    }


def encoder_identity(clip: ClipConfig, seed: int, data: Data, pixels: str) -> dict[str, Any]:
    """What makes embeddings the same: model, weights, precision asked for, `pixels`, and the manifest they belong to."""
    return {
        "model": clip.model,
        **weights_of(clip, seed),
        "precision": clip.precision,
        "pixels": pixels,
        "manifest": data.content_hash,
    }


def prediction_identity(checkpoint: Path, split: str, data: Data, captions: Mapping[str, str]) -> dict[str, Any]:
    """What makes two predictions of a checkpoint the same."""
    return {
        "model": file_hash(checkpoint / "model.safetensors"),
        "split_hash": data.split_hash,
        "pack_hash": data.info["pack_hash"],
        "split": split,
    } | dict(captions)


def zeroshot_identity(config: Any, data: Data, precision: str, prompts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What makes two zero-shot runs the same: the prompts' words and the weights' content, not names of files.

    The split is left apart: those of one run stand side by side.
    """
    kept = config_identity(config, split_hash=data.split_hash, pack_hash=data.info["pack_hash"])
    left_out = ("split", "prompts.", "clip.pretrained")
    kept = {key: value for key, value in kept.items() if not key.startswith(left_out) or key == "split_hash"}
    kept["clip.precision"] = precision
    return kept | weights_of(config.clip, config.seed) | {"prompts": dict(prompts)}


def prompts_identity(config: Any, data: Data, space: Any) -> dict[str, Any]:
    """What makes two searches for prompts the same; `space` is a dataclass."""
    kept = config_identity(config, split_hash=data.split_hash, pack_hash=data.info["pack_hash"])
    kept = {key: value for key, value in kept.items() if key not in ("clip.pretrained", "space")}
    found = weights_of(config.clip, config.seed)
    return {"task": "prompts"} | kept | found | {"space": digest(dataclasses.asdict(space))}


def generation_identity(config: Any, data: Data) -> dict[str, Any]:
    """What makes two tables of generated captions the same."""
    return {
        "model": file_or_name(config.model),
        "split": [config.split, data.split_hash],
        "pixels": data.info["pack_hash"],
        "how": [config.prompt, config.label, config.beams, config.tokens],
    }


def search_identity(config: Any, encoder: Mapping[str, Any], images: Sequence[str]) -> dict[str, Any]:
    """What makes two searches the same: what is asked of which embeddings; `images`: the pixel hashes of those asked by."""
    asked = ("text", "find", "top", "where", "captions", "caption_template", "index")
    return {name: getattr(config, name) for name in asked} | {"images": list(images)} | dict(encoder)


def cascade_identity(checkpoints: Sequence[Path], keep: str, images: Mapping[str, str]) -> dict[str, Any]:
    """What makes two cascades the same: the runs' weights, what is kept, and the pixel hashes of the images by name."""
    models = [file_hash(folder / "model.safetensors") for folder in checkpoints]
    return {"models": models, "keep": keep, "images": dict(images)}


def comparison_identity(predictions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What makes two comparisons the same, from each method's metadata by its name: the split, and which runs."""
    about = next(iter(predictions.values()))
    compared = {name: digest([one["method"], one["identity"]]) for name, one in predictions.items()}
    return {"split": about["split"], "split_hash": about["split_hash"], "methods": compared}
