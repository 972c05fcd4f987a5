"""Decoding, refusing and fitting of image files, on images made here."""

import io
import pickle
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from image_files import (
    LIMIT,
    compressed,
    dicom,
    ellipse,
    encode,
    outcome,
    picture,
    png,
    read,
    reason,
)
from PIL import Image, ImageFile, TiffImagePlugin
from pydicom.uid import (
    ImplicitVRLittleEndian,
    RLELossless,
)

from clipcovid.config import ImagesConfig
from clipcovid.data import images
from clipcovid.data.images import BadImage, decode_pixels, fit_image, fit_mask, pixel_hash

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
        assert np.array_equal(decode_pixels(encode(array), max_pixels=1200), array)
    assert "more than --max-pixels 1199" in reason(encode(array), max_pixels=1199)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_bad_image_pickles():
    assert str(pickle.loads(pickle.dumps(BadImage("why")))) == "why"


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
