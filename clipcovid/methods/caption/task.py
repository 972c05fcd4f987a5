"""A dual encoder of images and captions, judged by what it retrieves."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

from clipcovid.config import UserError
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest
from clipcovid.data.packed import PackedImages
from clipcovid.evaluate import retrieval
from clipcovid.evaluate.captions import retrieval_baselines
from clipcovid.io.files import atomic_write, write_json
from clipcovid.methods.caption.config import DualEncoderConfig
from clipcovid.methods.contrastive import ContrastiveModule, ContrastiveTask
from clipcovid.methods.task import Batch, Examples, Predictor, ValidateFn
from clipcovid.models.clip import load_clip
from clipcovid.models.clip_model import Clip
from clipcovid.models.dual_encoder import DualEncoderSpec, build_dual_encoder

GALLERY_BATCH_SIZE = 64  # training pairs encoded at once for the gallery
GALLERY_FILE = (
    "gallery"  # .safetensors and .json in a checkpoint: the training captions, from which new images get theirs
)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The training pairs, encoded."""

    captions: list[str]
    """Unique ones."""
    texts: np.ndarray
    """Their features (u, d) float16."""
    images: np.ndarray
    """Features of the training images (n, d) float16."""
    which: np.ndarray
    """Each image's caption (n,) int64."""


@dataclass(frozen=True, kw_only=True)
class DualEncoderState:
    """The two encoders, and once they are trained the gallery."""

    clip: Clip
    gallery: Gallery | None = None


class DualEncoderTask(ContrastiveTask[DualEncoderConfig, DualEncoderState]):
    """An image encoder and a text encoder, trained together."""

    monitor: ClassVar[tuple[str, str]] = ("image_to_text/mrr", "max")
    validation_metrics: ClassVar[dict[str, str]] = {
        f"{way}/{name}": "min" if name == "median_rank" else "max"
        for way in ("image_to_text", "text_to_image")
        for name in ("mrr", "recall_1", "recall_5", "recall_10", "median_rank")
    }

    def setup(self, data: Path, manifest: Manifest, embeddings: Embeddings | None = None) -> DualEncoderState:
        """The two encoders; a preset's tokenizer is trained on the training captions."""
        config = self.config
        if config.towers == "clip":
            return DualEncoderState(clip=load_clip(config.clip, seed=config.seed))
        rows, _ = manifest.rows_with("train", config.required_columns)
        clip = build_dual_encoder(
            DualEncoderSpec(
                arch=config.image_encoder,
                weights=config.weights,
                text=config.text_encoder,
                text_weights=config.text_tower_weights,
                width=config.width,
                projection=config.projection,
                image_size=config.image_size or self.images.size,
                context=config.context,
                vocabulary=config.vocabulary,
            ),
            rows["caption"].tolist(),
            config.seed,
        )
        return DualEncoderState(clip=clip)

    def towers(self, state: DualEncoderState) -> Clip:
        """The two encoders."""
        return state.clip

    def freeze(self, module: ContrastiveModule) -> None:
        """Freeze the tower that is not to be trained, but for its projection."""
        for tower in ("visual", "text") if self.config.freeze != "none" else ():
            if (tower == "visual") == (self.config.freeze == "image"):
                inner = getattr(module.clip, tower, None)
                trunk = getattr(inner, "trunk", None) or getattr(inner, "transformer", None)
                if trunk is None or self.config.towers == "clip":
                    raise UserError(
                        "--freeze is for --towers own; to train one tower of a CLIP, use clipcovid finetune."
                    )
                trunk.requires_grad_(False)

    def examples(
        self, data: Path, manifest: Manifest, split: str, state: DualEncoderState, *, training: bool = False
    ) -> Examples:
        """The split's images that have a caption."""
        rows, notes = manifest.rows_with(split, self.config.required_columns)
        if training:
            notes = notes | self.truncation_notes(rows["caption"], state.clip)
        read = self.reader(PackedImages(data, manifest), rows, state, training=training)
        return Examples(rows=rows, notes=notes, read=read)

    def reader(
        self, packed: PackedImages, rows: pd.DataFrame, state: DualEncoderState, *, training: bool = False
    ) -> Callable[[np.ndarray], Batch]:
        """Also the captions' tokens, where all of these images have one."""
        if (rows["caption"] != "").all():
            return self.pair_reader(packed, rows, state.clip)
        return super().reader(packed, rows, state, training=training)

    def predictor(self, module: Any) -> Predictor:
        """Features (n, 2, d) of images and of their captions, L2-normalised; (n, 1, d) where there are no captions."""

        def predict(batch: Batch) -> torch.Tensor:
            images = F.normalize(module.clip.encode_image(module.to_input(batch["image"])).float(), dim=-1)
            if "tokens" not in batch:
                return images.unsqueeze(1)
            texts = F.normalize(module.clip.encode_text(batch["tokens"]).float(), dim=-1)
            return torch.stack([images, texts[batch["text_index"]]], dim=1)

        return predict

    def validation_scores(self, examples: Examples, outputs: np.ndarray) -> dict[str, float]:
        """Retrieval both ways within the split."""
        ranks = retrieval.retrieval_ranks(outputs[:, 0], outputs[:, 1], examples.rows["caption"].tolist())
        directions = zip(("image_to_text", "text_to_image"), map(retrieval.retrieval_metrics, ranks), strict=True)
        return {f"{direction}/{name}": value for direction, scores in directions for name, value in scores.items()}

    def select_on_validation(
        self, module: torch.nn.Module, train: Examples, state: DualEncoderState, validate: ValidateFn
    ) -> tuple[dict[str, Any], DualEncoderState]:
        """Encode the training pairs: the gallery, from which new images get their captions."""
        return {}, replace(state, gallery=self._encode(module, train))

    def _encode(self, module: torch.nn.Module, train: Examples) -> Gallery:
        predict, device = self.predictor(module), next(module.parameters()).device
        images, texts = [], []
        with torch.no_grad():
            for start in range(0, len(train), GALLERY_BATCH_SIZE):
                arrays = train.read(np.arange(start, min(start + GALLERY_BATCH_SIZE, len(train))))
                batch = {
                    name: torch.from_numpy(values).to(device) if isinstance(values, np.ndarray) else values
                    for name, values in arrays.items()
                }
                features = cast(torch.Tensor, predict(batch)).float().cpu().numpy()
                images.append(features[:, 0])
                texts.append(features[:, 1])
        captions, first, caption_index = np.unique(
            train.rows["caption"].to_numpy(str), return_index=True, return_inverse=True
        )
        return Gallery(
            captions=captions.tolist(),
            texts=np.concatenate(texts)[first].astype(np.float16),
            images=np.concatenate(images).astype(np.float16),
            which=caption_index.astype(np.int64),
        )

    def predictions_table(self, examples: Examples, outputs: np.ndarray, state: DualEncoderState) -> pd.DataFrame:
        """Each image's caption from the training captions, and where there is a true one the ranks among the split's own.

        `hypothesis`: the training caption most similar to the image. Beside it what else could be said:
        `hypothesis_nearest`, the caption of the most similar training image; `_frequent`, the most frequent one; `_random`,
        that of a training image at random; `_own`, the most similar caption of this very split, the truth among them.
        """
        assert state.gallery is not None, "made by select_on_validation"
        gallery, images = state.gallery, outputs[:, 0]
        hypotheses = np.array(gallery.captions, object)[retrieval.nearest(images, gallery.texts)]
        columns = {"image_id": examples.rows["image_id"].to_numpy(), "hypothesis": hypotheses}
        columns |= retrieval_baselines(images, gallery.images, gallery.captions, gallery.which, self.config.seed)
        table = pd.DataFrame(columns)
        if outputs.shape[1] == 1:
            return table
        references = examples.rows["caption"].to_numpy(object)
        image_to_text, text_to_image = retrieval.retrieval_ranks(images, outputs[:, 1], references.tolist())
        table["hypothesis_own"] = references[retrieval.nearest(images, outputs[:, 1])]
        return table.assign(reference=references, image_to_text_rank=image_to_text, text_to_image_rank=text_to_image)

    def save(self, module: torch.nn.Module, state: DualEncoderState, folder: Path) -> None:
        """The CLIP, and the gallery."""
        super().save(module, state, folder)
        gallery = state.gallery
        assert gallery is not None, "made by select_on_validation"
        arrays = {name: getattr(gallery, name) for name in ("texts", "images", "which")}
        with atomic_write(folder / f"{GALLERY_FILE}.safetensors") as partial:
            save_file(arrays, partial)
        write_json(folder / f"{GALLERY_FILE}.json", gallery.captions)

    def load(self, folder: Path) -> tuple[torch.nn.Module, DualEncoderState]:
        """The CLIP that was saved, and its gallery."""
        captions = json.loads((folder / f"{GALLERY_FILE}.json").read_text(encoding="utf-8"))
        gallery = Gallery(captions=captions, **load_file(folder / f"{GALLERY_FILE}.safetensors"))
        clip = self.load_towers(folder)
        return ContrastiveModule(clip).eval(), DualEncoderState(clip=clip, gallery=gallery)
