"""A dual encoder of images and captions, judged by what it retrieves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

from clipcovid.config import UserError
from clipcovid.data.manifest import Manifest
from clipcovid.data.packed import PackedImages
from clipcovid.evaluate import retrieval
from clipcovid.evaluate.captions import retrieval_baselines
from clipcovid.io.files import atomic_write, write_json
from clipcovid.methods.contrastive import Contrastive
from clipcovid.methods.task import Batch, Examples, Predictor
from clipcovid.models.clip import load_clip
from clipcovid.models.clip_model import Clip
from clipcovid.models.dual_encoder import Towers, build_dual

CHUNK = 64  # training pairs encoded at once for the gallery
GALLERY = "gallery"  # .safetensors and .json in a checkpoint: the training captions, from which new images get theirs


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


class Caption(Contrastive):
    """An image encoder and a text encoder, trained together."""

    monitor: ClassVar[tuple[str, str]] = ("image_to_text/mrr", "max")
    validation_metrics: ClassVar[dict[str, str]] = {
        f"{way}/{name}": "min" if name == "median_rank" else "max"
        for way in ("image_to_text", "text_to_image")
        for name in ("mrr", "recall_1", "recall_5", "recall_10", "median_rank")
    }
    gallery: Gallery | None = None
    learned_from: Examples | None = None
    """The training pairs, of which the gallery is made in the end."""

    def load_towers(self) -> Clip:
        """The two encoders; a preset's tokenizer is trained on the training captions."""
        config = self.config
        if config.towers == "clip":
            return load_clip(config.clip, seed=config.seed)
        assert self.learned_from is not None, "the training examples come first"
        return build_dual(
            Towers(
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
            self.learned_from.rows["caption"].tolist(),
            config.seed,
        )

    def choose(self) -> None:
        """Freeze the tower that is not to be trained, but for its projection."""
        for tower in ("visual", "text") if self.config.freeze != "none" else ():
            if (tower == "visual") == (self.config.freeze == "image"):
                inner = getattr(self.clip.model, tower, None)
                trunk = getattr(inner, "trunk", None) or getattr(inner, "transformer", None)
                if trunk is None or self.config.towers == "clip":
                    raise UserError(
                        "--freeze is for --towers own; to train one tower of a CLIP, use clipcovid finetune."
                    )
                trunk.requires_grad_(False)

    def examples(self, data: Path, manifest: Manifest, split: str, *, training: bool = False) -> Examples:
        """The split's images that have a caption."""
        rows, notes = manifest.eligible(split, self.config.required_columns)
        if training:
            unread = Examples(rows=rows, read=lambda take: {})
            self.learned_from = unread  # a tokenizer may be trained on it
            notes = notes | self.cut(rows["caption"])
        made = Examples(rows=rows, notes=notes, read=self.reader(PackedImages(data, manifest), rows, training=training))
        if training:
            self.learned_from = made
        return made

    def reader(self, packed: PackedImages, rows: pd.DataFrame, *, training: bool = False) -> Any:
        """Also the captions' tokens, where all of these images have one."""
        if (rows["caption"] != "").all():
            return self.pairs(packed, rows, training=training)
        return super().reader(packed, rows, training=training)

    def predictor(self, module: Any) -> Predictor:
        """Features (n, 2, d) of images and of their captions, L2-normalised; (n, 1, d) where there are no captions."""

        def predict(batch: Batch) -> torch.Tensor:
            seen = F.normalize(module.clip.encode_image(module.to_input(batch["image"])).float(), dim=-1)
            if "tokens" not in batch:
                return seen.unsqueeze(1)
            read = F.normalize(module.clip.encode_text(batch["tokens"]).float(), dim=-1)
            return torch.stack([seen, read[batch["place"]]], dim=1)

        return predict

    def validation_scores(self, examples: Examples, outputs: np.ndarray) -> dict[str, float]:
        """Retrieval both ways within the split."""
        found = retrieval.ranks(outputs[:, 0], outputs[:, 1], examples.rows["caption"].tolist())
        both = zip(("image_to_text", "text_to_image"), map(retrieval.summary, found), strict=True)
        return {f"{way}/{name}": value for way, values in both for name, value in values.items()}

    def test_predictor(self, module: torch.nn.Module) -> Predictor:
        """Features, as for validation; the gallery is encoded first, where there is none."""
        predict = self.predictor(module)
        if self.gallery is None:
            self.gallery = self._encode(predict, next(module.parameters()).device)
        return predict

    def _encode(self, predict: Predictor, device: torch.device) -> Gallery:
        assert self.learned_from is not None, "the training examples come first"
        images, texts = [], []
        with torch.no_grad():
            for start in range(0, len(self.learned_from), CHUNK):
                batch = self.learned_from.read(np.arange(start, min(start + CHUNK, len(self.learned_from))))
                there = {
                    k: torch.from_numpy(v).to(device) if isinstance(v, np.ndarray) else v for k, v in batch.items()
                }
                both = cast(torch.Tensor, predict(there)).float().cpu().numpy()
                images.append(both[:, 0])
                texts.append(both[:, 1])
        captions, first, which = np.unique(
            self.learned_from.rows["caption"].to_numpy(str), return_index=True, return_inverse=True
        )
        return Gallery(
            captions=captions.tolist(),
            texts=np.concatenate(texts)[first].astype(np.float16),
            images=np.concatenate(images).astype(np.float16),
            which=which.astype(np.int64),
        )

    def table(self, examples: Examples, outputs: np.ndarray) -> pd.DataFrame:
        """Each image's caption from the training captions, and where there is a true one the ranks among the split's own.

        `hypothesis`: the training caption most similar to the image. Beside it what else could be said:
        `hypothesis_nearest`, the caption of the most similar training image; `_frequent`, the most frequent one; `_random`,
        that of a training image at random; `_own`, the most similar caption of this very split, the truth among them.
        """
        assert self.gallery is not None, "made by final"
        gallery, images = self.gallery, outputs[:, 0]
        found = {"hypothesis": np.array(gallery.captions, object)[retrieval.nearest(images, gallery.texts)]}
        found |= retrieval_baselines(images, gallery.images, gallery.captions, gallery.which, self.config.seed)
        table = pd.DataFrame({"image_id": examples.rows["image_id"].to_numpy()} | found)
        if outputs.shape[1] == 1:
            return table
        own = examples.rows["caption"].to_numpy(object)
        there, back = retrieval.ranks(images, outputs[:, 1], own.tolist())
        table["hypothesis_own"] = own[retrieval.nearest(images, outputs[:, 1])]
        return table.assign(reference=own, image_to_text_rank=there, text_to_image_rank=back)

    def save(self, module: torch.nn.Module, folder: Path) -> None:
        """The CLIP, and the gallery."""
        super().save(module, folder)
        assert self.gallery is not None, "made by final"
        arrays = {name: getattr(self.gallery, name) for name in ("texts", "images", "which")}
        with atomic_write(folder / f"{GALLERY}.safetensors") as partial:
            save_file(arrays, partial)
        write_json(folder / f"{GALLERY}.json", self.gallery.captions)

    def load(self, folder: Path) -> torch.nn.Module:
        """The CLIP that was saved, and its gallery."""
        captions = json.loads((folder / f"{GALLERY}.json").read_text(encoding="utf-8"))
        self.gallery = Gallery(captions=captions, **load_file(folder / f"{GALLERY}.safetensors"))
        return super().load(folder)
