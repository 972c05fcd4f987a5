"""Image files to pixels: decode what a file really holds, refuse what can't be used with the reason, bring to one size.

What a file is, its first bytes say, never its name's ending. `decode_pixels` reads PNG, JPEG, TIFF, BMP, WebP, GIF and DICOM
(masks: `masks.decode_mask`); `fit_image` and `fit_mask` bring an image and its masks to one square by the same geometry.
"""

import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import fsspec
import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from clipcovid.config import ImagesConfig, summarize_error
from clipcovid.data.pixels import STRETCHED_NOTE, BadImage, check_size, to_uint8

# The plugins' own classes, for Image.open also judges by the process-wide Image.MAX_IMAGE_PIXELS.
READERS: dict[str, Callable[..., ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "GIF"),
    # DICOM without its preamble: the first elements that stand in groups 0002 and 0008.
    **dict.fromkeys(
        (b"\2\0\0\0", b"\2\0\1\0", *(b"\x08\0%c\0" % element for element in (0, 5, 8, 0x16, 0x18))), "DICOM"
    ),
}
NON_IMAGE_SIGNATURES = {
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"<": "an XML document",
    b"{": "a JSON document",
    b"[": "a JSON document",
}
EXIF_TRANSPOSES = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), start=2))
"""EXIF's orientation (2 to 8) to the turn that undoes it."""
MONOCHROME1 = "MONOCHROME1"  # what a data set says of files, other than DICOM, that show black as white
MAX_BYTES = 1 << 30  # of a file that is read at all: an archive left among the images must not fill the memory


def read_bytes(path: str) -> bytes:
    """A file's bytes, from a local path, any fsspec URI, or a cell of a Parquet file (see `parquet_images`).

    One that can't be read raises `BadImage`.
    """
    try:
        if path.startswith("parquet+"):
            from clipcovid.data.parquet_images import read_parquet_image  # most sets have none

            return read_parquet_image(path)
        # As bytes, for a worker may run in a locale that has not all letters.
        with fsspec.open(path, "rb") if "://" in path else open(path.encode(), "rb") as file:  # noqa: PTH123
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        why = ": its name is not UTF-8; rename it" if "\ufffd" in path else ""
        raise BadImage(f"file not found{why}") from None
    except Exception as error:  # of any of fsspec's backends
        reason = getattr(error, "strerror", None) or summarize_error(error)  # strerror: without the path, to be counted
        raise BadImage(f"can't be opened: {reason}") from None
    if len(data) > MAX_BYTES:
        raise BadImage(f"larger than {MAX_BYTES >> 20} MiB")
    return data


def undo_inversion(pixels: np.ndarray, inverted: str) -> np.ndarray:
    """The uint8 pixels of a file with black as black; `inverted`: the manifest's word on the file, see `MONOCHROME1`."""
    return 255 - pixels if inverted == MONOCHROME1 else pixels


def is_image(start: bytes) -> bool:
    """Whether a file with these first bytes (512 are enough) is of a format that is read."""
    try:
        return bool(detect_format(start))
    except BadImage:
        return False


@dataclass(frozen=True)
class DecodedImage:
    """An image file's content."""

    pixels: np.ndarray
    """uint8 (H, W), or (H, W, 3) in RGB, upright; may be read-only."""
    orientation: int = 1
    """EXIF's, 1 to 8, which has been applied; 1 for a file that is stored upright."""
    notes: tuple[str, ...] = ()
    """What was assumed in reading it, a sentence each."""


def decode_pixels(data: bytes, *, max_pixels: int) -> np.ndarray:
    """The pixels of an image file, as `decode_image` gives them."""
    return decode_image(data, max_pixels=max_pixels).pixels


def open_image(path: str, *, max_pixels: int) -> np.ndarray:
    """The pixels of an image file or URI, as `decode_image` gives them; what was assumed of this one is said on stderr."""
    picture = decode_image(read_bytes(path), max_pixels=max_pixels)
    for note in (note for note in picture.notes if note != STRETCHED_NOTE):
        print(f"note: {path}: {note}.", file=sys.stderr)  # for a job's stdout may be JSON
    return picture.pixels


def decode_image(data: bytes, *, max_pixels: int) -> DecodedImage:
    """The picture in an image file: uint8 pixels (H, W), or (H, W, 3) in RGB, 0 to 255.

    EXIF's orientation is applied, transparency is laid on black, CMYK and palettes become RGB, 1-bit becomes 0 and 255.
    8-bit pixels are returned as they are. Gray pixels of more bits are scaled linearly so that the image's least value
    is 0 and its greatest 255, for archives keep 10 to 16 bits in 16. Colour of 16 bits a channel keeps its upper 8.

    DICOM: the modality LUT or rescale, then the VOI LUT, else the window, else least to greatest; MONOCHROME1 is
    inverted, padding is black. Raises `BadImage` with the reason for whatever can't be used, for more pixels than
    `max_pixels` (by the header, before anything is decoded), and for an image whose pixels are all equal.
    """
    kind, orientation, notes = detect_format(data), 1, list[str]()
    if kind == "DICOM":
        from clipcovid.data.dicom import read_dicom  # pydicom is slow to import, and most sets have none

        array = read_dicom(data, max_pixels, notes)
    else:
        stored, orientation = decode_upright(data, kind, max_pixels, flatten_image)
        array = to_uint8(stored)
        notes += [STRETCHED_NOTE] * (stored.dtype != np.uint8)
    if not (array[::16, ::16] != array[0, 0]).any() and (array == array[0, 0]).all():
        raise BadImage(f"constant: every pixel is {array[0, 0].tolist()}")
    return DecodedImage(array, orientation, tuple(notes))


def fit_image(image: np.ndarray, config: ImagesConfig) -> np.ndarray:
    """Bring an image, uint8 (H, W) or (H, W, 3), to uint8 (size, size) for mode gray or (size, size, 3) for rgb.

    Colour becomes gray by ITU-R 601; the resize is Pillow's antialiased bicubic in the target mode. fit crop equals
    torchvision's Resize and CenterCrop bit for bit. Raises `BadImage` where crop would need an image too large.
    """
    picture = Image.fromarray(image)
    if config.mode == "gray" and picture.mode != "L":
        picture = picture.convert("L")
    fitted = _fit(picture, image.shape[:2], config, Image.Resampling.BICUBIC)
    return np.repeat(fitted[:, :, None], 3, axis=2) if config.mode == "rgb" and fitted.ndim == 2 else fitted


def fit_mask(mask: np.ndarray, image_shape: tuple[int, int], config: ImagesConfig) -> np.ndarray:
    """Bring a mask, uint8 (h, w) of 0 and 255, to uint8 (size, size) of 0 and 255, where `fit_image` puts its image.

    `image_shape` is the image's (H, W): the mask, whatever its own size, covers the same frame. A pixel is
    foreground where the mask covers at least half of it.
    """
    fitted = _fit(Image.fromarray(mask), image_shape[:2], config, Image.Resampling.BOX)
    return np.where(fitted > 127, np.uint8(255), np.uint8(0))


def resize_geometry(shape: tuple[int, ...], size: int, fit: str) -> tuple[int, int, int, int]:
    """How an image of `shape` (H, W) is fitted into a square of `size`: the width and height that it is resized to, and the
    left and top of the square in that, negative where the square is the larger one."""
    height, width = shape
    short, long = min(height, width), max(height, width)
    if fit == "crop":
        across, down = (size, int(size * long / short)) if width <= height else (int(size * long / short), size)
        return across, down, round((across - size) / 2), round((down - size) / 2)
    if fit == "pad":
        across, down = max(1, round(size * width / long)), max(1, round(size * height / long))
        return across, down, -((size - across) // 2), -((size - down) // 2)
    return size, size, 0, 0


def pixel_hash(image: np.ndarray) -> str:
    """SHA-256 (hex) of uint8 pixels (H, W) or (H, W, 3) and their shape; RGB of three equal channels hashes as gray."""
    assert image.dtype == np.uint8
    if image.ndim == 3 and (image == image[:, :, :1]).all():
        image = image[:, :, 0]
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).data).hexdigest()


def _fit(picture: Image.Image, shape: tuple[int, ...], config: ImagesConfig, filter_: Image.Resampling) -> np.ndarray:
    """Resize and crop or pad, by the geometry that an image of `shape` (H, W) gets."""
    size = config.size
    across, down, left, top = resize_geometry(shape, size, config.fit)
    if config.fit == "crop" and across * down > max(config.max_pixels, 16 * size * size):
        raise BadImage(f"{shape[1]}x{shape[0]} is too long and thin for --fit crop")
    if picture.size != (across, down):
        picture = picture.resize((across, down), filter_)
    return np.array(picture.crop((left, top, left + size, top + size)))  # black where it is beyond the picture


def detect_format(data: bytes) -> str:
    """The format by the file's first bytes; `BadImage` says what it is where it isn't an image."""
    if not data:
        raise BadImage("empty file (0 bytes)")
    if data[128:132] == b"DICM":
        return "DICOM"
    for signature, kind in SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:2] == b"BM" and b"\0" in data[2:18]:
        return "BMP"
    head = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip()
    for signature, name in NON_IMAGE_SIGNATURES.items():
        if head[: len(signature)].lower() == signature.lower():
            is_html = name == "an XML document" and b"<html" in head.lower()
            raise BadImage(f"is {'an HTML page' if is_html else name}, not an image")
    if not data.strip(b"\0"):
        raise BadImage(f"holds only zero bytes ({len(data)} of them)")
    if not re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]", head):
        raise BadImage("is a text file, not an image")
    raise BadImage("unknown format: not PNG, JPEG, TIFF, BMP, WebP, GIF or DICOM")


def decode_upright(
    data: bytes, kind: str, max_pixels: int, flatten: Callable[[Image.Image], Image.Image]
) -> tuple[np.ndarray, int]:
    """The upright pixels of a file of `kind`, (H, W) of any dtype or uint8 (H, W, 3), and EXIF's orientation, 1 to 8.

    `flatten` brings an image to mode L, RGB, I, F or I;16. Raises `BadImage` for what can't be read.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some library may have set it: half a picture would pass for a whole one
    try:
        image = READERS[kind](BytesIO(data), "")
        check_size(*image.size, max_pixels)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise BadImage(f"{kind} of {frames} frames or pages; export the one you want as a single image")
        deep = image.mode[0] not in "IF" and any(";16" in str(tile[3]) for tile in image.tile)
        white_is_zero = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == 0
        orientation = _exif_orientation(image) if kind == "TIFF" else 0
        image.load()
        orientation = orientation or _exif_orientation(image)
        turn = None if kind == "TIFF" else EXIF_TRANSPOSES.get(orientation)  # Pillow turns a TIFF itself as it loads
        array = np.asarray(flatten(image if turn is None else image.transpose(turn)))
    except BadImage:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:120] or type(error).__name__
        if "not identified by this driver" in text:
            text = "its header declares no pixels or an unknown pixel format"
        raise BadImage(f"{'truncated' if 'truncated' in text.lower() else 'damaged'} {kind}: {text}") from None
    if kind == "JPEG" and data.endswith(bytes(64)) and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise BadImage("truncated JPEG: its end is filled with zero bytes")
    if deep and array.max() < 64:
        raise BadImage("16-bit colour that leaves its upper bits empty; save it as 16-bit gray or 8-bit colour")
    return np.iinfo(np.uint16).max - array if white_is_zero else array, orientation


def _exif_orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; one that is unknown or can't be read counts as none, which is 1."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return orientation if orientation in EXIF_TRANSPOSES else 1


def flatten_image(image: Image.Image) -> Image.Image:
    """An image on black, without palette, transparency and colour spaces: mode L, RGB, I, F or I;16.

    Raises `BadImage` where only the transparency has a picture.
    """
    if not is_transparent(image):
        return flatten_opaque(image)
    colour, alpha = split_alpha(image)
    opacity = np.asarray(alpha)
    least, greatest = int(opacity.min()), int(opacity.max())
    if least == 255:
        return colour
    flat = Image.composite(colour, Image.new(colour.mode, colour.size), alpha)
    if not greatest:
        raise BadImage("transparent all over; save it without an alpha channel")
    if not flat.getbbox() and least < greatest:
        raise BadImage("black all over: its picture is in the transparency; save that as a gray image")
    return flat


def flatten_opaque(image: Image.Image) -> Image.Image:
    """An image without palette and colour spaces: mode L, RGB, I, F or I;16. Transparency is dropped."""
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB") or image.mode[0] in "IF" else image.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel, or a palette's entry or a colour that is transparent."""
    return image.has_transparency_data and image.mode[0] not in "1IF"


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The colour (mode L or RGB) and the alpha channel (mode L) of an image that is transparent."""
    full = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
    return full.convert(full.mode[:-1]), full.getchannel("A")
