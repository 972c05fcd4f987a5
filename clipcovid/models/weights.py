"""Where CLIP weights come from: no torch here, so that a driver knows it at once."""

import json
from pathlib import Path

from clipcovid.config import ClipConfig, UserError

OPENCLIP_CONFIG = "open_clip_config.json"
TEXT_TOWER_FOLDER = "text"  # of a checkpoint's folder, where its text encoder is one of Hugging Face
HF_CONFIG = "config.json"
HF_IMAGE_CONFIGS = (
    "preprocessor_config.json",
    "processor_config.json",
)  # the first as of old, the second of transformers 5
_OPENCLIP_WEIGHTS = (  # in the order in which open_clip looks for them
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PUBLISHED = ClipConfig.pretrained  # the default tag, which models that bring their own weights may leave standing


def locate_weights(config: ClipConfig) -> list[Path] | str:
    """The files that hold the weights, or the name of published ones, or "none" for random ones. Loads nothing.

    Weights that can't be meant are a `UserError`.
    """
    name, path = config.pretrained, Path(config.pretrained)
    if config.model.startswith("hf-hub:"):
        if name not in (_PUBLISHED, "none"):
            raise UserError(f"{config.model} brings its own weights: leave --clip.pretrained {name} out.")
        return config.model if name != "none" else "none"
    if name == "none":
        return "none"
    if path.is_dir():
        folder = checkpoint_folder(path)
        return hf_files(folder) if is_hf(folder) else open_clip_files(folder)
    if path.is_file():
        return [path]
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin") or "/" in name:
        raise UserError(f"--clip.pretrained {name}: no such file or folder.")
    if config.model == "tiny":
        raise UserError(
            f"tiny has no published weights {name!r}: give --clip.pretrained a checkpoint or run folder, or none for "
            "random weights."
        )
    return name


def checkpoint_folder(place: Path) -> Path:
    """The checkpoint in a folder: open_clip's in it, or in the `checkpoint/` of a run of ours, or a Hugging Face CLIP."""
    for folder in (place / "checkpoint", place):
        if (folder / OPENCLIP_CONFIG).is_file():
            return folder
    kind = _hf_kind(place)
    if kind == "clip":
        return place
    if kind:
        raise UserError(
            f"--clip.pretrained {place} is a Hugging Face model of the type {kind}: only clip can be loaded."
        )
    raise UserError(
        f"--clip.pretrained {place} holds no {OPENCLIP_CONFIG}: give a run folder of ours, an open_clip checkpoint "
        "folder, a Hugging Face CLIPModel folder, or a weights file together with its --clip.model."
    )


def is_hf(folder: Path) -> bool:
    """Whether what `checkpoint_folder` found is Hugging Face's; open_clip's config comes first where there are both."""
    return not (folder / OPENCLIP_CONFIG).is_file()


def hf_files(folder: Path) -> list[Path]:
    """A Hugging Face folder's configs and weights: the same weights with another activation are another encoder."""
    return [folder / name for name in (HF_CONFIG, *HF_IMAGE_CONFIGS) if (folder / name).is_file()] + hf_weights(folder)


def hf_weights(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder, in the order that transformers looks for them; none is a `UserError`."""
    for name in _HF_WEIGHTS:
        index = folder / f"{name}.index.json"
        files = [folder / name] if (folder / name).is_file() else []
        if not files and index.is_file():
            try:
                files = [folder / shard for shard in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{index} is no index of weights ({error}): download the folder again.") from error
            for file in files:
                if file.parent != folder or not file.is_file():
                    raise UserError(f"{index} names {file.name}, which is not there: download the folder again.")
        if files:
            return files
    raise UserError(f"{folder} holds no weights ({' or '.join(_HF_WEIGHTS)}, whole or in shards).")


def _hf_kind(folder: Path) -> str:
    """The `model_type` of a Hugging Face folder, empty where it is none."""
    try:
        about = json.loads((folder / HF_CONFIG).read_bytes())
    except (OSError, ValueError):
        return ""
    kind = about.get("model_type") if isinstance(about, dict) else None
    return kind if isinstance(kind, str) else ""


def open_clip_files(folder: Path) -> list[Path]:
    """An open_clip checkpoint's config, its text tower's and tokenizer's, and its weights."""
    texts = [path for place in (folder / TEXT_TOWER_FOLDER, folder) for path in sorted(place.glob("*token*.json"))]
    configs = [folder / OPENCLIP_CONFIG, *sorted((folder / TEXT_TOWER_FOLDER).glob(HF_CONFIG)), *texts]
    return [*configs, weights_file(folder)]


def weights_file(folder: Path) -> Path:
    """The weights in an open_clip folder, by the names that open_clip writes; none, or one of several, is a `UserError`."""
    for name in _OPENCLIP_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    files = [path for ending in ("safetensors", "bin", "pth", "pt") for path in sorted(folder.glob(f"*.{ending}"))]
    if not files:
        raise UserError(f"{folder} holds no weights (.safetensors, .bin, .pth or .pt).")
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise UserError(
            f"{folder} holds several weights files ({names}): leave one of them there, or name it model.safetensors."
        )
    return files[0]
