"""What an audit looks at: prepared data sets, their pixels read once."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from clipcovid.audit.config import AuditConfig
from clipcovid.audit.file_facts import read_file_facts
from clipcovid.audit.fingerprints import THUMBNAIL_SIDE
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.data.packed import PackedImages

HISTOGRAM_BINS = 64
BATCH_SIZE = 256  # images that are read at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedSet:
    """One prepared data set; rows of all its arrays are those of its manifest's table."""

    folder: Path
    name: str
    """What findings call it: the folder's name, or its path where two have the same name."""
    manifest: Manifest
    packed: PackedImages
    """The images at their packed size, read where they are looked at."""
    thumbnails: np.ndarray
    """uint8 (n, 64, 64), gray: block means of the packed images."""
    histograms: np.ndarray
    """float32 (n, 64): shares of a packed image's gray values in 64 bins of equal width; rows sum to 1."""

    @property
    def table(self) -> pd.DataFrame:
        """The manifest's rows."""
        return self.manifest.table

    @functools.cached_property
    def files(self) -> pd.DataFrame:
        """What the source files are (see `read_file_facts`), read from their headers."""
        return read_file_facts(self.table, self.name)

    @functools.cached_property
    def lung_masks(self) -> np.ndarray:
        """bool (n, 64, 64): the lungs in the thumbnails; False everywhere in an image without a mask that shows any."""
        masks = np.zeros((len(self.table), THUMBNAIL_SIDE, THUMBNAIL_SIDE), bool)
        for rows in batches(np.flatnonzero(self.table["lung_mask"] != "")):
            for row, mask in zip(rows, self.packed.masks("lung_mask", rows), strict=True):
                if mask is not None:
                    masks[row] = shrink(mask, THUMBNAIL_SIDE) > 127
        return masks

    def example(self, row: int) -> tuple[str, str]:
        """The folder and id by which a finding shows the image of a row."""
        return str(self.folder), str(self.table["image_id"].iloc[row])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditData:
    """The audited data set, and those that it is audited against."""

    main: PreparedSet
    others: tuple[PreparedSet, ...] = ()

    @property
    def sets(self) -> tuple[PreparedSet, ...]:
        """All of them, the audited one first."""
        return (self.main, *self.others)


def read_manifests(config: AuditConfig) -> dict[str, Manifest]:
    """The manifests of the config's data sets by what findings call the sets, the audited one first."""
    folders = (config.data, *config.against)
    names = [folder.resolve().name for folder in folders]
    return {
        name if names.count(name) == 1 else str(folder): read_manifest(folder)
        for folder, name in zip(folders, names, strict=True)
    }


def hashes_by_name(manifests: Mapping[str, Manifest]) -> dict[tuple[str, str], str]:
    """The hash of each image's pixels, by the names of its set and itself."""
    return {
        (name, image): pixels
        for name, manifest in manifests.items()
        for image, pixels in zip(manifest.table["image_id"], manifest.table["sha256"], strict=True)
    }


def read_audit_data(config: AuditConfig) -> AuditData:
    """Open the config's data sets and read their pixels, with a line of progress for each."""
    folders, manifests = (config.data, *config.against), read_manifests(config)
    sets = [
        read_prepared_set(folder, name, manifest)
        for folder, (name, manifest) in zip(folders, manifests.items(), strict=True)
    ]
    return AuditData(main=sets[0], others=tuple(sets[1:]))


def read_prepared_set(folder: Path, name: str, manifest: Manifest | None = None) -> PreparedSet:
    """Open a prepared folder and read its pixels; one that is none is a `UserError`.

    `manifest`: the folder's, where it has been read already.
    """
    manifest = manifest or read_manifest(folder)
    packed, n = PackedImages(folder, manifest), len(manifest.table)
    thumbnails = np.empty((n, THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)
    histograms = np.empty((n, HISTOGRAM_BINS), np.float32)
    with tqdm(total=n, desc=f"Reading {name}", unit="img") as bar:
        for rows in batches(np.arange(n)):
            for row, image in zip(rows, packed.images(rows), strict=True):
                gray = to_gray(image)
                thumbnails[row] = shrink(gray, THUMBNAIL_SIDE)
                histograms[row] = np.bincount(gray.ravel() // (256 // HISTOGRAM_BINS), minlength=HISTOGRAM_BINS)
            bar.update(len(rows))
    histograms /= packed.size**2
    return PreparedSet(
        folder=folder, name=name, manifest=manifest, packed=packed, thumbnails=thumbnails, histograms=histograms
    )


def batches(rows: np.ndarray | Sequence[int]) -> Iterator[np.ndarray]:
    """Positions in batches that fit the memory at any packed size."""
    for start in range(0, len(rows), BATCH_SIZE):
        yield np.asarray(rows[start : start + BATCH_SIZE])


def to_gray(image: np.ndarray) -> np.ndarray:
    """uint8 (s, s) of an image (s, s) or (s, s, 3), by ITU-R 601."""
    return image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (size, size): block means of a gray image, uint8 (h, w)."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
