"""Prepared data sets whose images are what a mask leaves of them: every other job runs on them as on any other set."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from clipcovid.config import ImagesConfig, UserError
from clipcovid.data.folder import is_prepared_folder, reset_prepared_folder
from clipcovid.data.images import fit_mask
from clipcovid.data.manifest import MASK_COLUMNS, Manifest, read_manifest, write_manifest
from clipcovid.data.packed import PackedImages
from clipcovid.data.rle import decode_rle
from clipcovid.data.shards import write_shard
from clipcovid.identity import digest, masked_identity
from clipcovid.io.files import read_parquet, refuse_overlap, unlock_folder, write_parquet

MaskMode = Literal["lungs", "lungs-black", "infection", "crop"]
ROWS_PER_SHARD = 1024
MIN_LOST_SHARE = 0.9  # of a class's images, from which on it is said
CROP_MARGIN = 0.05  # of the box around the lungs, on each side


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApplyMasksConfig:
    """What becomes of which images."""

    data: Path
    """A prepared folder."""
    out: Path
    """The folder of the new set."""
    keep: MaskMode = "lungs"
    """lungs: black outside of them. lungs-black: black inside of them. infection: black outside of it. crop: the box
    around the lungs, resized."""
    masks: Path | None = None
    """A segmentation run's predictions of all images, a .parquet file. Default: the data set's own masks."""
    overwrite: bool = False
    """Make it anew where it is there already."""

    @property
    def region(self) -> str:
        """The region whose mask `keep` uses: lung or infection."""
        return "infection" if self.keep == "infection" else "lung"


def mask_image(pixels: np.ndarray, mask: np.ndarray, keep: MaskMode) -> np.ndarray:
    """What `keep` leaves of uint8 (s, s) or (s, s, 3) by a mask (s, s), foreground where not 0; the same shape."""
    inside = (mask > 0) if pixels.ndim == 2 else (mask > 0)[..., None]
    if keep == "crop":
        return _crop(pixels, lung_box(mask), Image.Resampling.BICUBIC)
    return np.where(inside != (keep == "lungs-black"), pixels, np.uint8(0))


def lung_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """left, top, right, bottom of what is not 0 in (h, w), with a margin, within the image; all of it for an empty mask."""
    height, width = mask.shape
    if not mask.any():
        return 0, 0, width, height
    across, down = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, right, top, bottom = across[0], across[-1] + 1, down[0], down[-1] + 1
    aside, above = round(CROP_MARGIN * (right - left)), round(CROP_MARGIN * (bottom - top))
    return max(0, left - aside), max(0, top - above), min(width, right + aside), min(height, bottom + above)


def _crop(pixels: np.ndarray, box: tuple[int, int, int, int], how: Image.Resampling) -> np.ndarray:
    size = pixels.shape[1], pixels.shape[0]
    return np.array(Image.fromarray(pixels).resize(size, how, box=box))


def apply_masks(config: ApplyMasksConfig, log: Callable[[str], None] = print) -> Manifest:
    """Write the masked data set; one that is there already is left as it is.

    Images without the mask, and those whose lungs are empty, are left out and named in `quarantine.parquet`. Ids, labels,
    patients and splits stay, so the set has the same split hash as long as no image is left out.
    """
    refuse_overlap(config.out, "--data", config.data)
    source = read_manifest(config.data)
    if "masked" in source.info:
        raise UserError(
            f"{config.data} is a masked set itself ({source.info['masked']['keep']}): give the one it is of."
        )
    table, metadata = read_parquet(config.masks) if config.masks else (None, None)
    identity = masked_identity(config, source)
    if is_prepared_folder(config.out) and (config.out / "manifest.parquet").exists() and not config.overwrite:
        existing = read_manifest(config.out)
        if existing.info.get("masked") == identity:
            log(f"{config.out} is there already: nothing was left to do.")
            return existing
        raise UserError(f"{config.out} holds another data set: choose another --out, or --overwrite.")
    if table is not None:
        table = _predicted_masks(config, source, table, metadata or {})
    _check_masks(config, source, table)
    reset_prepared_folder(config.out)
    positions, quarantine = _write(config, source, table)
    write_parquet(config.out / "quarantine.parquet", pd.DataFrame(quarantine, columns=["path", "reason"]), {})
    rows = source.table.iloc[positions].reset_index(drop=True)
    if config.keep == "crop":
        rows = rows.assign(**dict.fromkeys(MASK_COLUMNS, ""))  # the files' masks are of the whole frame
    info = source.info | {"masked": identity, "pack_hash": digest([source.info["pack_hash"], identity])}
    masked = dataclasses.replace(source, table=rows, dataset=f"{source.dataset}, {config.keep}", info=info)
    write_manifest(config.out, masked)
    unlock_folder(config.out)
    return masked


def _predicted_masks(
    config: ApplyMasksConfig, source: Manifest, table: pd.DataFrame, metadata: dict[str, Any]
) -> pd.DataFrame:
    """The region's rows of predictions of this very data set, by image; others are a `UserError`."""
    if metadata.get("task") != "segmentation" or config.region not in set(table["region"]):
        raise UserError(f"--masks {config.masks} predicts no {config.region}: give a segmentation run's predictions.")
    if metadata["split_hash"] != source.split_hash:
        raise UserError(
            f"--masks {config.masks} are of another data set: predict this one with clipcovid predict --split all."
        )
    return table[table["region"] == config.region].set_index("image_id")


def lost_classes(source: Manifest, masked: Manifest) -> list[str]:
    """A sentence on each class of which a masked set of `source` lacks `MIN_LOST_SHARE` of the images, or more."""
    left, sentences = masked.table["label"].value_counts(), []
    for label, count in source.table["label"].value_counts().reindex(list(source.classes), fill_value=0).items():
        lost = count - left.get(label, 0)
        if count and lost >= MIN_LOST_SHARE * count:
            sentences.append(f"{lost:,} of the {count:,} images of {label} are left out (left: {count - lost:,}).")
    return sentences


def _check_masks(config: ApplyMasksConfig, source: Manifest, table: pd.DataFrame | None) -> None:
    """Raise `UserError` where no image has a mask that can be applied, before anything is written or removed."""
    packed = PackedImages(config.data, source)
    for positions in _batches(source):
        true_masks = packed.masks(f"{config.region}_mask", positions)
        if any(not reason for _, reason in _region_masks(config, source, positions, table, true_masks)):
            return
    raise UserError(f"No image of {config.data} has a usable {config.region} mask: --keep {config.keep} needs one.")


def _batches(source: Manifest) -> Iterator[np.ndarray]:
    """The positions of the images of each packed file to write."""
    for start in range(0, len(source.table), ROWS_PER_SHARD):
        yield np.arange(start, min(start + ROWS_PER_SHARD, len(source.table)))


def _write(
    config: ApplyMasksConfig, source: Manifest, table: pd.DataFrame | None
) -> tuple[list[int], list[dict[str, str]]]:
    packed, positions = PackedImages(config.data, source), list[int]()
    quarantine: list[dict[str, str]] = []
    with tqdm(total=len(source.table), desc=f"Masking: {config.keep}", unit="img") as bar:
        for number, at in enumerate(_batches(source)):
            rows = []
            for position, row, reason in _masked_rows(config, packed, at, table):
                if reason:
                    quarantine.append({"path": source.table["path"].iloc[position], "reason": reason})
                else:
                    rows.append(row)
                    positions.append(int(position))
            if rows:
                write_shard(config.out / "images" / f"{number:05}.arrow", rows)
            bar.update(len(at))
    return positions, quarantine


def _region_masks(
    config: ApplyMasksConfig,
    source: Manifest,
    positions: np.ndarray,
    table: pd.DataFrame | None,
    true_masks: Sequence[np.ndarray | None],
) -> Iterator[tuple[np.ndarray | None, str]]:
    """The mask (s, s) that is applied to each image, of `table` or else of `true_masks`, and why it can't be."""
    images = ImagesConfig(**source.info["images"])
    for image_id, true_mask in zip(source.table["image_id"].iloc[positions], true_masks, strict=True):
        mask = true_mask
        if table is not None:
            text = table["mask"].get(image_id)
            predicted = decode_rle(text).astype(np.uint8) * 255 if isinstance(text, str) else None
            mask = fit_mask(predicted, predicted.shape, images) if predicted is not None else None
        if mask is None:
            yield None, f"no {config.region} mask"
        elif config.region == "lung" and not mask.any():
            yield mask, "the lung mask is empty"
        else:
            yield mask, ""


def _masked_rows(
    config: ApplyMasksConfig, packed: PackedImages, positions: np.ndarray, table: pd.DataFrame | None
) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Position, row of the packed file, and why there is none, of each image."""
    rows = packed.manifest.table.iloc[positions].to_dict("records")
    packed_masks = {kind: packed.masks(kind, positions) for kind in MASK_COLUMNS}
    region_masks = _region_masks(config, packed.manifest, positions, table, packed_masks[f"{config.region}_mask"])
    for number, (position, (mask, reason), pixels, row) in enumerate(
        zip(positions, region_masks, packed.images(positions), rows, strict=True)
    ):
        if mask is None or reason:
            yield position, {}, reason
            continue
        masks = {kind: of_kind[number] for kind, of_kind in packed_masks.items()}
        if config.keep == "crop":
            box = lung_box(mask)
            masks = {
                kind: _crop(values, box, Image.Resampling.NEAREST)
                for kind, values in masks.items()
                if values is not None
            }
        mask_bytes = {kind: values.tobytes() for kind, values in masks.items() if values is not None}
        metadata = {key: row[key] for key in ("image_id", "width", "height", "sha256")}
        image = np.ascontiguousarray(mask_image(pixels, mask, config.keep)).tobytes()
        yield position, metadata | mask_bytes | {"image": image, "bad": "{}"}, ""
