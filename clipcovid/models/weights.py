"""Where CLIP weights come from, and what tells them from others: no torch here, so that a driver knows it at once."""

import hashlib
from pathlib import Path

from clipcovid.config import ClipConfig, UserError

OPENCLIP_CONFIG = "open_clip_config.json"
_PUBLISHED = ClipConfig.pretrained  # the default tag, which models that bring their own weights may leave standing


def weights_of(config: ClipConfig, seed: int) -> dict[str, str]:
    """Where the weights come from, and what tells them from others: part of an encoder's identity. Loads nothing.

    A file is known by its SHA-256, a published tag or hub model by its name, random weights by their seed. Weights that
    can't be meant are a `UserError`.
    """
    name, place = config.pretrained, Path(config.pretrained)
    if config.model.startswith("hf-hub:"):
        if name not in (_PUBLISHED, "none"):
            raise UserError(f"{config.model} brings its own weights: leave --clip.pretrained {name} out.")
        return {"weights": config.model} if name != "none" else {"weights": "none", "seed": str(seed)}
    if name == "none":
        return {"weights": "none", "seed": str(seed)}
    if place.is_dir():
        return {"weights": _file_hash(_weights_file(checkpoint_folder(place)))}
    if place.is_file():
        return {"weights": _file_hash(place)}
    if place.suffix in (".safetensors", ".pt", ".pth", ".bin") or "/" in name:
        raise UserError(f"--clip.pretrained {name}: no such file or folder.")
    if config.model == "tiny":
        raise UserError(
            f"tiny has no published weights {name!r}: give --clip.pretrained a checkpoint or run folder, or none for "
            "random weights."
        )
    return {"weights": name}


def checkpoint_folder(place: Path) -> Path:
    """The open_clip checkpoint in a folder: the folder itself, or the `checkpoint/` of a run of ours."""
    for folder in (place / "checkpoint", place):
        if (folder / OPENCLIP_CONFIG).is_file():
            return folder
    raise UserError(
        f"--clip.pretrained {place} holds no {OPENCLIP_CONFIG}: give a run folder of ours, an open_clip checkpoint "
        "folder, or a weights file together with its --clip.model."
    )


def _weights_file(folder: Path) -> Path:
    files = [path for ending in ("safetensors", "bin", "pth", "pt") for path in sorted(folder.glob(f"*.{ending}"))]
    if not files:
        raise UserError(f"{folder} holds no weights (.safetensors, .bin, .pth or .pt).")
    return files[0]


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
