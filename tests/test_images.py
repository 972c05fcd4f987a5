"""Decoding, refusing and fitting of image files, on images made here."""

import io
import pickle
import struct
import subprocess
import sys
import traceback
import warnings
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFile, TiffImagePlugin
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from clipcovid.config import ImagesConfig
from clipcovid.data import images
from clipcovid.data.images import BadImage, decode, decode_mask, fit_image, fit_mask, pixel_hash

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


def reason(data, **options):
    with pytest.raises(BadImage) as caught:
        decode(data, **{"max_pixels": LIMIT} | options)
    return str(caught.value)


def mask_reason(data, shape):
    with pytest.raises(BadImage) as caught:
        decode_mask(data, shape, max_pixels=LIMIT)
    return str(caught.value)


def read(data):
    return decode(data, max_pixels=LIMIT)


def outcome(data):
    """What a possibly damaged file leads to: its reason with what would be printed of it, or "" where it is read."""
    try:
        assert read(data).dtype == np.uint8
    except BadImage as error:
        return str(error) if error.__suppress_context__ or not error.__context__ else traceback.format_exc()
    return ""


def read_mask(array, format="PNG", **options):
    data = encode(array, format, **options)
    image = Image.open(io.BytesIO(data))
    return decode_mask(data, (image.height, image.width), max_pixels=LIMIT)


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


# Formats


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"big_tiff": True}),
        ("WebP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("size", [(53, 71), (1, 2), (256, 17)])
def test_lossless_formats_are_exact_and_hash_alike(format, options, channels, size):
    array = picture(*size, channels)
    decoded = read(encode(array, format, **options))
    assert decoded.dtype == np.uint8
    if format == "WebP" and not channels:  # WebP knows no gray
        assert (decoded == array[..., None]).all()
    else:
        assert np.array_equal(decoded, array)
    assert pixel_hash(decoded) == pixel_hash(array)


@pytest.mark.parametrize("channels", [0, 3])
def test_jpeg_equals_pillow(channels):
    data = encode(picture(channels=channels), "JPEG", quality=90)
    assert np.array_equal(read(data), np.asarray(Image.open(io.BytesIO(data))))


def test_progressive_jpeg_and_cmyk_jpeg():
    gray = picture()
    assert np.abs(read(encode(gray, "JPEG", progressive=True, quality=98)).astype(int) - gray).mean() < 3
    colour = np.kron(picture(8, 9, 3), np.ones((8, 8, 1), np.uint8))
    decoded = read(encode(Image.fromarray(colour).convert("CMYK"), "JPEG", quality=98))
    assert decoded.shape == colour.shape
    assert np.abs(decoded.astype(int) - colour).mean() < 8


def test_one_bit_is_0_and_255():
    array = picture() > 100
    for format in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(read(encode(Image.fromarray(array), format)), array * np.uint8(255))


def test_palettes_and_gif():
    gray = picture()
    assert np.array_equal(read(encode(gray, "GIF"))[..., 0] if read(encode(gray, "GIF")).ndim == 3 else gray, gray)
    palette = Image.fromarray(picture(channels=3)).quantize(17)
    expected = np.asarray(palette.convert("RGB"))
    for format in ("PNG", "GIF", "TIFF", "BMP"):
        assert np.array_equal(read(encode(palette, format)), expected)


@pytest.mark.parametrize("channels", [0, 3])
def test_transparency_is_black_and_full_opacity_is_dropped(channels):
    array = picture(channels=channels)
    image = Image.fromarray(array)
    image.putalpha(255)
    assert np.array_equal(read(encode(image)), array)
    alpha = np.full(array.shape[:2], 255, np.uint8)
    alpha[:20], alpha[20:30] = 0, 128
    image.putalpha(Image.fromarray(alpha))
    decoded = read(encode(image)).astype(int)
    assert decoded.shape == array.shape
    assert (decoded[:20] == 0).all()
    assert np.abs(decoded[20:30] - array[20:30] * (128 / 255)).max() <= 1
    assert np.array_equal(decoded[30:], array[30:])


def test_palette_with_transparent_entry():
    palette = Image.fromarray(picture(channels=3)).quantize(5)
    data = encode(palette, transparency=2)
    decoded, hidden = read(data), np.asarray(palette) == 2
    assert (decoded[hidden] == 0).all()
    assert np.array_equal(decoded[~hidden], np.asarray(palette.convert("RGB"))[~hidden])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WebP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(format, orientation):
    upright = np.kron(np.array([[0, 80, 160], [240, 40, 200]], np.uint8), np.ones((16, 16), np.uint8))
    turns = [
        lambda a: a,
        np.fliplr,
        lambda a: np.rot90(a, 2),
        np.flipud,
        lambda a: a.T,
        lambda a: np.rot90(a, 1),  # stored so that a turn by 270 degrees counterclockwise sets it upright
        lambda a: np.rot90(a, 2).T,
        lambda a: np.rot90(a, -1),
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WebP": {"lossless": True}, "JPEG": {"quality": 95}}.get(format, {})
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation - 1](upright)))
    decoded = read(encode(stored, format, exif=exif, **options))
    decoded = decoded if decoded.ndim == 2 else decoded[..., 0]
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= 8


def test_the_first_picture_of_a_phones_jpeg_is_read():
    array = picture()
    data = encode(array, "MPO", save_all=True, append_images=[Image.fromarray(array[:20])], quality=95)
    assert np.array_equal(read(data), np.asarray(Image.open(io.BytesIO(data))))


def test_unreadable_exif_does_not_refuse_a_good_image():
    array = picture()
    data = encode(array, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(range(40)), quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read(data).shape == array.shape


def test_16_bit_is_scaled_from_least_to_greatest():
    deep = np.random.default_rng(1).integers(1000, 4096, (40, 50)).astype(np.uint16)  # 12 of 16 bits
    deep[0, :2] = 1000, 4095
    expected = np.rint((deep - 1000.0) * 255 / 3095).astype(np.uint8)
    for format in ("PNG", "TIFF"):
        assert np.array_equal(read(encode(deep, format)), expected)
    big_endian = Image.frombytes("I;16B", (50, 40), deep.astype(">u2").tobytes())
    assert np.array_equal(read(encode(big_endian, "TIFF")), expected)
    for dtype in (np.int32, np.float32):
        assert np.array_equal(read(encode(deep.astype(dtype) - dtype(2000), "TIFF")), expected)


def test_white_is_zero_tiff_is_inverted():
    for array in (picture(), np.arange(2000, dtype=np.uint16).reshape(40, 50)):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[262] = 0
        data = bytearray(encode(array, "TIFF"))
        place = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
        data[place] = 0
        assert np.array_equal(read(bytes(data)), 255 - read(encode(array, "TIFF")))


def test_16_bit_colour_keeps_its_upper_bits_or_is_refused():
    colour = np.random.default_rng(2).integers(0, 65536, (5, 6, 3)).astype(np.uint16)

    def file(array):
        return png(6, 5, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in array))

    assert np.array_equal(read(file(colour)), (colour >> 8).astype(np.uint8))
    assert "upper bits empty" in reason(file(colour >> 4))


def test_content_decides_and_is_deterministic():
    array = picture()
    for format in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WebP"):
        data = encode(array, format)
        assert np.array_equal(read(data), read(bytes(bytearray(data))))


# Refusals


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file (0 bytes)"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "is an HTML page, not an image"),
        (b"\n  <HTML>error", "is an HTML page, not an image"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x"><html xmlns="y">', "is an HTML page, not an image"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML document, not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing, not an image"),
        (b'\xef\xbb\xbf{"message": "rate limit"}', "is a JSON document, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"file_name,label\na.png,COVID-19\n", "is a text file, not an image"),
        (b"BMI,age\n23,41\n", "is a text file, not an image"),
        ("Röntgen\n".encode(), "is a text file, not an image"),
        (b"PK\x03\x04" + bytes(40), "is a ZIP archive, not an image"),
        (b"\x1f\x8b\x08" + bytes(40), "is a gzip archive, not an image"),
        (b"%PDF-1.7\n", "is a PDF document, not an image"),
        (bytes(5000), "holds only zero bytes"),
        (b"\x00\x01\x02\x03 something else", "unknown format"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"BM\0\0", "BMP"),
        (b"II*\0", "TIFF"),
        (b"GIF89a", "GIF"),
        (b"RIFF\x10\0\0\0WEBP", "WebP"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"\x08\x00\x05\x00", "DICOM"),
        (png(0, 4), "no pixels"),
        (png(4, 0), "no pixels"),
    ],
)
def test_what_is_no_image_is_named(data, words):
    text = reason(data)
    assert words in text
    assert "\n" not in text
    assert "0x7f" not in text  # no memory address
    assert reason(data) == text


@pytest.mark.parametrize("value", [0, 7, 255])
def test_constant_images_are_refused(value):
    for format in ("PNG", "BMP", "TIFF"):
        assert reason(encode(np.full((9, 40), value, np.uint8), format)) == f"constant: every pixel is {value}"
    assert reason(encode(np.full((9, 9), 4000, np.uint16))) == "constant: every pixel is 4000"
    assert reason(encode(np.full((1, 1), value, np.uint8))) == f"constant: every pixel is {value}"


def test_constant_colour_is_refused_but_one_other_pixel_is_enough():
    array = np.full((40, 40, 3), (200, 10, 10), np.uint8)
    assert reason(encode(array)) == "constant: every pixel is [200, 10, 10]"
    for place in ((0, 0), (1, 1), (39, 39), (0, 17)):
        other = array.copy()
        other[(*place, 2)] = 11
        assert np.array_equal(read(encode(other)), other)


def test_nan_and_infinity_are_refused():
    for bad in (np.nan, np.inf):
        array = picture().astype(np.float32)
        array[3, 4] = bad
        assert reason(encode(array, "TIFF")) == "holds NaN or infinite values"


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WebP", "PNG"])
def test_several_frames_are_refused(format):
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    assert "of 3 frames or pages; export the one you want as a single image" in reason(data)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95}),
        ("JPEG", {"progressive": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
        ("WebP", {"lossless": True}),
        ("WebP", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_truncated_file_is_refused_or_whole(format, options, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as another library may have left it
    data = encode(picture(90, 80), format, **options)
    whole = read(data)
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        assert format.lower() in reason(data[: int(len(data) * share)]).lower()
    for cut in range(1, 40, 3):
        try:
            assert np.array_equal(read(data[:-cut]), whole)
        except BadImage:
            continue


def test_a_jpeg_with_a_zero_filled_end_is_refused():
    data = encode(picture(400, 400), "JPEG", quality=95)
    assert reason(data[: len(data) // 2] + bytes(len(data) // 2)).startswith("truncated JPEG")
    assert read(data + bytes(500)).shape == (400, 400)


def test_damage_never_raises_anything_else():
    rng = np.random.default_rng(3)
    sources = [encode(picture(40, 30), format) for format in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WebP")]
    sources += [dicom(), dicom(syntax=ImplicitVRLittleEndian), compressed(RLELossless)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for source in sources:
            for _ in range(40):
                data = bytearray(source)
                for place in rng.integers(0, min(len(data), 700), 6):
                    data[place] = rng.integers(0, 256)
                assert len(outcome(bytes(data))) < 200


def test_bombs_are_refused_before_decoding(monkeypatch):
    bomb = png(60000, 60000, rows=bytes(1000))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded a bomb"))
    monkeypatch.setattr(images.PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded a bomb"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "declares 60000x60000 pixels" in reason(bomb)
    bmp = bytearray(encode(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    assert "declares 60000x60000 pixels" in reason(bytes(bmp))
    gif = bytearray(encode(picture(), "GIF"))
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    assert "declares 60000x60000 pixels" in reason(bytes(gif))
    jpeg = encode(picture(), "JPEG")
    jpeg = jpeg.replace(struct.pack(">HH", 53, 71), struct.pack(">HH", 60000, 60000))
    assert "declares 60000x60000 pixels" in reason(jpeg)


def test_max_pixels_alone_decides(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    array = picture(30, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode(encode(array), max_pixels=1200), array)
    assert "more than --max-pixels 1199" in reason(encode(array), max_pixels=1199)
    with pytest.raises(BadImage, match="max-pixels"):
        decode_mask(encode(array), (30, 40), max_pixels=1199)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_bad_image_pickles():
    assert str(pickle.loads(pickle.dumps(BadImage("why")))) == "why"


# DICOM


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


def scaled(values, low, high):
    return np.rint(np.clip((np.asarray(values, dtype=np.float64) - low) * (255 / (high - low)), 0, 255)).astype(
        np.uint8
    )


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_dicom_without_window_goes_from_least_to_greatest(syntax):
    array = twelve_bit()
    assert np.array_equal(read(dicom(syntax=syntax)), scaled(array, 0, 4095))
    inverted = read(dicom(syntax=syntax, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted, 255 - scaled(array, 0, 4095))


def test_dicom_8_bit_signed_and_float():
    array = picture()
    assert np.array_equal(read(dicom(array, BitsStored=8)), scaled(array, array.min(), array.max()))
    signed = twelve_bit().astype(np.int16) - 1024
    assert np.array_equal(read(dicom(signed, BitsStored=16)), scaled(signed, -1024, 3071))
    made = dataset(twelve_bit(), BitsStored=12)
    del made.PixelData, made.BitsStored, made.HighBit
    made.BitsAllocated, made.FloatPixelData = 32, twelve_bit().astype("<f4").tobytes()
    assert np.array_equal(read(save(made)), scaled(twelve_bit(), 0, 4095))


def test_dicom_rescale_and_window():
    array = twelve_bit()
    ct = {"RescaleSlope": "2", "RescaleIntercept": "-1024", "WindowCenter": "1000.5", "WindowWidth": "2001"}
    assert np.array_equal(read(dicom(**ct)), scaled(array * 2.0 - 1024, 0, 2000))
    # The window is the range even where the image does not fill it.
    wide = read(dicom(WindowCenter="8192.5", WindowWidth="16385"))
    assert np.array_equal(wide, scaled(array, 0, 16384))
    assert wide.max() == 64
    several = read(dicom(WindowCenter=["1000.5", "7"], WindowWidth=["2001", "9"]))
    assert np.array_equal(several, scaled(array, 0, 2000))
    exact = read(dicom(WindowCenter="1000", WindowWidth="2000", VOILUTFunction="LINEAR_EXACT"))
    assert np.array_equal(exact, scaled(array, 0, 2000))
    sigmoid = read(dicom(WindowCenter="1000", WindowWidth="2000", VOILUTFunction="SIGMOID"))
    assert np.array_equal(sigmoid, np.rint(255 / (1 + np.exp(-4 * (array - 1000.0) / 2000))).astype(np.uint8))
    negative = read(dicom(RescaleSlope="-1", RescaleIntercept="4095", WindowCenter="2048", WindowWidth="4096"))
    assert np.array_equal(negative, scaled(4095.0 - array, 0, 4095))


def test_dicom_window_agrees_with_pydicom():
    made = pydicom.dcmread(io.BytesIO(dicom(WindowCenter="1800", WindowWidth="900")))
    expected = scaled(pydicom.pixels.apply_voi_lut(made.pixel_array, made), 0, 4095)
    assert np.abs(read(save(made)).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("window", [("", ""), ("100", "0"), ("100", "1"), ("100", "-5")])
def test_an_impossible_dicom_window_counts_as_none(window):
    data = dicom(WindowCenter=window[0], WindowWidth=window[1])
    assert np.array_equal(read(data), scaled(twelve_bit(), 0, 4095))


def lut(entries, first=0, bits=16):
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 2**16, first, bits]
    item.LUTData = list(map(int, entries))
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return [item]


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_dicom_voi_lut_goes_before_the_window(bits):
    top = 2**bits - 1
    entries = np.rint(top * (np.arange(4096) / 4095) ** 0.5)
    data = dicom(VOILUTSequence=lut(entries, bits=bits), WindowCenter="50", WindowWidth="20")
    assert np.array_equal(read(data), scaled(entries[twelve_bit()], 0, top))


def test_dicom_short_luts_hold_their_ends_and_modality_lut_is_applied():
    array = twelve_bit()
    entries = np.arange(1000, dtype=np.uint16) * 4
    expected = scaled(entries[np.clip(array.astype(int) - 500, 0, 999)], 0, 3996)
    data = dicom(VOILUTSequence=lut(entries, first=500, bits=12))
    assert np.array_equal(read(data), expected)
    assert np.array_equal(read(dicom(ModalityLUTSequence=lut(entries, first=500, bits=12))), expected)
    whole = np.arange(65536)[::-1]  # the descriptor holds 0 for 65536 entries
    made = dataset(array * np.uint16(16), VOILUTSequence=lut([0]))
    made.VOILUTSequence[0].LUTDescriptor = [0, 0, 16]
    made.VOILUTSequence[0]["LUTData"] = DataElement("LUTData", "OW", whole.astype("<u2").tobytes())
    assert np.array_equal(read(save(made)), scaled(whole[array * np.uint16(16)], 0, 65535))
    made = dataset(array, BitsStored=12, VOILUTSequence=lut(entries, first=500, bits=12))
    made.VOILUTSequence[0]["LUTData"] = DataElement("LUTData", "OW", entries.astype("<u2").tobytes())
    assert np.array_equal(read(save(made)), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_is_black_and_does_not_stretch_the_range(photometric):
    array = (twelve_bit() % 1000 + 500).astype(np.uint16)
    array[5, :2] = 500, 1499
    padded = array.copy()
    padded[:4] = 65535
    decoded = read(dicom(padded, BitsStored=16, PixelPaddingValue=65535, PhotometricInterpretation=photometric))
    shades = scaled(array, 500, 1499)
    assert (decoded[:4] == 0).all()
    assert np.array_equal(decoded[4:], (255 - shades if photometric == "MONOCHROME1" else shades)[4:])
    padded[:2] = 65000
    tags = {"PixelPaddingValue": 65000, "PixelPaddingRangeLimit": 65535, "PhotometricInterpretation": photometric}
    assert np.array_equal(read(dicom(padded, BitsStored=16, **tags)), decoded)


def test_dicom_colour():
    colour = picture(channels=3)
    assert np.array_equal(read(dicom(colour, BitsStored=8)), colour)
    planar = np.ascontiguousarray(colour.transpose(2, 0, 1))
    made = dataset(colour, PlanarConfiguration=1)
    made.PixelData = planar.tobytes()
    assert np.array_equal(read(save(made)), colour)
    ybr = pydicom.pixels.convert_color_space(colour, "RGB", "YBR_FULL")
    decoded = read(dicom(ybr, BitsStored=8, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(decoded.astype(int) - colour).max() <= 2
    deep = colour.astype(np.uint16) * 257
    assert np.array_equal(read(dicom(deep, BitsStored=16)), colour)


@pytest.mark.parametrize("bits", [8, 16])
def test_dicom_palette(bits):
    index = picture() % 16
    table = np.random.default_rng(8).integers(0, 256, (3, 16))
    made = dataset(index.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for name, shades in zip(("Red", "Green", "Blue"), table, strict=True):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [16, 0, bits])
        body = shades.astype(np.uint8).tobytes() if bits == 8 else (shades * 257).astype("<u2").tobytes()
        setattr(made, f"{name}PaletteColorLookupTableData", body)
    assert np.array_equal(read(save(made)), table.T[index].astype(np.uint8))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_dicom_lossless_compression(syntax):
    assert np.array_equal(read(compressed(syntax)), read(dicom()))


def encapsulated(frame, syntax, shape, **tags):
    made = dataset(np.zeros(shape, np.uint8), syntax, **tags)
    made.PixelData = encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    return save(made)


def test_dicom_jpeg():
    gray = picture(48, 64)
    jpeg = encode(gray, "JPEG", quality=90)
    stored = read(jpeg)
    expected = scaled(stored, stored.min(), stored.max())
    assert (
        np.abs(read(encapsulated(jpeg, JPEGBaseline8Bit, gray.shape)).astype(int) - expected).max() <= 2
    )  # decoders round apart


def test_dicom_colour_jpeg():
    smooth = np.kron(picture(6, 8, 3), np.ones((8, 8, 1), np.uint8))
    jpeg = encode(smooth, "JPEG", quality=95)
    tags = {"PhotometricInterpretation": "YBR_FULL_422"}
    decoded = read(encapsulated(jpeg, JPEGBaseline8Bit, smooth.shape, **tags))
    assert np.abs(decoded.astype(int) - read(jpeg)).mean() < 2


def test_headerless_dicom():
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        made = dataset(twelve_bit(), syntax, BitsStored=12)
        buffer = io.BytesIO()
        implicit = syntax == ImplicitVRLittleEndian
        del made.file_meta, made.preamble
        pydicom.dcmwrite(buffer, made, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert buffer.getvalue()[:2] == b"\x08\x00"
        assert np.array_equal(read(buffer.getvalue()), read(dicom()))


def test_dicom_refusals():
    array = np.stack([twelve_bit()] * 3)
    made = dataset(array[0], BitsStored=12, NumberOfFrames=3)
    made.PixelData = array.tobytes()
    assert reason(save(made)) == "multi-frame DICOM (3 frames); export the frame you want as a single image"
    made = dataset(twelve_bit(), BitsStored=12)
    del made.PixelData
    assert "without pixel data" in reason(save(made))
    assert reason(dicom(np.full((8, 8), 77, np.uint16))) == "constant: every pixel is 77"
    assert "declares no pixels" in reason(dicom(Rows=0))
    assert "declares 60000x60000 pixels" in reason(dicom(Rows=60000, Columns=60000))
    made = dataset(twelve_bit(), BitsStored=12)
    made.PixelData = made.PixelData[: len(made.PixelData) // 2]
    assert "(Explicit VR Little Endian) that can't be decoded: damaged or cut short" in reason(save(made))
    assert "damaged or cut short" in reason(dicom()[:-1000])
    assert "damaged or cut short" in reason(encapsulated(b"\xff\xd8\xff\xe0rubbish!", JPEGBaseline8Bit, (8, 8)))
    assert "transfer syntax that holds no still image" in reason(encapsulated(b"video", MPEG2MPML, (8, 8)))
    assert "deflated" in reason(dicom(syntax=DeflatedExplicitVRLittleEndian))
    assert "photometric interpretation" in reason(dicom(PhotometricInterpretation="ODD"))
    broken = lut(np.arange(4096))
    broken[0].LUTData = []
    assert "look-up table" in reason(dicom(VOILUTSequence=broken))


def test_a_bomb_inside_a_dicom_is_refused():
    jpeg = encode(picture(), "JPEG").replace(struct.pack(">HH", 53, 71), struct.pack(">HH", 60000, 60000))
    assert "declares 60000x60000" in reason(encapsulated(jpeg, JPEGBaseline8Bit, (53, 71)))
    jpeg2000 = bytearray(encode(picture(), "JPEG2000", no_jp2=True))
    jpeg2000[8:16] = struct.pack(">II", 70000, 70000)
    assert "declares 70000x70000" in reason(encapsulated(bytes(jpeg2000), JPEG2000Lossless, (53, 71)))


def test_a_missing_decoder_names_the_syntax_and_the_way_out(monkeypatch):
    from pydicom.pixels.decoders import JPEGExtended12BitDecoder, JPEGLSLosslessDecoder

    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    text = reason(encapsulated(b"\xff\xd8\xff\xf7", JPEGLSLossless, (8, 8)))
    assert "JPEG-LS Lossless" in text
    assert "pip install 'clipcovid[dicom]'" in text
    pillow = {name: run for name, run in JPEGExtended12BitDecoder._available.items() if name == "pillow"}
    monkeypatch.setattr(JPEGExtended12BitDecoder, "_available", pillow)
    frame = encode(picture(8, 8), "JPEG").replace(b"\xff\xc0\x00\x0b\x08", b"\xff\xc1\x00\x0b\x0c")
    text = reason(encapsulated(frame, JPEGExtended12Bit, (8, 8), BitsAllocated=16, BitsStored=12))
    assert "JPEG Extended" in text
    assert "pip install 'clipcovid[dicom]'" in text


def test_no_patient_in_any_reason_warning_or_log(caplog):
    rng = np.random.default_rng(9)
    source = dicom(WindowCenter="1000", WindowWidth="2000", RescaleSlope="1", RescaleIntercept="0")
    name = source.index(PATIENT.encode())
    with warnings.catch_warnings(record=True) as heard, caplog.at_level(0):
        warnings.simplefilter("always")
        for _ in range(300):
            data = bytearray(source)
            places = rng.integers(132, 700, 3)
            for place in places[(places < name) | (places >= name + len(PATIENT))]:
                data[place] = rng.integers(0, 256)
            assert "Doe" not in outcome(bytes(data))
    assert "Doe" not in caplog.text
    assert not [warning for warning in heard if "Doe" in str(warning.message)]


# Masks


@pytest.mark.parametrize("value", [1, 2, 128, 254, 255])
def test_a_mask_of_zero_and_any_value(value):
    expected = ellipse()
    for format in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(read_mask(ellipse(fill=value), format), expected)
    assert np.array_equal(read_mask(np.repeat(ellipse(fill=value)[..., None], 3, axis=2)), expected)


def test_masks_of_other_kinds():
    expected = ellipse()
    on = expected > 0
    assert np.array_equal(read_mask(Image.fromarray(on)), expected)
    assert np.array_equal(read_mask(on.astype(np.uint16) * np.uint16(65535)), expected)
    assert np.array_equal(read_mask(on.astype(np.float32), "TIFF"), expected)
    assert np.array_equal(read_mask(on[..., None] * np.array([200, 0, 90], np.uint8)), expected)
    opaque = Image.fromarray(expected)
    opaque.putalpha(255)
    assert np.array_equal(read_mask(opaque), expected)
    palette = Image.fromarray(on.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    assert np.array_equal(read_mask(palette), expected)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_blank_and_full_masks_are_real(value):
    for dtype in (np.uint8, np.uint16):
        mask = read_mask(np.full((20, 30), value, dtype))
        assert mask.dtype == np.uint8
        assert (mask == (255 if value else 0)).all()
    assert (read_mask(np.full((20, 30), 255 * (value > 0), np.uint8), "JPEG") == (255 if value else 0)).all()


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("box", [(60, 40, 170, 150), (60, 40, 80, 60), (20, 30, 31, 38)])
def test_jpeg_masks_are_thresholded(quality, box):
    mask = ellipse(box=box)
    assert (read_mask(mask, "JPEG", quality=quality) != mask).sum() <= 0.02 * (mask > 0).sum()
    rgb = np.repeat(mask[..., None], 3, axis=2)
    assert (read_mask(rgb, "JPEG", quality=quality) != mask).sum() <= 0.02 * (mask > 0).sum()


def test_soft_and_coloured_jpeg_masks():
    mask = ellipse()
    soft = Image.fromarray(mask).resize((360, 300), Image.Resampling.BILINEAR)
    again = np.asarray(Image.fromarray(read_mask(soft)).resize((240, 200), Image.Resampling.NEAREST))
    assert (again != mask).sum() < 0.03 * (mask > 0).sum()
    red = (mask > 0)[..., None] * np.array([255, 40, 0], np.uint8)
    assert (read_mask(red, "JPEG", quality=95) != mask).sum() < 0.03 * (mask > 0).sum()


def test_what_is_no_mask_is_refused():
    def refused(array, format="PNG"):
        return mask_reason(encode(array, format), array.shape[:2])

    assert refused(picture()).startswith("mask is not binary: ")
    assert refused(picture(), "JPEG").startswith("mask is not binary: ")
    assert refused(picture(channels=3)).startswith("mask is not binary")
    labels = np.zeros((40, 50), np.uint8)
    for first, second in ((1, 2), (1, 255), (128, 255)):
        labels[:5, :9], labels[20:] = first, second
        assert refused(labels) == "mask is not binary: 3 distinct values"
    assert refused(np.where(labels > 0, 90, 200).astype(np.uint8)) == "mask is not binary: 2 distinct values"
    two = np.zeros((40, 50, 3), np.uint8)
    two[:5, :9], two[20:] = (255, 0, 0), (0, 255, 0)
    assert "more than one colour" in refused(two)
    two[:] = (255, 0, 0)
    two[20:] = (0, 255, 0)
    assert refused(two) == "mask is not binary: 2 distinct values"
    down, across = np.mgrid[-100:100, -100:100]
    heat = (255 * np.exp(-(down**2 + across**2) / 200)).astype(np.uint8)
    assert refused(heat).startswith("mask is not binary")
    assert mask_reason(dicom(), (40, 50)) == "mask is a DICOM file; export it as PNG"
    assert mask_reason(b"", (4, 4)) == "empty file (0 bytes)"


def test_a_masks_size_is_free_its_aspect_is_not():
    assert decode_mask(encode(ellipse(100, 120)), (200, 240), max_pixels=LIMIT).shape == (100, 120)
    assert decode_mask(encode(ellipse(100, 121)), (200, 240), max_pixels=LIMIT).shape == (100, 121)
    assert (
        mask_reason(encode(ellipse(200, 300)), (256, 256))
        == "mask's aspect ratio 1.50 differs from the image's 1.00 (300x200 against 256x256)"
    )
    assert "aspect ratio 0.67" in mask_reason(encode(ellipse(300, 200)), (200, 300))


# Fitting


@pytest.mark.parametrize(
    "shape", [(224, 224), (300, 200), (201, 303), (97, 100), (227, 224), (224, 227), (31, 640), (333, 224)]
)
@pytest.mark.parametrize("size", [224, 65])
@pytest.mark.parametrize("channels", [0, 3])
def test_crop_equals_torchvision(shape, size, channels):
    from torchvision import transforms

    array = picture(*shape, channels)
    steps = [
        transforms.Resize(size, transforms.InterpolationMode.BICUBIC, antialias=True),
        transforms.CenterCrop(size),
    ]
    expected = np.asarray(transforms.Compose(steps)(Image.fromarray(array)).convert("RGB"))
    assert np.array_equal(fit_image(array, ImagesConfig(size=size, mode="rgb", fit="crop")), expected)
    if not channels:
        assert np.array_equal(fit_image(array, ImagesConfig(size=size, fit="crop")), expected[..., 0])


def test_squash_and_pad_equal_pillow():
    array = picture(100, 151)
    bicubic = Image.Resampling.BICUBIC
    expected = np.asarray(Image.fromarray(array).resize((64, 64), bicubic))
    assert np.array_equal(fit_image(array, ImagesConfig(size=64)), expected)
    padded = fit_image(array, ImagesConfig(size=64, fit="pad"))
    assert np.array_equal(padded[11:53], np.asarray(Image.fromarray(array).resize((64, 42), bicubic)))
    assert not padded[:11].any()
    assert not padded[53:].any()
    upright = fit_image(np.ascontiguousarray(array.T), ImagesConfig(size=64, fit="pad"))
    assert not upright[:, :11].any()
    assert not upright[:, 53:].any()


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_modes(fit):
    gray, colour = picture(90, 70), picture(90, 70, 3)
    as_gray, as_rgb = (ImagesConfig(size=48, mode=mode, fit=fit) for mode in ("gray", "rgb"))
    equal = np.repeat(gray[..., None], 3, axis=2)
    assert fit_image(colour, as_gray).shape == (48, 48)
    assert fit_image(colour, as_rgb).shape == (48, 48, 3)
    assert np.array_equal(fit_image(equal, as_gray), fit_image(gray, as_gray))
    assert np.array_equal(fit_image(equal, as_rgb), fit_image(gray, as_rgb))
    assert np.array_equal(
        fit_image(colour, as_gray), fit_image(np.asarray(Image.fromarray(colour).convert("L")), as_gray)
    )
    assert all(fit_image(array, config).dtype == np.uint8 for array in (gray, colour) for config in (as_gray, as_rgb))
    assert fit_image(gray, as_gray).flags.writeable
    full = fit_image(picture(48, 48), as_gray)
    assert np.array_equal(full, picture(48, 48))


def test_long_thin_images():
    thin = picture(1, 4000)
    assert fit_image(thin, ImagesConfig(size=32, fit="squash")).shape == (32, 32)
    assert fit_image(thin, ImagesConfig(size=32, fit="pad")).shape == (32, 32)
    with pytest.raises(BadImage, match="too long and thin"):
        fit_image(thin, ImagesConfig(size=32, fit="crop", max_pixels=LIMIT))


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(256, 256), (401, 299), (199, 333), (64, 51)])
@pytest.mark.parametrize("scale", [1, 0.5, 2])
def test_a_fitted_mask_lies_on_its_image(fit, shape, scale):
    def disc(height, width):
        """An ellipse off the centre, drawn in shares of the frame, so that it lies alike at any size."""
        down, across = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        inside = ((down[:, None] - 0.55) / 0.2) ** 2 + ((across - 0.42) / 0.15) ** 2 < 1
        return inside * np.uint8(255)

    config = ImagesConfig(size=112, fit=fit)
    image, mask = disc(*shape), disc(*(round(side * scale) for side in shape))
    fitted, fitted_image = fit_mask(mask, shape, config), fit_image(image, config)
    assert fitted.dtype == np.uint8
    assert fitted.shape == (112, 112)
    assert set(np.unique(fitted)) == {0, 255}
    coarse = 112 / min(mask.shape)  # a coarse mask's edge is as wide as its pixels
    for axis in (0, 1):
        ours, theirs = (np.flatnonzero((array > 127).any(axis=axis)) for array in (fitted, fitted_image))
        assert np.abs(ours[[0, -1]] - theirs[[0, -1]]).max() <= max(1, coarse)
    ours, theirs = (np.argwhere(array > 127).mean(axis=0) for array in (fitted, fitted_image))
    assert np.abs(ours - theirs).max() < 0.5


def test_a_mask_pixel_is_set_where_half_of_it_is_covered():
    mask = np.zeros((64, 64), np.uint8)
    for covered in range(5):
        mask[10 * covered : 10 * covered + 2, 20:22].flat[:covered] = 255
    fitted = fit_mask(mask, (64, 64), ImagesConfig(size=32))
    assert [bool(fitted[5 * covered, 10]) for covered in range(5)] == [False, False, True, True, True]


def test_a_mask_already_of_the_size_is_unchanged():
    mask = ellipse(112, 112, (10, 20, 60, 80))
    for fit in ("squash", "crop", "pad"):
        assert np.array_equal(fit_mask(mask, (112, 112), ImagesConfig(size=112, fit=fit)), mask)
    assert not fit_mask(np.zeros((30, 40), np.uint8), (30, 40), ImagesConfig(size=112)).any()
    full = np.full((30, 40), 255, np.uint8)
    assert fit_mask(full, (30, 40), ImagesConfig(size=112, fit="crop")).all()


# Hashes


def test_pixel_hash_tells_pictures_not_files_apart():
    gray = picture()
    rgb = np.repeat(gray[..., None], 3, axis=2)
    assert pixel_hash(gray) == pixel_hash(rgb) == pixel_hash(np.asfortranarray(gray))
    assert len(pixel_hash(gray)) == 64
    colour = rgb.copy()
    colour[0, 0, 0] ^= 1
    others = [colour, gray.T, gray.reshape(71, 53), gray[:-1], 255 - gray]
    assert len({pixel_hash(other) for other in [gray, *others]}) == 6


def test_no_heavy_import():
    code = "import sys, clipcovid.data.images; print({'torch', 'ray', 'pydicom', 'PIL.ImageShow'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() in ("set()",)
