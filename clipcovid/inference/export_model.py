"""A run's model as a folder that predicts images from anywhere: it needs neither the run nor the data nor other weights."""

import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipcovid.config import ClipConfig, ImagesConfig, TrainConfig, UserError
from clipcovid.data.manifest import read_manifest
from clipcovid.data.prepare import pack_hash
from clipcovid.inference.image_models import ENCODER_FOLDER, ZEROSHOT_FILE
from clipcovid.inference.predict import check_encoder
from clipcovid.inference.predict_zeroshot import is_zeroshot_run, zeroshot_clip
from clipcovid.io.files import write_json
from clipcovid.methods.checkpoints import CAPTION_TABLE, CHECKPOINT_FILES, PROMPTS, read_checkpoint
from clipcovid.methods.registry import METHODS
from clipcovid.runs import SUCCESS_MARKER, read_run_metadata

SERVED_KINDS = ("classification", "segmentation")
UNUSED_FILES = (
    rf"hf/.*|{re.escape(CAPTION_TABLE)}|training_images\.parquet"  # of a checkpoint: no prediction needs them
)


def check_exportable(run: Path) -> None:
    """Raise `UserError`, before anything is loaded, for what is no finished run of a model of images as files have them."""
    metadata = read_run_metadata(run)
    if not (run / SUCCESS_MARKER).exists() or not metadata:
        raise UserError(f"{run} is no finished run: give the folder of a training or of clipcovid zeroshot.")
    if is_zeroshot_run(run):
        images = _zeroshot_images(run, metadata)
    else:
        config, checkpoint, _ = read_checkpoint(run)
        check_kind(config)
        images = ImagesConfig(**checkpoint["images"])
    check_pixels(images, metadata["identity"].get("pack_hash", ""), str(run))


def check_kind(config: TrainConfig) -> None:
    """Refuse methods whose models need more than an image."""
    kind = METHODS[config.task].kind
    if kind not in SERVED_KINDS:
        raise UserError(
            f"A {config.task} model reads texts, or a gallery of captions, beside an image: only models of "
            f"{' and '.join(SERVED_KINDS)} are served. For captions there are clipcovid search and clipcovid predict."
        )


def check_pixels(images: ImagesConfig, packed: str, name: str) -> None:
    """Refuse a model of pixels that `images` does not make of files. `packed`: their pack hash; `name`: whose they are."""
    if packed != pack_hash(images):
        raise UserError(
            f"{name} has images that are not what files hold: clipcovid apply-masks changed them, or another version "
            "prepared them. A served model would get whole X-rays: use clipcovid cascade, which masks them first, or train "
            "on the images themselves."
        )


def export_model(run: Path, folder: Path) -> None:
    """Write all that a run predicts images with into `folder`, which is made; `load_model` opens it.

    The weights are safetensors. A run that `check_exportable` refuses, or whose encoder is no longer what it was, is a
    `UserError`.
    """
    check_exportable(run)
    if is_zeroshot_run(run):
        _export_zeroshot(run, read_run_metadata(run), folder)
        return
    config, checkpoint, source = read_checkpoint(run)
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source).as_posix()
        if re.fullmatch(CHECKPOINT_FILES, f"checkpoint/{name}") and not re.fullmatch(UNUSED_FILES, name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
    if METHODS[config.task].uses_embeddings:
        check_encoder(run, config, checkpoint)
        _export_encoder(config.clip, config.seed, folder)


def _export_zeroshot(run: Path, metadata: dict[str, Any], folder: Path) -> None:
    clip, settings = zeroshot_clip(run), metadata["config"]
    _export_encoder(clip, settings["seed"], folder)
    shutil.copyfile(run / PROMPTS, folder / PROMPTS)
    images = _zeroshot_images(run, metadata)
    write_json(
        folder / ZEROSHOT_FILE,
        {"images": asdict(images), "input": settings["input"], "precision": clip.precision},
    )


def _zeroshot_images(run: Path, metadata: dict[str, Any]) -> ImagesConfig:
    """How the images of a zero-shot run were packed, which its data set knows."""
    data = Path(metadata["config"]["data"])
    if not (data / "manifest.parquet").is_file():
        raise UserError(
            f"{run} was made of {data}, which is not there: start from the folder that --data was given in."
        )
    return ImagesConfig(**read_manifest(data).info["images"])


def _export_encoder(config: ClipConfig, seed: int, folder: Path) -> None:
    """Write the CLIP that a config names as a checkpoint of ours."""
    from clipcovid.models.clip import load_clip, save_clip

    save_clip(folder / ENCODER_FOLDER, load_clip(config, seed=seed), hf=False)
