"""The images that a model learned from or was chosen by, known by their pixels: kept with its checkpoint.

`training_images.parquet` has a row an image: `pixels`, the first 8 bytes of the SHA-256 of its pixels as an unsigned number,
and `split`, train or val. By chance one of n images has the number of one of m others with a probability of n · m / 2⁶⁴: five
in a hundred million for a million of either.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipcovid.data.manifest import Manifest
from clipcovid.io.files import read_json_object, read_parquet, write_parquet

FILE_NAME = "training_images.parquet"
FITTED_SPLITS = ("train", "val")


def pixel_hash_prefixes(sha256: pd.Series) -> np.ndarray:
    """The first 8 bytes of each hex hash, uint64 (n,); 0 for an image without one, which is known to nobody."""
    return np.array([int(text[:16] or "0", 16) for text in sha256], np.uint64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Which images, each once a split."""

    table: pd.DataFrame
    """pixels and split."""

    @classmethod
    def from_splits(cls, splits: dict[str, pd.DataFrame]) -> "TrainingImages":
        """Collect the pixel hashes of the manifest rows of each split."""
        tables = [
            pd.DataFrame({"pixels": pixel_hash_prefixes(rows["sha256"]), "split": name})
            for name, rows in splits.items()
        ]
        return cls.union([cls(table=pd.concat(tables, ignore_index=True))])

    @classmethod
    def union(cls, lists: Iterable["TrainingImages"]) -> "TrainingImages":
        """The union of the lists of several models."""
        table = pd.concat([images.table for images in lists], ignore_index=True)
        table = table[table["pixels"] > 0].drop_duplicates().sort_values(["split", "pixels"], ignore_index=True)
        return cls(table=table)

    def contains(self, rows: pd.DataFrame, splits: Sequence[str] = FITTED_SPLITS) -> np.ndarray:
        """Which of these manifest rows have the pixels of one of them, bool (n,)."""
        pixels = self.table.loc[self.table["split"].isin(splits), "pixels"].to_numpy(np.uint64)
        return np.isin(pixel_hash_prefixes(rows["sha256"]), pixels)

    def write(self, checkpoint: Path) -> None:
        """Keep them in a checkpoint, and in its copy for Hugging Face."""
        for folder in (checkpoint, checkpoint / "hf"):
            if folder.is_dir():
                write_parquet(folder / FILE_NAME, self.table, {})


def read_training_images(folder_or_file: Path) -> TrainingImages | None:
    """What is kept with the weights in a run's folder, a checkpoint's, or a file in it; None where nothing is."""
    path = _checkpoint(folder_or_file) / FILE_NAME
    return TrainingImages(table=read_parquet(path)[0]) if path.is_file() else None


def read_run_identity(place: Path) -> dict[str, Any]:
    """The identity of the run of ours that weights are of; {} where none is."""
    checkpoint = _checkpoint(place)
    run = checkpoint.parent if checkpoint.name == "checkpoint" else checkpoint
    identity = read_json_object(run / "config.json").get("identity")
    return identity if isinstance(identity, dict) and "split_hash" in identity else {}


def seen_in_training(folder_or_file: Path, manifest: Manifest) -> tuple[pd.Series, str]:
    """Which images of a data set a model learned from, bool by position in its table; and what had to be assumed, or "".

    Where no list is kept, as by older versions, the splits of the very same data set tell.
    """
    none = pd.Series(False, index=manifest.table.index)
    images = read_training_images(folder_or_file)
    if images is not None:
        return none | images.contains(manifest.table), ""
    identity = read_run_identity(folder_or_file)
    if not identity:
        return none, ""
    prefix = f"{folder_or_file} is of an older version and keeps no list of the images that it learned from"
    if identity["split_hash"] == manifest.split_hash:
        learned = manifest.table["split"].isin(FITTED_SPLITS)
        return learned, f"{prefix}: they are taken to be those of the train and val split."
    return none, f"{prefix}: whether some of these were among them is not known."


def _checkpoint(place: Path) -> Path:
    """The folder that a user means by a run's folder, a checkpoint's, or a file in one."""
    if place.is_file():
        return place.parent
    return place / "checkpoint" if (place / "checkpoint").is_dir() else place
