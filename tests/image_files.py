"""Image files made here, and what reading them gives."""

import io
import struct
import traceback
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    RLELossless,
)

from clipcovid.data.images import BadImage, decode_pixels

LIMIT = 1_000_000
PATIENT = "Doe^Jane"


def picture(height=53, width=71, channels=0, seed=0):
    """Smooth shades with noise, every value of 0 to 255 likely."""
    rng = np.random.default_rng(seed)
    shape = (height, width, channels) if channels else (height, width)
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 200 // (height + width)
    ramp = ramp[..., None] if channels else ramp
    return (ramp + rng.integers(0, 55, shape)).astype(np.uint8)


def encode(array, format="PNG", **options):
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def ellipse(height=200, width=240, box=(60, 40, 170, 150), fill=255):
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).ellipse(box, fill=fill)
    return np.array(image)


def png(width, height, bits=8, colour=0, rows=b""):
    """A PNG written by hand: (bits, colour) 0 gray, 2 RGB, 4 gray + alpha; `rows` with their filter bytes."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def dataset(array, syntax=ExplicitVRLittleEndian, **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        syntax,
        CTImageStorage,
        "1.2",
    )
    made = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, "1.2"
    made.PatientName, made.PatientID = PATIENT, "4711"
    made.SamplesPerPixel = 3 if array.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if array.ndim == 3 else "MONOCHROME2"
    if array.ndim == 3:
        made.PlanarConfiguration = 0
    made.Rows, made.Columns = array.shape[:2]
    made.BitsAllocated = made.BitsStored = array.dtype.itemsize * 8
    made.PixelRepresentation = int(array.dtype.kind == "i")
    for name, value in tags.items():
        setattr(made, name, value)
    made.HighBit = made.BitsStored - 1
    made.PixelData = array.astype(array.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")).tobytes()
    made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"
    return made


def save(made):
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def twelve_bit(height=40, width=50):
    array = np.random.default_rng(5).integers(0, 4096, (height, width)).astype(np.uint16)
    array[0, :2] = 0, 4095
    return array


def dicom(array=None, syntax=ExplicitVRLittleEndian, **tags):
    return save(dataset(twelve_bit() if array is None else array, syntax, **{"BitsStored": 12} | tags))


def compressed(syntax, array=None):
    made = dataset(twelve_bit() if array is None else array, BitsStored=12)
    made.compress(syntax, encoding_plugin="pylibjpeg" if syntax != RLELossless else "pydicom")
    return save(made)


def reason(data, **options):
    with pytest.raises(BadImage) as caught:
        decode_pixels(data, **{"max_pixels": LIMIT} | options)
    return str(caught.value)


def read(data):
    return decode_pixels(data, max_pixels=LIMIT)


def outcome(data):
    """What a possibly damaged file leads to: its reason with what would be printed of it, or "" where it is read."""
    try:
        assert read(data).dtype == np.uint8
    except BadImage as error:
        return str(error) if error.__suppress_context__ or not error.__context__ else traceback.format_exc()
    return ""
