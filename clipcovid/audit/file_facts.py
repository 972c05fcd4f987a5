"""What image files are, apart from what they show: format, depth, channels, bytes, compression."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import ImageFile
from tqdm import tqdm

from clipcovid.data.images import READERS, detect_format
from clipcovid.data.pixels import BadImage

SIGNATURE_BYTES = 512
MIN_PROGRESS = 2_000  # files from which on a line shows the progress
HEADER_FACTS = ("format", "channels", "bits", "bytes", "compression")


def read_file_facts(table: pd.DataFrame, name: str = "") -> pd.DataFrame:
    """A row an image: width, height, aspect (width / height), shape, and what the headers of the source files say.

    `shape`: square, wide or tall. `format`: JPEG, PNG, …; `channels`: gray, colour or palette; `bits` a channel; `bytes` of
    the file; `compression`: the mean of a JPEG's luminance table (the higher, the coarser), 0 of other formats. These five
    are NaN where the file is gone, is not local, or can't be read. Width and height are those of the upright pixels.
    """
    width, height = table["width"].to_numpy(float), table["height"].to_numpy(float)
    aspect = width / np.maximum(height, 1)
    shape = np.where(width == height, "square", np.where(aspect > 1, "wide", "tall"))
    hidden = len(table) < MIN_PROGRESS
    paths = tqdm(table["path"], desc=f"Reading the files' headers of {name}", unit="file", disable=hidden)
    headers = pd.DataFrame([_read_header(path) for path in paths], columns=list(HEADER_FACTS), index=table.index)
    return pd.concat([table[["width", "height"]].assign(aspect=aspect, shape=shape), headers], axis=1)


def _read_header(path: str) -> tuple[Any, ...]:
    """The `HEADER_FACTS` of a local file; all None where they can't be had."""
    unknown = (None,) * len(HEADER_FACTS)
    if "://" in path:
        return unknown
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as file:
            kind = detect_format(file.read(SIGNATURE_BYTES))
            file.seek(0)
            if kind == "DICOM":
                return (kind, *_read_dicom_header(path), size, 0.0)
            image = READERS[kind](file, path)
            return (kind, *_image_facts(image), size, _compression(image))
    except (BadImage, OSError, ValueError, SyntaxError):  # Pillow's plugins raise the latter for what they can't read
        return unknown


def _image_facts(image: ImageFile.ImageFile) -> tuple[str, int]:
    """Channels and bits of an opened image."""
    mode = image.mode
    channels = "palette" if mode.startswith("P") else "gray" if mode[0] in "1LIF" else "colour"
    deep = mode[0] in "IF" or any(";16" in str(tile[3]) for tile in image.tile)
    return channels, 1 if mode == "1" else 16 if deep else 8


def _compression(image: ImageFile.ImageFile) -> float:
    tables = getattr(image, "quantization", None)
    return float(np.mean(tables[min(tables)])) if tables else 0.0


def _read_dicom_header(path: str) -> tuple[str, int]:
    """Channels and bits of a DICOM file; `ValueError` where it does not say."""
    from pydicom import dcmread  # slow to import, and most sets have none
    from pydicom.errors import InvalidDicomError

    try:
        header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=["BitsStored", "SamplesPerPixel"])
        return "gray" if int(header.SamplesPerPixel) == 1 else "colour", int(header.BitsStored)
    except (InvalidDicomError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
