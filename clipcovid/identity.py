"""What tells one run, encoder, file or table from another: every fingerprint is made here. No torch.

Where something lies, and what computes it, counts for nothing; what it is made of does: the settings, the images and their
split, how their pixels were packed, and the content of weights and texts.
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from clipcovid.config import ClipConfig, flatten_fields, resolve_defaults
from clipcovid.io.files import read_json_object, to_json_value
from clipcovid.models.weights import locate_weights
from clipcovid.prompts import PromptsConfig, build_prompts

IGNORED_FIELDS = {  # fields in which two runs that are the same may differ, and why
    "compute": "what computes, not what is computed",
    "data": "known by its images, their split, and how they were packed",
    "embeddings": "where they are kept; what made them is known",
    "out": "where the run goes",
    "folder": "where the captions go",
    "name": "what the run is called",
    "register": "what its model is called",
}
WEIGHT_FIELDS = {  # fields that may name a file or folder of weights, and the words that never do
    "weights": ("pretrained", "imagenet", "none"),
    "text": ("mini", "small", "base"),
    "decoder": ("mini", "small"),
    "model": (),
}
CAPTION_SOURCES = ("labels", "template", "dataset", "both")  # what `captions` may say, if it names no table
UNHASHED_CHECKPOINT_FILES = (
    "config.json",
    "training_images.parquet",
)  # files of a checkpoint that change no prediction
ROWS_PER_BLOCK = 65_536  # rows that are hashed at a time
UNCACHED_AGE_S = (
    2 * 10**9
)  # ns: a file changed since can change again without another time of change, so its hash is not kept
MODEL_FILE_ENDINGS = (".json", ".txt", ".model", ".safetensors", ".bin", ".pt", ".pth")


class DataFingerprint(Protocol):
    """Protocol: the attributes of a manifest that the identities hash."""

    @property
    def table(self) -> pd.DataFrame:
        """A row an image."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names."""

    @property
    def content_hash(self) -> str:
        """Of all its cells."""

    @property
    def split_hash(self) -> str:
        """Of its images, labels, patients and splits."""

    @property
    def images_hash(self) -> str:
        """Of its images' ids and pixels."""

    @property
    def info(self) -> dict[str, Any]:
        """Its metadata, of which `pack_hash` says how pixels were packed."""


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hex digits of the SHA-256 of `value` as canonical JSON; what has no form in it: TypeError."""
    text = json.dumps(value, sort_keys=True, default=to_json_value)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def rows_digest(table: pd.DataFrame, length: int = 12) -> str:
    """`digest` of the rows of a table of texts; in blocks, since the text of a large one takes a gigabyte."""
    total = hashlib.sha256(b"[")
    for start in range(0, len(table), ROWS_PER_BLOCK):
        block = table.iloc[start : start + ROWS_PER_BLOCK]
        rows = json.dumps(list(zip(*(block[column].astype(str) for column in block), strict=True)))
        total.update(f"{', ' if start else ''}{rows[1:-1]}".encode())
    total.update(b"]")
    return total.hexdigest()[:length]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, 16 hex digits; it is read once by a process, unless it changes."""
    state = path.stat()
    key = path.resolve(), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
    if time.time_ns() - state.st_mtime_ns < UNCACHED_AGE_S:
        return _read_hash.__wrapped__(*key)
    return _read_hash(*key)


@functools.lru_cache(maxsize=4096)
def _read_hash(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def files_hash(paths: Sequence[Path]) -> str:
    """Of the content of several files in their order, 16 hex digits; of one file its own."""
    hashes = [file_hash(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


def folder_hash(folder: Path) -> str:
    """Of the names and contents of a model's files: weights, configs, and the tokenizer's."""
    files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILE_ENDINGS and path.is_file())
    return digest([(path.name, file_hash(path)) for path in files], 16)


def hash_or_name(value: str, words: Sequence[str] = ()) -> str:
    """The hash of a file or folder; a name, and any of `words`, as it is."""
    path = Path(value)
    if not value or value in words:
        return value
    if path.is_dir():
        return folder_hash(path)
    return file_hash(path) if path.is_file() else value


def weights_hash(config: ClipConfig, seed: int) -> dict[str, str]:
    """The hash of an encoder's weights, without loading them; a name or path that can't be resolved is a `UserError`.

    Files are known by their content, a published tag or hub model by its name, random weights by their seed.
    """
    weights = locate_weights(config)
    if isinstance(weights, list):
        return {"weights": files_hash(weights)}
    return {"weights": weights} | ({"seed": str(seed)} if weights == "none" else {})


def weight_paths(config: Any) -> dict[str, Path]:
    """The files and folders of weights that a config names and that exist: field → path."""
    named = {
        field: value
        for field, value in flatten_fields(config).items()
        if field in WEIGHT_FIELDS and isinstance(value, str)
    }
    paths = {field: Path(value) for field, value in named.items() if value and value not in WEIGHT_FIELDS[field]}
    if uses_clip(config) and config.clip.pretrained != "none":
        paths["clip.pretrained"] = Path(config.clip.pretrained)
    return {field: path for field, path in paths.items() if path.exists()}


def uses_clip(config: Any) -> bool:
    """Whether a config's `clip` is used."""
    return isinstance(getattr(config, "clip", None), ClipConfig) and getattr(config, "towers", "clip") == "clip"


def config_settings(config: Any) -> dict[str, Any]:
    """Dotted key → value, as JSON has it, of a config's fields but for those of `IGNORED_FIELDS` and those that name content.

    Content is weights, prompts, and a table of captions.
    """
    settings = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value  # 0 and 0.0 are one setting
        for key, value in flatten_fields(resolve_defaults(config)).items()
        if key.partition(".")[0] not in (*IGNORED_FIELDS, "prompts")
    }
    for field, words in WEIGHT_FIELDS.items():
        if isinstance(settings.get(field), str) and settings[field] not in words:
            del settings[field]
    if uses_clip(config):
        del settings["clip.pretrained"]
    if settings.get("captions", "labels") not in CAPTION_SOURCES:
        settings["captions"] = "table"
    return json_roundtrip(settings)


def clip_weights_identity(clip: ClipConfig, seed: int) -> dict[str, str]:
    """The hashes of an encoder's weights as a run's identity has them."""
    return {f"clip.{key}": value for key, value in weights_hash(clip, seed).items()}


def config_content(config: Any, classes: Sequence[str]) -> dict[str, Any]:
    """What the fields of a config name: the hashes of weights, and the prompts' texts for these classes."""
    named: dict[str, Any] = {}
    for field, words in WEIGHT_FIELDS.items():
        if isinstance(value := getattr(resolve_defaults(config), field, None), str):
            named[field] = hash_or_name(value, words)
    if uses_clip(config):
        named |= clip_weights_identity(config.clip, config.seed)
    if isinstance(getattr(config, "prompts", None), PromptsConfig):
        named["prompts"] = build_prompts(config.prompts, tuple(classes))
    return named


def config_identity(config: Any, classes: Sequence[str] = ()) -> dict[str, Any]:
    """A config's settings, and the content that it names."""
    return config_settings(config) | config_content(config, classes)


def data_identity(data: DataFingerprint, columns: Iterable[str] = ()) -> dict[str, str]:
    """Of a data set's images, split and pixels, and of the columns that are read beside the label."""
    hashes = {
        "images_hash": data.images_hash,
        "split_hash": data.split_hash,
        "pack_hash": data.info["pack_hash"],
    }
    for column in sorted({*columns} - {"label"}):
        masks = data.info.get("masks_hash", {}).get(column)
        hashes[f"{column}_hash"] = digest(masks) if masks else rows_digest(data.table[["image_id", column]])
    return hashes


def buffers_hash(named_buffers: Iterable[tuple[str, Any]]) -> str:
    """Of names and buffers of bytes, in their order; "" where there is none."""
    total, count = hashlib.sha256(), 0
    for name, content in named_buffers:
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
        count += 1
    return total.hexdigest()[:16] if count else ""


def run_identity(config: Any, data: DataFingerprint) -> dict[str, Any]:
    """What makes two trainings on data, `resolve_manifest` by the config, the same."""
    return {"task": config.task} | config_identity(config, data.classes) | data_identity(data, config.identity_columns)


def crossval_identity(config: Any, data: DataFingerprint, folds: int) -> dict[str, Any]:
    """What makes two cross-validations the same; `data` are all images that are in a fold."""
    return run_identity(config, data) | {"folds": folds, "pooled": True}


def sweep_identity(config: Any, data: DataFingerprint, metric: str, space: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a hyperparameter sweep: the training's settings, the search algorithm, the metric and the space."""
    return run_identity(config.task, data) | {
        "search": [config.trials, config.search, config.early_stopping, metric],
        "space": digest({key: repr(value) for key, value in space.items()}),
    }


def masked_identity(config: Any, data: DataFingerprint) -> dict[str, Any]:
    """The identity of a masked set: its source images, their masks, and the part that is kept."""
    masks = file_hash(config.masks) if config.masks else "true"
    return {"keep": config.keep, "masks": masks, "of": data.content_hash}


def encoder_identity(clip: ClipConfig, seed: int, data: DataFingerprint, pixels: str) -> dict[str, Any]:
    """What makes embeddings the same: model, weights, precision asked for, `pixels`, and the manifest they belong to."""
    return {
        "model": clip.model,
        **weights_hash(clip, seed),
        "precision": clip.precision,
        "pixels": pixels,
        "manifest": data.content_hash,
    }


def prediction_identity(
    checkpoint: Path, config: Any, metadata: Mapping[str, Any], data: DataFingerprint, split: str
) -> dict[str, Any]:
    """What makes two predictions the same: all that a checkpoint holds, the settings it predicts with, and the data.

    `config` is the checkpoint's, `metadata` the rest of its `config.json`. Where it reads the embeddings of an encoder, the
    encoder's weights are part of it.
    """
    identity = {f"run.{key}": value for key, value in config_settings(config).items()}
    identity |= {f"run.{key}": metadata[key] for key in ("classes", "images", "encoder") if key in metadata}
    columns = config.required_columns if "caption" in config.required_columns else ()
    return {"model": checkpoint_hash(checkpoint), "split": split} | identity | data_identity(data, columns)


def checkpoint_hash(checkpoint: Path) -> str:
    """Of the names and contents of all files that a checkpoint predicts with: weights, texts, tokenizers, galleries."""
    names = {path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file()}
    used = sorted(name for name in names if str(name) not in UNHASHED_CHECKPOINT_FILES and name.parts[0] != "hf")
    return digest([(str(name), file_hash(checkpoint / name)) for name in used], 16)


def _inference_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint's `config.json` has, without those that name files."""
    metadata = read_json_object(checkpoint / "config.json")
    named = (*IGNORED_FIELDS, *WEIGHT_FIELDS, "clip", "captions", "prompts")
    metadata["config"] = {key: value for key, value in metadata.get("config", {}).items() if key not in named}
    return metadata


def zeroshot_identity(config: Any, data: DataFingerprint, precision: str) -> dict[str, Any]:
    """The identity of a zero-shot run. It leaves out the split, since a run's splits share a folder."""
    identity = config_identity(config, data.classes) | {"clip.precision": precision}
    del identity["split"]
    return identity | data_identity(data)


def prompts_identity(config: Any, data: DataFingerprint, space: Any) -> dict[str, Any]:
    """What makes two searches for prompts the same; `space`, a dataclass, is what the config's `space` holds."""
    identity = {"task": "prompts"} | config_identity(config) | data_identity(data)
    return identity | {"space": digest(dataclasses.asdict(space))}


def generation_identity(config: Any, data: DataFingerprint) -> dict[str, Any]:
    """What makes two tables of generated captions the same."""
    return config_identity(config) | data_identity(data)


def search_identity(config: Any, encoder: Mapping[str, Any], images: Sequence[str]) -> dict[str, Any]:
    """What makes two searches the same: what is asked of which embeddings; `images`: the pixel hashes of those asked by."""
    fields = ("text", "find", "top", "where", "caption_template", "index")
    captions = hash_or_name(config.captions, CAPTION_SOURCES)
    identity = {name: getattr(config, name) for name in fields} | {"captions": captions, "images": images}
    return json_roundtrip(identity | dict(encoder))


def cascade_identity(checkpoints: Sequence[Path], keep: str, images: Mapping[str, str]) -> dict[str, Any]:
    """What makes two cascades the same: what predicts, what is kept, and the pixel hashes of the images by name."""
    models = [[checkpoint_hash(folder), digest(_inference_settings(folder))] for folder in checkpoints]
    return {"models": models, "keep": keep, "images": dict(images)}


def comparison_identity(
    predictions: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What makes two comparisons the same: the split, which runs (name → metadata of the predictions), and the settings."""
    metadata = next(iter(predictions.values()))
    compared = {name: digest([one["method"], one["identity"]]) for name, one in predictions.items()}
    identity = {"split": metadata["split"], "split_hash": metadata["split_hash"], "methods": compared}
    return json_roundtrip(identity | dict(settings or {}))


def audit_identity(config: Any, data: Sequence[DataFingerprint]) -> dict[str, Any]:
    """What makes two audits the same: the audited data set, and those that it is audited against."""
    return {"task": "audit", "seed": config.seed} | {
        "data": [data_identity(one) | {"manifest": one.content_hash} for one in data]
    }


def ensemble_identity(config: Any, metadata: Mapping[str, Any], members: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two ensembles the same: the rule, the split, the classes, and what the members predict, in any order.

    `members`: split → probabilities (m, n, k), an array, of images in the order of their ids.
    """
    counts = range(len(next(iter(members.values()))))
    contents = [buffers_hash((split, array[at].tobytes()) for split, array in members.items()) for at in counts]
    settings = {key: getattr(config, key) for key in ("rule", "folds", "seed")}
    of = {"split_hash": metadata["split_hash"], "classes": list(metadata["classes"])}
    return {"task": "ensemble", "members": sorted(contents)} | settings | of


def json_roundtrip(value: Any) -> Any:
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=to_json_value))
