"""Captions that a published captioner writes for images, to train CLIP on: BLIP over all the workers there is room for.

BLIP: Li et al. 2022. What it writes knows nothing of the diseases of chest X-rays, so the true label can be appended.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from clipcovid.config import ComputeConfig, UserError
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.data.packed import PackedImages
from clipcovid.identity import digest, generation_identity
from clipcovid.io.files import atomic_write, is_writable, lock_folder, remove_job_files, unlock_folder
from clipcovid.models.availability import check_hub_model_available
from clipcovid.ray_backend.cluster import cluster_nodes, connect
from clipcovid.ray_backend.resources import ResourcePlan, plan_resources
from clipcovid.ray_backend.shards import read_shards, sharded_map, split_rows

ROWS_PER_SHARD = 64  # images that are captioned, and kept, at once


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Options of captioning a split with a BLIP model."""

    data: Path
    """A prepared folder."""
    folder: Path | None = None
    """The folder that the table is written into. Default: captions/ in --data."""
    model: str = "Salesforce/blip-image-captioning-base"
    """A BLIP of Hugging Face's hub, or a folder of one."""
    split: Literal["train", "val", "test", "all"] = "train"
    """The images to caption. What CLIP is trained on is train."""
    prompt: str = ""
    """Words that each caption begins with, e.g. "a chest x-ray of"."""
    label: Literal["none", "append"] = "none"
    """append: the true class stands behind each caption, so that CLIP can learn it."""
    beams: int = 3
    """Captions followed at once by beam search. 1: greedy search."""
    tokens: int = 40
    """The most tokens of a caption."""
    compute: ComputeConfig = ComputeConfig()
    """What to ask of the cluster."""

    def __post_init__(self) -> None:
        if min(self.beams, self.tokens) < 1:
            raise UserError("--beams and --tokens must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """The captions, and where they are."""

    path: Path
    """A table with image_id, caption (what to train on) and generated (what the model wrote)."""
    table: pd.DataFrame
    leaks: dict[str, int]
    """Class → in how many of its images' generated captions its name stands already."""
    created: bool
    """False where all had been written before."""


def generate(config: GenerateConfig, log: Callable[[str], None] = print) -> GenerateResult:
    """Caption a split; a killed one goes on where it was, a finished one is not done again."""
    manifest = read_manifest(config.data)
    rows = manifest.rows(config.split)
    folder = config.folder or config.data / "captions"
    path = folder / f"{config.split}-{digest(generation_identity(config, manifest), 8)}.parquet"
    if path.is_file():
        table = pd.read_parquet(path)
        return GenerateResult(path=path, table=table, leaks=class_name_leaks(table, manifest), created=False)
    if not is_writable(folder):
        raise UserError(f"{folder} can't be written: say with --folder where the captions go.")
    check_hub_model_available(config.model, "--model")
    connect(config.compute)
    resources = plan_resources(
        config.compute, cluster_nodes(), gpu=True, max_per_node=1, items=math.ceil(len(rows) / ROWS_PER_SHARD)
    )
    state = path.with_suffix("").resolve()
    lock_folder(state)
    log(f"{config.model} on {resources.device}: {resources}.")
    settings = {"config": config, "data": config.data.resolve(), "manifest": manifest, "resources": resources}
    items = split_rows(manifest.positions(rows["image_id"]), ROWS_PER_SHARD)
    table = read_shards(sharded_map(state, items, CaptioningActor, resources, label="Captioning", settings=settings))
    table["caption"] = table["generated"]
    if config.label == "append":
        labelled = rows["label"] != ""
        table["caption"] = table["generated"].where(~labelled, table["generated"] + ", " + rows["label"])
    with atomic_write(path) as partial:
        table.to_parquet(partial)
    unlock_folder(state)
    remove_job_files(path.parent, rf"{state.name}/\d{{5}}\.parquet")
    return GenerateResult(path=path, table=table, leaks=class_name_leaks(table, manifest), created=True)


def class_name_leaks(table: pd.DataFrame, manifest: Manifest) -> dict[str, int]:
    """Class → in how many of its images' generated captions its name stands, whatever its case."""
    labels = table["image_id"].map(manifest.table.set_index("image_id")["label"])
    return {
        name: int(table.loc[labels == name, "generated"].str.contains(_name_pattern(name), case=False).sum())
        for name in manifest.classes
    }


def _name_pattern(name: str) -> str:
    """A class's name as decoders write it, COVID-19 as covid - 19; not as the end of a longer one, as in non-COVID."""
    parts = r"\s*[-_ ]\s*".join(map(re.escape, re.split(r"[-_\s]+", name)))
    return rf"(?<![\w-])(?<!- ){parts}(?!\w)"


class CaptioningActor:
    """An actor that holds a captioner."""

    def __init__(self, *, config: GenerateConfig, data: Path, manifest: Manifest, resources: ResourcePlan) -> None:
        import torch
        from transformers import BlipForConditionalGeneration, BlipProcessor

        from clipcovid.models.state_dicts import check_weights, error_reason

        torch.set_num_threads(resources.threads)
        loader: Any = BlipForConditionalGeneration
        try:
            self.processor: Any = BlipProcessor.from_pretrained(config.model)
            model, loading_info = loader.from_pretrained(config.model, dtype=torch.float32, output_loading_info=True)
        except Exception as error:  # the hub, JSON and torch each raise their own kinds
            raise UserError(
                f"--model {config.model} can't be had ({error_reason(error)}): give a local folder of a BLIP."
            ) from error
        if lacking := sorted(loading_info["missing_keys"]):
            raise UserError(f"--model {config.model} lacks weights of a BLIP, {lacking[0]} first.")
        check_weights(model.state_dict(), f"--model {config.model}")
        self.model, self.config, self.resources = model.eval().to(resources.device), config, resources
        self.packed = PackedImages(data, manifest)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Caption the rows of an item, and keep them in its file."""
        import torch

        texts: list[str] = []
        for start in range(0, len(item["rows"]), self.resources.batch_size):
            images = self.packed.images(item["rows"][start : start + self.resources.batch_size])
            rgb = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
            prompts = {"text": [self.config.prompt] * len(rgb)} if self.config.prompt else {}
            inputs = self.processor(images=list(rgb), return_tensors="pt", **prompts).to(self.resources.device)
            with torch.no_grad():
                ids = self.model.generate(**inputs, num_beams=self.config.beams, max_new_tokens=self.config.tokens)
            texts += [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
        image_ids = self.packed.manifest.table["image_id"].iloc[item["rows"]].tolist()
        with atomic_write(Path(item["path"])) as partial:
            pd.DataFrame({"image_id": image_ids, "generated": texts}).to_parquet(partial)
        return {"images": len(texts)}
