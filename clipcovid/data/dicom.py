"""DICOM to pixels, through pydicom: one frame, its look-up tables and window applied, none of its texts passed on.

`read_header` gives the few fields that say which images belong together, the patient's id as a hash alone.
"""

import hashlib
import logging
import re
import warnings
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from clipcovid.data.patients import is_placeholder_id, normalize_id
from clipcovid.data.pixels import STRETCHED_NOTE, BadImage, check_size, to_uint8

FRAME_SIZES = re.compile(
    rb"\xff[\xc0-\xc3\xc5-\xc7\xf7]\0[\x0b-\x14].(..)(..)|\xff\x4f\xff\x51....(....)(....)", re.DOTALL
)
"""The frame headers of JPEG and JPEG-LS (SOF) and of JPEG 2000 (SIZ), with the two sides."""

DEFLATED_SYNTAX_UID = (
    b"1.2.840.10008.1.2.1.99"  # pydicom would inflate it whole, however large, before its header is seen
)
MIN_WINDOW_SHADES = 4  # that a window must leave of a picture to be followed
HEADER_TAGS = ("PatientID", "IssuerOfPatientID", "ViewPosition", "StudyDate")


def read_header(data: bytes, notes: list[str] | None = None) -> dict[str, str]:
    """Fields of a DICOM's header, each "" where the file lacks it or it can't be read; never raises.

    `patient_id`: the first 16 hex digits of the SHA-256 of the id's issuer and the id, so that images of one patient can
    be told without the id itself; a placeholder (see `patients`) is none, and `notes` say so. `patient_key`: the same of
    the normalized id. `view`: ViewPosition in capitals (PA, AP, LL). `study_date`: YYYYMMDD.
    """
    values = _header(data)
    patient, issuer = values["PatientID"], values["IssuerOfPatientID"]
    if patient and is_placeholder_id(patient):
        if notes is not None:
            notes.append("DICOM whose patient id is a word for an unknown one: its patient is not known")
        patient = ""
    date = re.fullmatch(r"(\d{4})[.-]?(\d{2})[.-]?(\d{2})", values["StudyDate"])
    return {
        "patient_id": _patient_hash(issuer, patient),
        "patient_key": _patient_hash(issuer, normalize_id(patient)),
        "view": values["ViewPosition"].upper(),
        "study_date": "".join(date.groups()) if date else "",
    }


def _patient_hash(issuer: str, patient_id: str) -> str:
    return hashlib.sha256(f"{issuer}\0{patient_id}".encode()).hexdigest()[:16] if patient_id else ""


def _header(data: bytes) -> dict[str, str]:
    """The tags `HEADER_TAGS` as text; all "" for a file that `read_dicom` refuses, which gives the reason."""
    _silence_pydicom()
    if DEFLATED_SYNTAX_UID in data[:1024]:
        return dict.fromkeys(HEADER_TAGS, "")
    try:
        dataset = pydicom.dcmread(BytesIO(data), stop_before_pixels=True, force=True, specific_tags=list(HEADER_TAGS))
        return {name: _text(dataset, name) for name in HEADER_TAGS}
    except Exception:  # of whatever a damaged file leads to
        return dict.fromkeys(HEADER_TAGS, "")


def read_dicom(data: bytes, max_pixels: int, notes: list[str]) -> np.ndarray:
    """A DICOM's single frame: uint8 (H, W) or (H, W, 3). pydicom's error texts may quote tags, so none is passed on."""
    _silence_pydicom()
    if DEFLATED_SYNTAX_UID in data:
        raise BadImage("DICOM in a deflated transfer syntax; save it uncompressed")
    part = "header"
    try:
        dataset = pydicom.dcmread(BytesIO(data), force=True)
        _check_dicom(dataset, max_pixels)
        stored = _dicom_pixels(dataset, max_pixels)
        part = "rescale, window or look-up table"
        return _dicom_shades(dataset, stored, notes)
    except BadImage:
        raise
    except Exception:
        raise BadImage(f"damaged DICOM: its {part} can't be read") from None


def _silence_pydicom() -> None:
    """Keep pydicom from complaining, for it quotes the patient's tags."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="pydicom")


def _text(dataset: Any, name: str) -> str:
    """A tag's value as one line of text; "" where it is missing or can't be read."""
    try:
        value = dataset.get(name)
        parts = value if isinstance(value, MultiValue) else [value]
        return " ".join("\\".join(str(part) for part in parts if part is not None).replace("\0", " ").split())
    except Exception:
        return ""


def _check_dicom(dataset: Any, max_pixels: int) -> None:
    """Refuse what is no single image of an allowed size, by the header alone."""
    if not any(dataset.get(name) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadImage("DICOM without pixel data: not an image, or cut short")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
        raise BadImage(f"multi-frame DICOM ({frames} frames); export the frame you want as a single image")
    check_size(int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0), max_pixels)
    if not re.match("MONOCHROME[12]$|PALETTE COLOR$|RGB$|YBR_", str(dataset.get("PhotometricInterpretation"))):
        raise BadImage("DICOM with a photometric interpretation that is unknown or missing")


def _dicom_pixels(dataset: Any, max_pixels: int) -> np.ndarray:
    """The stored values, decompressed: (H, W) or (H, W, 3)."""
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
            check_size(max(width, 1), max(height, 1), max_pixels)
        if not decoder.is_available:
            raise BadImage(f"DICOM in {syntax.name}, for which no decoder is installed{extra}")
    try:
        stored = pixel_array(dataset, correct_unused_bits=False)
    except Exception:
        raise BadImage(
            f"DICOM with pixel data ({syntax.name}) that can't be decoded: damaged or cut short{extra}"
        ) from None
    if stored.dtype.kind == "f":
        return stored
    return _used_bits(dataset, stored, codec=syntax.is_encapsulated and syntax.name != "RLE Lossless")


def _used_bits(dataset: Any, stored: np.ndarray, codec: bool) -> np.ndarray:
    """The values in the bits that the header names, of the same dtype: BitsStored of them, the uppermost one HighBit.

    pydicom takes HighBit for BitsStored − 1. What other bits hold is dropped, as PS3.5 8.1.1 wants it (overlays were kept
    there); where the header contradicts the values, a codec's are taken as they are, and others are refused.
    """
    cell, bits = stored.dtype.itemsize * 8, int(dataset.BitsStored)
    lowest = int(dataset.get("HighBit") or bits - 1) + 1 - bits
    if bits >= cell:
        return stored
    overlay = any((group, 0x0102) in dataset and dataset[group, 0x0102].value for group in range(0x6000, 0x6020, 2))
    if not 0 <= lowest <= cell - bits or (lowest and not overlay and _is_unshifted(stored, bits, lowest)):
        lowest = 0
    values = stored << (cell - bits - lowest) >> (cell - bits)
    unsigned = stored.view(f"u{stored.dtype.itemsize}")
    others = unsigned & ~np.array(((1 << bits) - 1) << lowest, unsigned.dtype)  # bits
    if overlay or not (others[values << lowest != stored]).any():  # a negative value's upper bits are all 1, or 0
        return values
    if codec:
        return stored
    if _roughness(stored) < _roughness(values << lowest):
        raise BadImage(f"DICOM whose values have more than the {bits} bits that its header says (BitsStored, HighBit)")
    return values


def _is_unshifted(stored: np.ndarray, bits: int, lowest: int) -> bool:
    """Whether values stand at the lower end of their cells, though the header says that they begin at bit `lowest`."""
    low, high = (-(1 << bits - 1), 1 << bits - 1) if stored.dtype.kind == "i" else (0, 1 << bits)
    return bool(stored.min() >= low and stored.max() < high and (stored & ((1 << lowest) - 1)).any())


def _roughness(values: np.ndarray) -> float:
    """The mean step from a pixel to its right neighbour."""
    return float(np.abs(np.diff(values.astype(np.int64), axis=1)).mean())


def _dicom_shades(dataset: Any, stored: np.ndarray, notes: list[str]) -> np.ndarray:
    """Stored values to uint8: the modality LUT or rescale, the VOI LUT, window or range, inversion, padding black."""
    if stored.ndim == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR":
        if stored.ndim == 2:
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
        shades, what = to_uint8(*_look_up(dataset, dataset.VOILUTSequence[0], values)), "look-up table (VOI LUT)"
    else:
        shades, what = _window(dataset, values)
    left = _count_shades(shades, padding) if what else 0
    if left < MIN_WINDOW_SHADES:
        inside = values if padding.all() or not padding.any() else values[~padding]
        low, high = inside.min(), inside.max()
        by_range = to_uint8(values, low, high)
        if left <= 1 or _count_shades(by_range, padding) >= 4 * MIN_WINDOW_SHADES:
            shades = by_range
            notes.append(
                f"DICOM whose {what} leaves nothing of its values: their own range is used" if what else STRETCHED_NOTE
            )
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shades = 255 - shades
    return np.where(padding, np.uint8(0), shades)


def _window(dataset: Any, values: np.ndarray) -> tuple[np.ndarray, str]:
    """Values through the first window (PS3.3 C.11.2.1), and its name; "" where there is none, or none that is possible."""
    center, width = (np.atleast_1d(dataset.get(name) or 0).astype(float)[0] for name in ("WindowCenter", "WindowWidth"))
    name, function = f"window ({center:g}/{width:g})", (dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if dataset.get("WindowCenter") is None or not width > 0:
        return values, ""
    if function == "SIGMOID":
        return to_uint8(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50))), 0, 1), name
    return to_uint8(values, center - width / 2, center + width / 2), name


def _count_shades(shades: np.ndarray, padding: np.ndarray) -> int:
    """How many shades a picture has beside its padding; where they are many, at least `4 * FEWEST_SHADES`."""
    part = shades[::8, ::8][~padding[::8, ::8]]  # which tells mostly
    count = int(np.count_nonzero(np.bincount(part, minlength=256)))
    return count if count >= 4 * MIN_WINDOW_SHADES else len(np.unique(shades[~padding]))


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
