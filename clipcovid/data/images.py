"""Image files to pixels: decode what a file really holds, refuse what can't be used with the reason, bring to one size.

What a file is, its first bytes say, never its name's ending. `decode` and `decode_mask` read PNG, JPEG, TIFF, BMP,
WebP, GIF and (`decode` only) DICOM; `fit_image` and `fit_mask` bring both to one square by the same geometry.
"""

import hashlib
import logging
import re
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

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

from clipcovid.config import ImagesConfig

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
NOT_IMAGES = {
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
TURNS = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), start=2))
"""EXIF's orientation (2 to 8) to the turn that undoes it."""
FRAME_SIZES = re.compile(
    rb"\xff[\xc0-\xc3\xc5-\xc7\xf7]\0[\x0b-\x14].(..)(..)|\xff\x4f\xff\x51....(....)(....)", re.DOTALL
)
"""The frame headers of JPEG and JPEG-LS (SOF) and of JPEG 2000 (SIZ), with the two sides."""
NEAR = 16
"""How far (of 255) a lossy mask's values may lie from black and from its brightest value and still count as them."""


class BadImage(Exception):
    """A file that can't be used. Its text is the reason, one short sentence without anything of a DICOM's tags."""


def decode(data: bytes, *, max_pixels: int) -> np.ndarray:
    """The pixels of an image file: uint8 (H, W), or (H, W, 3) in RGB, 0 to 255; may be read-only.

    EXIF's orientation is applied, transparency is laid on black, CMYK and palettes become RGB, 1-bit becomes 0 and 255.
    8-bit pixels are returned as they are. Gray pixels of more bits are scaled linearly so that the image's least value
    is 0 and its greatest 255, for archives keep 10 to 16 bits in 16. Colour of 16 bits a channel keeps its upper 8.

    DICOM: the modality LUT or rescale, then the VOI LUT, else the window, else least to greatest; MONOCHROME1 is
    inverted, padding is black. Raises `BadImage` with the reason for whatever can't be used, for more pixels than
    `max_pixels` (by the header, before anything is decoded), and for an image whose pixels are all equal.
    """
    kind = _kind(data)
    array = _read_dicom(data, max_pixels) if kind == "DICOM" else _to_uint8(_read(data, kind, max_pixels))
    if not (array[::16, ::16] != array[0, 0]).any() and (array == array[0, 0]).all():
        raise BadImage(f"constant: every pixel is {array[0, 0].tolist()}")
    return array


def decode_mask(data: bytes, shape: tuple[int, int], *, max_pixels: int) -> np.ndarray:
    """The mask in an image file for an image of `shape` (H, W): uint8 (h, w), 0 or 255, at the mask's own size.

    Zero and one other value are read as background and foreground, whatever the value, or one colour on black; all
    background and all foreground are real masks. Of a JPEG, or a mask with soft edges (more than 8 values), values
    from half of the greatest up are foreground as long as few lie between. Raises `BadImage` for other images, for
    DICOM, and where the aspect ratio differs from the image's by more than 2 %.
    """
    kind = _kind(data)
    if kind == "DICOM":
        raise BadImage("mask is a DICOM file; export it as PNG")
    array = _read(data, kind, max_pixels)
    (height, width), (image_height, image_width) = array.shape[:2], shape
    if abs(width * image_height / (height * image_width) - 1) > 0.02:
        raise BadImage(
            f"mask's aspect ratio {width / height:.2f} differs from the image's {image_width / image_height:.2f} "
            f"({width}x{height} against {image_width}x{image_height})"
        )
    return _binary(array, lossy=kind in ("JPEG", "WebP")).astype(np.uint8) * np.uint8(255)


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


def pixel_hash(image: np.ndarray) -> str:
    """SHA-256 (hex) of uint8 pixels (H, W) or (H, W, 3) and their shape; RGB of three equal channels hashes as gray."""
    assert image.dtype == np.uint8
    if image.ndim == 3 and (image == image[:, :, :1]).all():
        image = image[:, :, 0]
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).data).hexdigest()


def _fit(picture: Image.Image, shape: tuple[int, ...], config: ImagesConfig, filter_: Image.Resampling) -> np.ndarray:
    """Resize and crop or pad, by the geometry that an image of `shape` (H, W) gets."""
    size, (height, width) = config.size, shape
    short, long = min(height, width), max(height, width)
    across, down = size, size
    if config.fit == "crop":
        across, down = (size, int(size * long / short)) if width <= height else (int(size * long / short), size)
        if across * down > max(config.max_pixels, 16 * size * size):
            raise BadImage(f"{width}x{height} is too long and thin for --images.fit crop")
    elif config.fit == "pad":
        across, down = max(1, round(size * width / long)), max(1, round(size * height / long))
    if picture.size != (across, down):
        picture = picture.resize((across, down), filter_)
    if config.fit == "crop":
        left, top = round((across - size) / 2), round((down - size) / 2)
        picture = picture.crop((left, top, left + size, top + size))
    elif config.fit == "pad":
        canvas = Image.new(picture.mode, (size, size))
        canvas.paste(picture, ((size - across) // 2, (size - down) // 2))
        picture = canvas
    return np.array(picture)


def _kind(data: bytes) -> str:
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
    for signature, name in NOT_IMAGES.items():
        if head[: len(signature)].lower() == signature.lower():
            is_html = name == "an XML document" and b"<html" in head.lower()
            raise BadImage(f"is {'an HTML page' if is_html else name}, not an image")
    if not data.strip(b"\0"):
        raise BadImage(f"holds only zero bytes ({len(data)} of them)")
    if not re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]", head):
        raise BadImage("is a text file, not an image")
    raise BadImage("unknown format: not PNG, JPEG, TIFF, BMP, WebP, GIF or DICOM")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BadImage(f"declares no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise BadImage(f"declares {width}x{height} pixels, more than --images.max-pixels {max_pixels}")


def _read(data: bytes, kind: str, max_pixels: int) -> np.ndarray:
    """The pixels as they are stored: (H, W) of any dtype, or uint8 (H, W, 3)."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some library may have set it: half a picture would pass for a whole one
    try:
        image = READERS[kind](BytesIO(data), "")
        _check_size(*image.size, max_pixels)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise BadImage(f"{kind} of {frames} frames or pages; export the one you want as a single image")
        deep = image.mode[0] not in "IF" and any(";16" in str(tile[3]) for tile in image.tile)
        white_is_zero = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(262) == 0
        image.load()
        array = np.asarray(_plain(_upright(image, kind)))
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
    return np.iinfo(np.uint16).max - array if white_is_zero else array


def _upright(image: Image.Image, kind: str) -> Image.Image:
    """Apply EXIF's orientation (Pillow has applied a TIFF's already); one that can't be read counts as none."""
    try:
        turn = TURNS.get(image.getexif().get(0x0112, 1)) if kind != "TIFF" else None
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image) -> Image.Image:
    """Without palette, transparency and colour spaces: mode L, RGB, I, F or I;16."""
    if image.has_transparency_data and image.mode[0] not in "1IF":
        full = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
        colour = full.convert(full.mode[:-1])
        if full.getchannel("A").getextrema() == (255, 255):
            return colour
        return Image.composite(colour, Image.new(colour.mode, colour.size), full.getchannel("A"))
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB") or image.mode[0] in "IF" else image.convert("RGB")


def _to_uint8(array: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Scale linearly so that `low` (default: the least value) becomes 0 and `high` 255; uint8 is left as it is."""
    if array.dtype == np.uint8 and low is None:
        return array
    if not np.isfinite(array).all():
        raise BadImage("holds NaN or infinite values")
    low, high = (float(array.min()), float(array.max())) if low is None or high is None else (low, high)
    if low == high:
        raise BadImage(f"constant: every pixel is {low:g}")
    scaled = (array.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8)


def _binary(array: np.ndarray, *, lossy: bool) -> np.ndarray:
    """Foreground (bool) of a mask's pixels."""
    if array.ndim == 3:
        colours = array @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
        if len(np.unique(colours)) <= 2:
            array = colours
        else:
            bright = array.max(axis=2)
            solid = array[bright > int(bright.max()) - NEAR]
            if np.ptp(np.quantile(solid, (0.05, 0.95) if lossy else (0, 1), axis=0), axis=0).max() > 3 * NEAR:
                raise BadImage("mask is not binary: it has more than one colour")
            array = bright
    values, counts = np.unique(array, return_counts=True)
    if len(values) == 1 or (len(values) == 2 and values[0] == 0):
        return array != 0
    peak = float(values[-1])
    if array.dtype == np.uint8 and peak >= 128 and (lossy or len(values) > 8):
        between = counts[(values > NEAR) & (values < peak - NEAR)].sum()
        if between <= 0.05 * array.size and between <= 0.5 * counts[values > NEAR].sum():
            return array >= peak / 2
    raise BadImage(f"mask is not binary: {len(values)} distinct values")


def _read_dicom(data: bytes, max_pixels: int) -> np.ndarray:
    """A DICOM's single frame: uint8 (H, W) or (H, W, 3). pydicom's error texts may quote tags, so none is passed on."""
    import pydicom  # slow to import, and most sets have no DICOM

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its complaints quote the patient's tags
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="pydicom")
    if b"1.2.840.10008.1.2.1.99" in data:  # pydicom would inflate it whole, however large, before its header is seen
        raise BadImage("DICOM in a deflated transfer syntax; save it uncompressed")
    part = "header"
    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True)
        _check_dicom(dataset, max_pixels)
        stored = _dicom_pixels(dataset, max_pixels)
        part = "rescale, window or look-up table"
        return _dicom_shades(dataset, stored)
    except BadImage:
        raise
    except Exception:
        raise BadImage(f"damaged DICOM: its {part} can't be read") from None


def _check_dicom(dataset: Any, max_pixels: int) -> None:
    """Refuse what is no single image of an allowed size, by the header alone."""
    if not any(dataset.get(name) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadImage("DICOM without pixel data: not an image, or cut short")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
        raise BadImage(f"multi-frame DICOM ({frames} frames); export the frame you want as a single image")
    _check_size(int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0), max_pixels)
    if not re.match("MONOCHROME[12]$|PALETTE COLOR$|RGB$|YBR_", str(dataset.get("PhotometricInterpretation"))):
        raise BadImage("DICOM with a photometric interpretation that is unknown or missing")


def _dicom_pixels(dataset: Any, max_pixels: int) -> np.ndarray:
    """The stored values, decompressed: (H, W) or (H, W, 3)."""
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in dataset.file_meta:
        plain = ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain
    syntax, extra = dataset.file_meta.TransferSyntaxUID, ""
    try:
        decoder = get_decoder(syntax)
    except Exception:
        raise BadImage("DICOM in a transfer syntax that holds no still image, or an unknown one") from None
    if syntax.is_encapsulated and syntax.name != "RLE Lossless":
        extra = "" if "pylibjpeg" in decoder.available_plugins else "; pip install 'clipcovid[dicom]' adds decoders"
        for header in FRAME_SIZES.finditer(dataset.PixelData):  # the frame's own size counts
            height, width = (int.from_bytes(side, "big") for side in header.groups() if side)
            _check_size(max(width, 1), max(height, 1), max_pixels)
        if not decoder.is_available:
            raise BadImage(f"DICOM in {syntax.name}, for which no decoder is installed{extra}")
    try:
        return pixel_array(dataset)
    except Exception:
        raise BadImage(
            f"DICOM with pixel data ({syntax.name}) that can't be decoded: damaged or cut short{extra}"
        ) from None


def _dicom_shades(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """Stored values to uint8: the modality LUT or rescale, the VOI LUT, window or range, inversion, padding black."""
    if stored.ndim == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR":
        if stored.ndim == 2:
            from pydicom.pixels import apply_color_lut

            stored = apply_color_lut(stored, dataset)
            return (stored >> 8 if stored.dtype == np.uint16 else stored)[:, :, :3].astype(np.uint8)
        return (stored >> max(0, dataset.BitsStored - 8)).astype(np.uint8)
    padding = np.zeros(stored.shape, dtype=bool)
    if (value := dataset.get("PixelPaddingValue")) is not None:
        limit = dataset.get("PixelPaddingRangeLimit")
        limit = value if limit is None else limit
        padding = (stored >= min(value, limit)) & (stored <= max(value, limit))
    values = stored
    if dataset.get("ModalityLUTSequence"):
        values = _look_up(dataset, dataset.ModalityLUTSequence[0], stored)[0]
    elif dataset.get("RescaleSlope") is not None:
        values = stored * float(dataset.RescaleSlope) + float(dataset.get("RescaleIntercept") or 0)
    if dataset.get("VOILUTSequence"):
        shades = _to_uint8(*_look_up(dataset, dataset.VOILUTSequence[0], values))
    else:
        shades = _window(dataset, values, padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shades = 255 - shades
    return np.where(padding, np.uint8(0), shades)


def _window(dataset: Any, values: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """The first window (PS3.3 C.11.2.1); where there is none, or none that is possible, the range without padding."""
    center, width = (np.atleast_1d(dataset.get(name) or 0).astype(float)[0] for name in ("WindowCenter", "WindowWidth"))
    function = (dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if dataset.get("WindowCenter") is None or not width > 0:
        inside = values[~padding] if not padding.all() else values
        return _to_uint8(values, inside.min(), inside.max())
    if function == "SIGMOID":
        return _to_uint8(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50))), 0, 1)
    return _to_uint8(values, center - width / 2, center + width / 2)


def _look_up(dataset: Any, table: Any, values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Values through a modality or VOI LUT, and the table's least and greatest (its stated depth is often wrong)."""
    count, first = table.LUTDescriptor[0] or 2**16, table.LUTDescriptor[1]
    entries = table.LUTData
    if isinstance(entries, bytes):
        wide = "<u2" if dataset.original_encoding[1] else ">u2"
        entries = np.frombuffer(entries, np.uint8 if len(entries) < 2 * count else wide)
    entries = np.asarray(entries)[:count].astype(np.int64)
    index = np.rint(values).astype(np.int64) - first
    return entries[index.clip(0, len(entries) - 1)], float(entries.min()), float(entries.max())
