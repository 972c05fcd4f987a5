"""Zero-shot classification: cached image embeddings against the embeddings of texts (CLIP, Radford et al. 2021)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import tyro

from clipcovid.config import UserError
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.evaluate.report import score_split
from clipcovid.evaluate.scores import Scores
from clipcovid.identity import zeroshot_identity
from clipcovid.inference.embed import EmbedConfig, embed, is_training_image
from clipcovid.io.files import write_json
from clipcovid.methods.checkpoints import PROMPTS
from clipcovid.prompts import PromptsConfig, build_prompts
from clipcovid.runs import Run, finish_run, start_run

if TYPE_CHECKING:
    from clipcovid.models.clip_model import Clip


@dataclass(frozen=True, kw_only=True)
class ZeroshotConfig(EmbedConfig):
    """What to classify, with which encoder and which words."""

    split: Literal["train", "val", "test", "all"] = "test"
    """The split to score."""
    prompts: tyro.conf.OmitArgPrefixes[PromptsConfig] = PromptsConfig()
    """The texts."""
    out: Path = Path("outputs")
    """Where run folders and the MLflow store go."""
    name: str = ""
    """The run folder's name. Default: the method and the identity's hash."""


@dataclass(frozen=True, kw_only=True)
class ZeroshotResult:
    """A zero-shot run and what came of it."""

    run: Run
    manifest: Manifest = field(compare=False)
    """The data's."""
    scores: Scores | None
    """None where the encoder learned from all of the images."""


def zeroshot(config: ZeroshotConfig, log: Callable[[str], None] = print) -> ZeroshotResult:
    """Classify a split of a prepared folder by its embeddings, which are made first where they are missing.

    Writes the run folder with predictions, scores, figures and the prompts used. Raises `UserError` where the split has
    no labelled image, or the prompts lack a class.
    """
    manifest = read_manifest(config.data)
    learned, assumed = is_training_image(config.clip, manifest)
    if assumed:
        log(f"note: {assumed}")
    rows = manifest.rows(config.split)
    rows = rows[rows["label"] != ""]
    if rows.empty or len(manifest.classes) < 2:
        raise UserError(
            f"The split {config.split!r} of {config.data} has too few labels to score: it needs two classes."
        )
    prompts = build_prompts(config.prompts, manifest.classes)
    embeddings = embed(EmbedConfig.from_config(config), log, manifest=manifest)
    identity = zeroshot_identity(config, manifest, embeddings.encoder["precision"])
    run = start_run(config, method="zeroshot", identity=identity)
    write_json(run.folder / PROMPTS, prompts)
    table, similarities = classify_embeddings(config, embeddings, rows["image_id"], prompts, log)
    scores = score_split(
        run,
        manifest,
        table,
        split=config.split,
        similarities=similarities,
        trained_on=set(manifest.table.loc[learned, "image_id"]),
    )
    finish_run(run)
    return ZeroshotResult(run=run, manifest=manifest, scores=scores)


def classify_embeddings(
    config: EmbedConfig,
    embeddings: Embeddings,
    image_ids: pd.Series,
    prompts: dict[str, list[str]],
    log: Callable[[str], None] = print,
) -> tuple[pd.DataFrame, np.ndarray]:
    """The predictions table (image_id, prob_<class>) of n embedded images, and their similarities (n, k) to the k classes."""
    from clipcovid.models.clip import load_clip  # torch, which the driver does not need before
    from clipcovid.models.clip_model import class_embeddings

    clip = load_clip(config.clip, seed=config.seed, precision=embeddings.encoder["precision"])
    truncated = clip.count_truncated([text for texts in prompts.values() for text in texts])
    if truncated["texts"]:
        log(
            f"{truncated['texts']} prompts are longer than the model's context: {truncated['tokens']} tokens are cut off."
        )
    similarities = embeddings.load(image_ids).astype(np.float32) @ class_embeddings(clip, prompts).T
    table = pd.DataFrame({"image_id": image_ids.to_numpy()})
    table[[f"prob_{name}" for name in prompts]] = softmax(clip.logit_scale * similarities)
    return table, similarities


def classify(clip: "Clip", pixels: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
    """Probabilities (n, k), float64, of `k` texts for `n` uint8 images (size, size) or (size, size, 3)."""
    text_features = clip.encode_texts(texts).numpy()
    image_features = np.concatenate([clip.encode_images(image[None]).cpu().numpy() for image in pixels])
    return softmax(clip.logit_scale * image_features @ text_features.T)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float64; logits that are not finite are a `UserError`."""
    if not np.isfinite(logits).all():
        raise UserError(
            "The encoder gives similarities that are not finite: try --clip.precision fp32, or other weights."
        )
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)
