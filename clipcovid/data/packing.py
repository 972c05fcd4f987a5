"""One image with its masks, from their files to a row of a packed shard. No Ray here."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from clipcovid.config import ImagesConfig
from clipcovid.data import images
from clipcovid.data.manifest import INVERTED
from clipcovid.data.masks import decode_mask
from clipcovid.data.shards import MASK_COLUMNS, shard_paths
from clipcovid.io.files import refuse_full_disk


def pack_row(row: dict[str, str], config: ImagesConfig) -> dict[str, Any]:
    """Read, decode and resize one image and its masks into a row of a packed shard; what is bad is named in `bad`.

    `notes` are sentences on what was assumed; `header` is what a DICOM's header says (see `dicom.read_header`), None for
    other files.
    """
    packed: dict[str, Any] = {"image_id": row["image_id"], "image": b"", "width": 0, "height": 0, "sha256": ""}
    packed |= dict.fromkeys(MASK_COLUMNS, b"") | {"header": None}
    bad, notes = dict[str, str](), list[str]()
    try:
        data = images.read_bytes(row["path"])
        picture = images.decode_image(data, max_pixels=config.max_pixels)
        image = picture.pixels
        notes += picture.notes
        height, width = image.shape[:2]
        packed |= {"width": width, "height": height, "sha256": images.pixel_hash(image)}  # of the file as it is
        packed["image"] = images.fit_image(images.undo_inversion(image, row.get(INVERTED, "")), config).tobytes()
        if images.detect_format(data) == "DICOM":
            from clipcovid.data.dicom import read_header  # pydicom is slow to import, and most sets have none

            packed["header"] = read_header(data, notes)
        for kind in MASK_COLUMNS:
            if row[kind]:
                try:
                    mask = decode_mask(
                        images.read_bytes(row[kind]),
                        image.shape[:2],
                        max_pixels=config.max_pixels,
                        mask_value=config.mask_value,
                        orientation=picture.orientation,
                        notes=notes,
                    )
                    packed[kind] = images.fit_mask(mask, image.shape[:2], config).tobytes()
                except images.BadImage as error:
                    bad[row[kind]] = str(error)
    except images.BadImage as error:
        bad[row["path"]] = str(error)
    return packed | {"bad": json.dumps(bad), "notes": notes}


def count_masks(table: pd.DataFrame) -> int:
    """The masks that a manifest's table names."""
    return sum(int((table[kind] != "").sum()) for kind in MASK_COLUMNS)


def check_disk_space(out: Path, table: pd.DataFrame, config: ImagesConfig) -> None:
    """Raise `UserError` if the disk of `out` has no room for the packed pixels of a table that are not there yet."""
    channels = 3 if config.mode == "rgb" else 1
    masks = count_masks(table)
    packed = sum(path.stat().st_size for path in shard_paths(out))
    refuse_full_disk(out, (len(table) * channels + masks) * config.size**2 - packed, "a smaller --size")
