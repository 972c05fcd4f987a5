"""Mask files to foreground and background: what was drawn, or a refusal where a file leaves that open."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from clipcovid.config import UserError
from clipcovid.data.images import decode_upright, detect_format, flatten_opaque, is_transparent, split_alpha
from clipcovid.data.pixels import BadImage

BINARY_TOLERANCE = 16
"""How far (of 255) a lossy mask's values may lie from black and from its brightest value and still count as them."""
MAX_LISTED_VALUES = 6  # values that a refusal lists
GRAY, COLOUR = "{:g}", "0x{:06x}"  # how a value is written


def decode_mask(
    data: bytes,
    shape: tuple[int, int],
    *,
    max_pixels: int,
    mask_value: tuple[str, ...] = (),
    orientation: int | None = None,
    notes: list[str] | None = None,
) -> np.ndarray:
    """The mask in an image file for an image of `shape` (H, W): uint8 (h, w), 0 or 255, at the mask's own size.

    Zero and one other value are read as background and foreground, whatever the value, or one colour on black, or what is
    opaque on transparent ground; all background and all foreground are real masks. Of two other values the one that
    fills the border and most of the mask is the background. Of a JPEG, or a mask with soft edges (more than 8 values),
    values from half of the greatest up are foreground as long as few lie between. `mask_value` names the foreground's
    values instead (`ImagesConfig.mask_value`).

    `orientation`: EXIF's of the image (`DecodedImage.orientation`). `notes` gets a sentence on what was assumed. Raises
    `BadImage` for other images, for DICOM, where the aspect ratio differs from the image's by more than 2 %, and where only
    one of image and mask is turned by EXIF and the shape leaves open whether the mask was drawn before or after.
    """
    kind = detect_format(data)
    if kind == "DICOM":
        raise BadImage("mask is a DICOM file; export it as PNG")
    array, turned = decode_upright(data, kind, max_pixels, flatten_mask)
    _check_frame(array.shape[:2], shape, turned, turned if orientation is None else orientation)
    lossy = kind in ("JPEG", "WebP")
    assumed = notes if notes is not None else []
    on = _foreground_by_value(array, mask_value, lossy, assumed) if mask_value else _foreground(array, lossy, assumed)
    return on.astype(np.uint8) * np.uint8(255)


def flatten_mask(image: Image.Image) -> Image.Image:
    """A mask without palette and transparency: where its colour is the same all over, the alpha channel is the mask."""
    if not is_transparent(image):
        return flatten_opaque(image)
    colour, alpha = split_alpha(image)
    shades, opacity = np.asarray(colour), np.asarray(alpha)
    if opacity.min() == opacity.max():
        if opacity.any() or (shades == shades[0, 0]).all():  # where nothing was drawn all is transparent, of one colour
            return colour if opacity.any() else alpha
        raise BadImage("mask is transparent all over; save it without an alpha channel")
    inks = shades[opacity >= opacity.max() / 2].reshape(-1, shades.size // opacity.size)
    if (inks == inks[0]).all():
        return alpha
    if (inks.max(axis=1) <= BINARY_TOLERANCE).any():
        raise BadImage(
            "mask has black, another colour and transparency: its background is unclear; save it without alpha"
        )
    return Image.composite(colour, Image.new(colour.mode, colour.size), alpha)


def _check_frame(shape: tuple[int, ...], image_shape: tuple[int, int], turned: int, image_turned: int) -> None:
    """Refuse a mask (h, w) that does not lie on its image (H, W) for sure; how EXIF turned each: 1 to 8."""
    (height, width), (image_height, image_width) = shape, image_shape
    fits = _same_aspect(width, height, image_width, image_height)
    if turned != image_turned:
        lies = (turned > 4) != (image_turned > 4)  # one of the two on its side
        fits_otherwise = _same_aspect(height, width, image_width, image_height) if lies else fits
        if fits_otherwise and fits:
            raise BadImage(
                f"mask and image are turned differently by EXIF (orientation {turned} and {image_turned}), and either way "
                "the mask fits: save both upright, without the tag"
            )
        if fits_otherwise:
            raise BadImage("mask lies as its image is stored, before EXIF turns it: save both upright, without the tag")
    if not fits:
        raise BadImage(
            f"mask's aspect ratio {width / height:.2f} differs from the image's {image_width / image_height:.2f} "
            f"({width}x{height} against {image_width}x{image_height})"
        )


def _same_aspect(width: int, height: int, image_width: int, image_height: int) -> bool:
    return abs(width * image_height / (height * image_width) - 1) <= 0.02


def _foreground(array: np.ndarray, lossy: bool, notes: list[str]) -> np.ndarray:
    """Foreground (bool, (h, w)) of a mask's pixels by their values alone."""
    array, name = _one_channel(array)
    values, counts = _count(array)
    if name == COLOUR and len(values) > 2:
        array, name = _brightness(array, values, counts, lossy), GRAY
        values, counts = _count(array)
    if len(values) == 1:
        if values[0]:
            notes.append(f"mask of one value, {name.format(values[0])}: all of it read as foreground")
        return array != 0
    if len(values) == 2 and 0 not in values:
        return array == _foreground_of_two(array, values, counts, name, notes)
    on = array != 0 if len(values) == 2 else _bright_half(array, values, counts, lossy)
    if on is None:
        raise BadImage(_ambiguous_message(values, counts, name))
    if _is_background(on, True):
        notes.append("mask whose foreground fills its border and most of it: inverted? (then give --mask-value 0)")
    return on


def _bright_half(array: np.ndarray, values: np.ndarray, counts: np.ndarray, lossy: bool) -> np.ndarray | None:
    """Where a mask with soft or lossy edges has at least half of its greatest value; None for what is no such mask."""
    peak = float(values[-1])
    if array.dtype != np.uint8 or peak < 128 or not (lossy or len(values) > 8):
        return None
    between = counts[(values > BINARY_TOLERANCE) & (values < peak - BINARY_TOLERANCE)].sum()
    few = between <= 0.05 * array.size and between <= 0.5 * counts[values > BINARY_TOLERANCE].sum()
    return array >= peak / 2 if few else None


def _foreground_of_two(
    array: np.ndarray, values: np.ndarray, counts: np.ndarray, name: str, notes: list[str]
) -> np.generic:
    """The foreground's value in a mask of two values that are not 0."""
    (dark, bright), names = values, [name.format(value) for value in values]
    for ground, on in ((0, 1), (1, 0)):
        if _is_background(array, values[ground]):
            notes.append(
                f"mask of the values {names[0]} and {names[1]}: {names[on]} read as foreground, for {names[ground]} fills "
                "the border and most of the mask"
            )
            return values[on]
    if array.dtype == np.uint8 and dark <= BINARY_TOLERANCE and bright >= 128:  # nearly black and not
        notes.append(f"mask of the values {names[0]} and {names[1]}: {names[1]} read as foreground")
        return bright
    raise BadImage(_ambiguous_message(values, counts, name))


def _foreground_by_value(array: np.ndarray, mask_value: tuple[str, ...], lossy: bool, notes: list[str]) -> np.ndarray:
    """Foreground (bool, (h, w)) of a mask's pixels: those of the values that the user names."""
    array, name = _one_channel(array)
    wanted = [int(text, 16 if text.startswith("0x") else 10) for text in mask_value]
    if name == GRAY:  # 0xffffff is white there too
        wanted = [value & 0xFF if value == (value & 0xFF) * 0x010101 else value for value in wanted]
    if lossy and name == GRAY:
        on = np.logical_or.reduce([np.abs(array.astype(np.int32) - value) <= BINARY_TOLERANCE for value in wanted])
    else:
        on = np.isin(array, wanted)
    if not on.any() and array.any():
        notes.append(f"mask without any value of --mask-value {' '.join(mask_value)}: all of it read as background")
    return on


def _one_channel(array: np.ndarray) -> tuple[np.ndarray, str]:
    """Gray values, or colours packed as 0xRRGGBB, (h, w); and how a value is written."""
    if array.ndim == 2:
        return array, GRAY
    if (array == array[:, :, :1]).all():
        return array[:, :, 0], GRAY
    return array @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32), COLOUR


def _count(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values in order, and how often each occurs."""
    if array.dtype == np.uint8:  # several times np.unique's speed
        counts = np.bincount(array.ravel())
        return np.flatnonzero(counts), counts[counts > 0]
    return np.unique(array, return_counts=True)


def _brightness(colours: np.ndarray, values: np.ndarray, counts: np.ndarray, lossy: bool) -> np.ndarray:
    """The brightest channel (h, w), uint8, of packed colours, of which one in several shades stands on black."""
    array = np.stack([colours >> 16, colours >> 8, colours], axis=2).astype(np.uint8)
    bright = array.max(axis=2)
    solid = array[bright > int(bright.max()) - BINARY_TOLERANCE]
    if np.ptp(np.quantile(solid, (0.05, 0.95) if lossy else (0, 1), axis=0), axis=0).max() > 3 * BINARY_TOLERANCE:
        if len(values) <= MAX_LISTED_VALUES:
            raise BadImage(_ambiguous_message(values, counts, COLOUR))
        raise BadImage("mask is not binary: it has more than one colour")
    return bright


def _is_background(array: np.ndarray, value: float) -> bool:
    """Whether a value fills the border and most of a mask, as a background does."""
    border = np.concatenate([array[0], array[-1], array[1:-1, 0], array[1:-1, -1]])
    return bool((border == value).mean() >= 0.75 and (array == value).mean() >= 0.5)


def _ambiguous_message(values: np.ndarray, counts: np.ndarray, name: str) -> str:
    """Why a mask is refused: its values with their shares, where they are few, and the way out."""
    if len(values) > MAX_LISTED_VALUES:
        return f"mask is not binary: {len(values)} distinct values"
    shares = [f"{name.format(value)} ({share:.0%})" for value, share in zip(values, counts / counts.sum(), strict=True)]
    return f"mask is not binary: {', '.join(shares)}; --mask-value says which values are foreground"


def check_mask_files(rows: pd.DataFrame) -> None:
    """A local mask file of these rows of a manifest that is not there is a `UserError`: scores are at their own size."""
    gone = [
        path
        for kind in ("lung_mask", "infection_mask")
        for path in rows[kind]
        if path and "://" not in path and not Path(path).is_file()
    ]
    if gone:
        raise UserError(
            f"{len(gone)} masks are not where they were when the data set was prepared, {gone[0]} first: segmentations are "
            "scored at the size of the masks' own files. Put them back, or prepare the data set anew from where they are."
        )
