"""Image embeddings: a Ray Data pool of actors, each of which reads, decodes and encodes whole shards on its own.

`<data>/embeddings/<encoder-hash>/`, or where `--embeddings` says: `NNNNN.parquet` with `image_id, embedding` (float16,
L2-normalised), each written whole or not at all, `_encoder.json` (what makes them, written first) and `_SUCCESS` (written
last).
"""

import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import ClipConfig, ComputeConfig, EmbeddingsConfig, ImagesConfig, UserError, resolve_defaults
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.images import BadImage, decode_pixels, fit_image, read_bytes, undo_inversion
from clipcovid.data.manifest import INVERTED, Manifest, read_manifest
from clipcovid.data.packed import PackedImages
from clipcovid.data.prepare import pack_hash
from clipcovid.data.training_images import seen_in_training
from clipcovid.identity import digest, encoder_identity
from clipcovid.io.files import (
    METADATA_KEY,
    atomic_write,
    is_writable,
    lock_folder,
    unlock_folder,
    write_json,
    write_text,
)
from clipcovid.models.availability import check_clip_available
from clipcovid.models.weight_detection import default_clip_model
from clipcovid.ray_backend.cluster import cluster_nodes, connect
from clipcovid.ray_backend.map import prefetch
from clipcovid.ray_backend.resources import ResourcePlan, plan_resources, resolve_precision
from clipcovid.ray_backend.shards import sharded_map, split_rows

ENCODER_FILE = "_encoder.json"  # readers of Parquet folders pass over names with an underscore
SUCCESS_MARKER = "_SUCCESS"
MIN_IMAGES_PER_WORKER = 32  # images that are worth a worker
ENCODERS_PER_NODE = 8  # encoders on a node without GPUs: one-threaded ones are fastest together, but each holds a model


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(EmbeddingsConfig):
    """What to embed, with which encoder."""

    data: Path
    """A prepared folder."""
    clip: ClipConfig = ClipConfig()
    """The encoder."""
    input: Literal["packed", "raw"] = "packed"
    """packed: the prepared pixels. raw: the original files, decoded anew at the encoder's own size."""
    seed: int = 0
    """Seed of random weights."""
    out: Path = Path("outputs")
    """Where the embeddings go if --data can't be written: into embeddings/ there."""
    compute: ComputeConfig = ComputeConfig()
    """What to ask of the cluster."""

    @property
    def derived_defaults(self) -> dict[str, Any]:
        """The model is what a folder of weights says it is."""
        return default_clip_model(self.clip)

    @classmethod
    def from_config(cls, config: Any, **changes: Any) -> "EmbedConfig":
        """The `EmbedConfig` for the data and encoder of another config, with `changes` applied."""
        return cls(**({field.name: getattr(config, field.name) for field in fields(cls)} | changes))


def embeddings_identity(config: EmbedConfig, manifest: Manifest) -> dict[str, Any]:
    """What makes embeddings the same."""
    pixels = manifest.info["pack_hash"]
    if config.input == "raw":  # the size is the model's own
        pixels = "raw " + pack_hash(replace(ImagesConfig(**manifest.info["images"]), size=ImagesConfig.size))
    return encoder_identity(config.clip, config.seed, manifest, pixels)


def embed(config: EmbedConfig, log: Callable[[str], None] = print, *, manifest: Manifest | None = None) -> Embeddings:
    """Embed every image of a prepared folder that is not embedded yet; where all are, Ray is not even started.

    `manifest`: the folder's, where it has been read already.
    """
    config, manifest = resolve_defaults(config), manifest or read_manifest(config.data)
    if config.input == "raw" and "masked" in manifest.info:
        raise UserError(f"{config.data} is a masked set, and its files are not masked: use --input packed.")
    identity = embeddings_identity(config, manifest)
    folder, cache = embeddings_folder(config, digest(identity), log)
    encoder_path = folder / ENCODER_FILE
    if (folder / SUCCESS_MARKER).exists():
        return Embeddings(folder=folder, encoder=json.loads(encoder_path.read_bytes()), created=False, cache=cache)
    check_clip_available(config.clip)
    rows = len(manifest.table)
    connect(config.compute)
    resources = plan_resources(
        config.compute,
        cluster_nodes(),
        gpu=True,
        max_per_node=ENCODERS_PER_NODE,
        items=math.ceil(rows / MIN_IMAGES_PER_WORKER),
    )
    lock_folder(folder)
    if encoder_path.exists():  # begun before, maybe on other machines: go on in its precision and with its shards
        encoder = json.loads(encoder_path.read_bytes())
    else:
        shards = 4 * max(1, resources.workers)  # four a worker even out the end
        batches = math.ceil(rows / (shards * resources.batch_size))
        encoder = identity | {
            "precision": resolve_precision(config.clip.precision, resources.device),
            "shard": min(batches, 8) * resources.batch_size,  # full batches, and little to do again
        }
        write_json(encoder_path, encoder)
    log(f"{config.clip.model} in {encoder['precision']} on {resources.device}: {resources}.")
    sharded_map(
        folder,
        split_rows(np.arange(rows), encoder["shard"]),
        Embedder,
        resources,
        label="Embedding",
        settings={
            "config": replace(config, data=config.data.resolve()),
            "manifest": manifest,
            "precision": encoder["precision"],
            "resources": resources,
        },
        resume_message="{images_done} of {images} images are embedded",
        log=log,
    )
    write_text(folder / SUCCESS_MARKER, "")
    unlock_folder(folder)
    return Embeddings(folder=folder, encoder=encoder, created=True)


def is_training_image(clip: ClipConfig, manifest: Manifest) -> tuple[pd.Series, str]:
    """Which images of a data set an encoder of ours learned from, and what had to be assumed: see `seen_in_training`."""
    path = Path(clip.pretrained)
    if clip.pretrained == "none" or not path.exists():
        return pd.Series(False, index=manifest.table.index), ""
    return seen_in_training(path, manifest)


def embeddings_folder(config: EmbedConfig, name: str, log: Callable[[str], None]) -> tuple[Path, Path | None]:
    """The folder of embeddings of this name, and where what is made of them goes if they can't be written to.

    Finished ones are read wherever they are; where none can be written, it is a `UserError`.
    """
    folder = (config.embeddings or config.data / "embeddings") / name
    other = config.out / "embeddings" / name
    if is_writable(folder):
        return folder, None
    if (folder / SUCCESS_MARKER).exists():
        return folder, other
    if config.embeddings:
        raise UserError(f"--embeddings {config.embeddings} can't be written: give a folder that can be.")
    if not ((other / SUCCESS_MARKER).exists() or is_writable(other)):
        raise UserError(
            f"Neither {config.data} nor {config.out} can be written: give --embeddings a folder that can be."
        )
    log(f"note: {config.data} can't be written: embeddings are kept in {other.parent} (or in --embeddings).")
    return other, None


class Embedder:
    """An actor that holds one encoder and reads the images that it encodes."""

    def __init__(self, *, config: EmbedConfig, manifest: Manifest, precision: str, resources: ResourcePlan) -> None:
        import torch

        from clipcovid.models.clip import load_clip

        torch.set_num_threads(resources.threads)
        self.clip = load_clip(config.clip, seed=config.seed, device=resources.device, precision=precision)
        self.name, self.precision, self.batch_size = config.clip.model, precision, resources.batch_size
        self.packed, self.rows = PackedImages(config.data, manifest), manifest.table
        self.images = replace(ImagesConfig(**manifest.info["images"]), size=self.clip.image_size)
        self.read = self.packed.images if config.input == "packed" else self._decode
        self.readers = ThreadPoolExecutor(resources.threads if resources.device == "cuda" else 1)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Encode the item's rows and write them as one shard."""
        import torch

        rows = item["rows"]
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        began, first = time.time(), 0.0
        parts = []
        for pixels in prefetch(self.read, batches):
            parts.append(self.clip.encode_images(pixels))
            first = first or time.time()
        features = torch.cat(parts).half().cpu().numpy()
        if not np.isfinite(features).all():
            raise UserError(
                f"{self.name} gives embeddings that are not finite in {self.precision}: try --clip.precision fp32."
            )
        column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
        ids = self.rows["image_id"].iloc[rows]
        times = {"worker": os.getpid(), "began": began, "first_batch": first, "ended": time.time()}
        table = pa.table({"image_id": pa.array(ids, pa.string()), "embedding": column})
        table = table.replace_schema_metadata({METADATA_KEY: json.dumps(times)})  # for whoever asks where the time went
        with atomic_write(Path(item["path"])) as partial:
            pq.write_table(table, partial)
        return {"images": len(features)}

    def _decode(self, rows: list[int]) -> np.ndarray:
        """The original files of these rows, decoded at the encoder's size."""
        part = self.rows.iloc[rows]
        inverted = part[INVERTED] if INVERTED in part else [""] * len(part)
        return np.stack(list(self.readers.map(self._decode_one, part["path"], inverted)))

    def _decode_one(self, path: str, inverted: str) -> np.ndarray:
        try:
            pixels = decode_pixels(read_bytes(path), max_pixels=self.images.max_pixels)
            return fit_image(undo_inversion(pixels, inverted), self.images)
        except BadImage as error:
            raise UserError(f"{path} can't be read any more ({error}): prepare the data set again.") from None
