"""Predictions of a zero-shot run, which has no checkpoint, on any prepared data set: its encoder with its prompts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from clipcovid.config import ClipConfig, UserError
from clipcovid.data.manifest import read_manifest
from clipcovid.identity import clip_weights_identity, data_identity
from clipcovid.inference.embed import EmbedConfig, embed, is_training_image
from clipcovid.inference.predict import PredictConfig, PredictResult, map_labels, write_prediction_run
from clipcovid.inference.zeroshot import classify_embeddings
from clipcovid.io.files import read_json_object
from clipcovid.methods.checkpoints import PROMPTS
from clipcovid.runs import Run, read_run_metadata


def is_zeroshot_run(folder: Path) -> bool:
    """Whether a folder holds a zero-shot run, or the best one of a search for prompts."""
    return read_run_metadata(folder).get("method") == "zeroshot" and (folder / PROMPTS).is_file()


def predict_zeroshot(config: PredictConfig, log: Callable[[str], None] = print) -> PredictResult:
    """As `predict.predict_split`, of a zero-shot run: the same words and weights on other images.

    An encoder whose weights are not those that the run used is a `UserError`, and so are classes that it has no words for.
    """
    metadata, prompts = read_run_metadata(config.run), read_json_object(config.run / PROMPTS)
    encoder = zeroshot_encoder(config)
    source = read_manifest(config.data)
    learned, note = is_training_image(encoder.clip, source)
    if note:
        log(f"note: {note}")
    manifest = map_labels(source, list(prompts), config.map)
    used = {key: value for key, value in metadata["identity"].items() if not key.endswith("_hash")}

    def predict_rows(run: Run, rows: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        return classify_embeddings(encoder, embed(encoder, log, manifest=source), rows["image_id"], prompts, log)

    return write_prediction_run(
        config,
        method=metadata["method"],
        trained_run=config.run,
        identity={"run": used, "split": config.split} | data_identity(manifest),
        manifest=manifest,
        is_trained_on=learned,
        predict_rows=predict_rows,
        log=log,
    )


def zeroshot_encoder(config: PredictConfig) -> EmbedConfig:
    """The encoder of the config's zero-shot run, for the images to predict; one with other weights now is a `UserError`."""
    changes = {name: getattr(config, name) for name in ("data", "embeddings", "out", "compute")}
    settings = read_run_metadata(config.run)["config"]
    return EmbedConfig(clip=zeroshot_clip(config.run), input=settings["input"], seed=settings["seed"], **changes)


def zeroshot_clip(run: Path) -> ClipConfig:
    """The CLIP of a zero-shot run; one that has other weights now is a `UserError`."""
    metadata = read_run_metadata(run)
    settings, identity = metadata["config"], metadata["identity"]
    clip = ClipConfig(**{name: settings[f"clip.{name}"] for name in ("model", "pretrained", "precision")})
    weights = clip_weights_identity(clip, settings["seed"])
    if any(identity.get(key) != value for key, value in weights.items()):
        raise UserError(
            f"{run} was made with other weights than those that are in {clip.pretrained} now: bring back the encoder "
            "as it was, or run it anew."
        )
    return clip
