"""Masks: what is foreground in a file, and what is refused."""

import io

import numpy as np
import pytest
from image_files import (
    LIMIT,
    dicom,
    ellipse,
    encode,
    picture,
)
from PIL import Image

from clipcovid.config import ImagesConfig, UserError
from clipcovid.data.images import BadImage, decode_image
from clipcovid.data.masks import decode_mask


def mask_reason(data, shape, **options):
    with pytest.raises(BadImage) as caught:
        decode_mask(data, shape, **{"max_pixels": LIMIT} | options)
    return str(caught.value)


def assume(array, format="PNG", chosen=(), **options):
    """The mask in an array's file, and what was assumed in reading it."""
    notes = []
    data = encode(array, format, **options)
    return decode_mask(data, array.shape[:2], max_pixels=LIMIT, mask_value=chosen, notes=notes), notes


def choose(array, *values, **options):
    return assume(array, chosen=values, **options)


def read_mask(array, format="PNG", **options):
    data = encode(array, format, **options)
    image = Image.open(io.BytesIO(data))
    return decode_mask(data, (image.height, image.width), max_pixels=LIMIT)


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
    two = np.zeros((40, 50, 3), np.uint8)
    two[:5, :9], two[20:] = (255, 0, 0), (0, 255, 0)
    colours = "0x000000 (48%), 0x00ff00 (50%), 0xff0000 (2%)"
    assert refused(two) == f"mask is not binary: {colours}; --mask-value says which values are foreground"
    two[two.max(axis=2) == 0] = 255
    assert refused(two).startswith("mask is not binary: 0x00ff00 (50%), 0xff0000 (2%), 0xffffff (48%)")
    down, across = np.mgrid[-100:100, -100:100]
    heat = (255 * np.exp(-(down**2 + across**2) / 200)).astype(np.uint8)
    assert refused(heat).startswith("mask is not binary")
    assert mask_reason(dicom(), (40, 50)) == "mask is a DICOM file; export it as PNG"
    assert mask_reason(b"", (4, 4)) == "empty file (0 bytes)"
    assert "more than --max-pixels 1199" in mask_reason(encode(ellipse(30, 40)), (30, 40), max_pixels=1199)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (1, 255), (127, 255)])
def test_masks_of_several_values_are_refused_with_the_values_and_the_way_out(first, second):
    labels = np.zeros((40, 50), np.uint8)
    labels[:5, :9], labels[20:] = first, second
    listed = f"0 (48%), {first} (2%), {second} (50%)"
    for array in (labels, np.repeat(labels[..., None], 3, axis=2)):
        text = mask_reason(encode(array), array.shape[:2])
        assert text == f"mask is not binary: {listed}; --mask-value says which values are foreground"
        for chosen in ((first,), (second,), (first, second)):
            found, _ = choose(array, *map(str, chosen))
            assert np.array_equal(found, np.isin(labels, chosen) * np.uint8(255))


def test_chosen_values_may_be_colours_and_are_found_in_jpegs():
    labels = np.zeros((64, 64, 3), np.uint8)
    labels[8:24, 8:24], labels[40:56, 8:40] = (255, 0, 0), (0, 0, 255)
    found, notes = choose(labels, "0xff0000")
    assert np.array_equal(found > 0, labels[..., 0] > 0)
    assert np.array_equal(choose(labels, "0xff0000", "0x0000FF")[0] > 0, labels.any(axis=2))
    assert np.array_equal(choose(ellipse(), "0xffffff")[0], ellipse())
    assert notes == []
    steps = np.kron(np.array([[0, 127], [255, 0]], np.uint8), np.ones((32, 32), np.uint8))
    found, _ = choose(steps, "255", format="JPEG", quality=90)
    assert (found != np.where(steps == 255, 255, 0)).mean() < 0.01


def test_a_mask_without_the_chosen_values_is_empty_and_says_so():
    found, notes = choose(ellipse(fill=127), "255", "254")
    assert not found.any()
    assert notes == ["mask without any value of --mask-value 255 254: all of it read as background"]
    assert choose(np.zeros((20, 30), np.uint8), "255")[1] == []


@pytest.mark.parametrize("value", ["white", "-1", "0x12", "1.5", ""])
def test_what_is_no_value_is_refused(value):
    with pytest.raises(UserError, match="neither a whole number nor a colour"):
        ImagesConfig(mask_value=(value,))
    assert ImagesConfig(mask_value=["1", 0]).mask_value == ("1", "0")


@pytest.mark.parametrize(
    ("ground", "on"), [(1, 254), (1, 2), (2, 1), (255, 1), (90, 200), (200, 90), (7, 130), (250, 3)]
)
def test_of_two_values_the_one_that_fills_the_border_is_the_background(ground, on):
    expected = ellipse()
    for dtype in (np.uint8, np.uint16):
        found, notes = assume(np.where(expected > 0, on, ground).astype(dtype))
        assert np.array_equal(found, expected)
        assert len(notes) == 1
        assert f"{on} read as foreground" in notes[0]
    colours = np.where(expected[..., None] > 0, (on, 0, 9), (ground, ground, ground)).astype(np.uint8)
    found, notes = assume(colours)
    assert np.array_equal(found, expected)
    assert f"0x{on:02x}0009 read as foreground" in notes[0]


def test_red_on_white_is_read():
    expected = ellipse()
    found, notes = assume(np.where(expected[..., None] > 0, (255, 0, 0), (255, 255, 255)).astype(np.uint8))
    assert np.array_equal(found, expected)
    assert notes == [
        "mask of the values 0xff0000 and 0xffffff: 0xff0000 read as foreground, for 0xffffff fills the border and most of "
        "the mask"
    ]


def test_two_values_that_leave_the_background_open_are_refused():
    halves = np.full((40, 50), 90, np.uint8)
    halves[20:] = 200
    way_out = "; --mask-value says which values are foreground"
    assert mask_reason(encode(halves), (40, 50)) == f"mask is not binary: 90 (50%), 200 (50%){way_out}"
    framed = np.where(ellipse(200, 240, (5, 5, 235, 195)) > 0, 2, 1).astype(np.uint8)  # most of it is not on the border
    assert mask_reason(encode(framed), (200, 240)).endswith(way_out)
    halves[:20], halves[20:] = 2, 254
    assert assume(halves)[1] == ["mask of the values 2 and 254: 254 read as foreground"]
    two = np.zeros((40, 50, 3), np.uint8)
    two[:20], two[20:] = (255, 0, 0), (0, 255, 0)
    assert mask_reason(encode(two), (40, 50)).startswith("mask is not binary: 0x00ff00 (50%), 0xff0000 (50%)")


def test_what_black_and_white_masks_may_mean_is_said():
    assert assume(ellipse())[1] == []
    assert assume(np.zeros((20, 30), np.uint8))[1] == []
    assert assume(np.full((20, 30), 1, np.uint8))[1] == ["mask of one value, 1: all of it read as foreground"]
    found, notes = assume(255 - ellipse())
    assert np.array_equal(found, 255 - ellipse())
    assert notes == ["mask whose foreground fills its border and most of it: inverted? (then give --mask-value 0)"]
    assert np.array_equal(choose(255 - ellipse(), "0")[0], ellipse())


# Transparency


def drawn(mode, ink, ground=None, alpha=None):
    """An ellipse of `ink` on `ground` (default: ink) as an image of `mode`, with the alpha channel or that of the ellipse."""
    on = ellipse() > 0
    bands = [np.where(on, a, b).astype(np.uint8) for a, b in zip(ink, ground or ink, strict=True)]
    return Image.merge(mode, [Image.fromarray(band) for band in [*bands, ellipse() if alpha is None else alpha]])


@pytest.mark.parametrize("ink", [0, 1, 128, 255])
def test_where_the_colour_is_one_the_alpha_channel_is_the_mask(ink):
    for ground in (None, (255,), (0,)):  # what is transparent may have any colour
        assert np.array_equal(read_mask(drawn("LA", (ink,), ground)), ellipse())
    for colour in ((ink, ink, ink), (200, 30, ink)):
        assert np.array_equal(read_mask(drawn("RGBA", colour)), ellipse())
        assert np.array_equal(read_mask(drawn("RGBA", colour, (255, 255, 255))), ellipse())
    assert np.array_equal(read_mask(drawn("LA", (ink,), alpha=ellipse(fill=90))), ellipse())


def test_a_palettes_transparent_entry_is_background():
    palette = Image.fromarray((ellipse() > 0).astype(np.uint8)).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    assert np.array_equal(read_mask(palette, transparency=0), ellipse())


def test_soft_black_strokes_on_transparent_ground():
    expected = ellipse()
    soft = drawn("LA", (0,)).resize((360, 300), Image.Resampling.BILINEAR)
    again = np.asarray(Image.fromarray(read_mask(soft)).resize((240, 200), Image.Resampling.NEAREST))
    assert (again != expected).sum() < 0.03 * (expected > 0).sum()


@pytest.mark.parametrize("alpha", [255, 77])
def test_an_alpha_channel_of_one_value_says_nothing(alpha):
    same = np.full((200, 240), alpha, np.uint8)
    assert np.array_equal(read_mask(drawn("LA", (255,), (0,), same)), ellipse())
    assert np.array_equal(read_mask(drawn("RGBA", (255, 0, 0), (0, 0, 0), same)), ellipse())
    assert not read_mask(drawn("LA", (0,), alpha=same)).any()
    assert read_mask(drawn("LA", (255,), alpha=same)).all()


def test_transparency_that_leaves_the_background_open_is_refused():
    nothing = np.zeros((200, 240), np.uint8)
    assert not read_mask(drawn("LA", (255,), alpha=nothing)).any()  # nothing was drawn
    text = mask_reason(encode(drawn("LA", (255,), (0,), nothing)), (200, 240))
    assert text == "mask is transparent all over; save it without an alpha channel"
    framed = np.full((200, 240), 255, np.uint8)
    framed[:20] = 0
    text = mask_reason(encode(drawn("RGBA", (255, 255, 255), (0, 0, 0), framed)), (200, 240))
    assert text == "mask has black, another colour and transparency: its background is unclear; save it without alpha"


# EXIF


def turned(array, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(array, exif=exif)


def test_a_mask_that_exif_turns_with_its_image_lies_on_it():
    shape = np.zeros((60, 60), np.uint8)
    shape[:20, :50] = 255
    for orientation in range(1, 9):
        image = decode_image(turned(shape, orientation), max_pixels=LIMIT)
        assert image.orientation == orientation
        mask = decode_mask(turned(shape, orientation), (60, 60), max_pixels=LIMIT, orientation=image.orientation)
        assert np.array_equal(mask, image.pixels)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_mask_that_may_or_may_not_be_turned_is_refused(orientation):
    square, wide = ellipse(60, 60, (5, 5, 30, 50)), ellipse(60, 90, (5, 5, 30, 50))
    for data, image, mask in ((encode(square), orientation, 1), (turned(square, orientation), 1, orientation)):
        text = mask_reason(data, (60, 60), orientation=image)
        assert text == (
            f"mask and image are turned differently by EXIF (orientation {mask} and {image}), and either way the mask fits: "
            "save both upright, without the tag"
        )
    if orientation <= 4:  # which keeps the shape
        assert "turned differently" in mask_reason(encode(wide), (60, 90), orientation=orientation)
    else:  # the shape tells
        assert np.array_equal(decode_mask(encode(wide), (60, 90), max_pixels=LIMIT, orientation=orientation), wide)
        text = mask_reason(encode(np.ascontiguousarray(wide.T)), (60, 90), orientation=orientation)
        assert text.startswith("mask lies as its image is stored, before EXIF turns it")


def test_a_masks_size_is_free_its_aspect_is_not():
    assert decode_mask(encode(ellipse(100, 120)), (200, 240), max_pixels=LIMIT).shape == (100, 120)
    assert decode_mask(encode(ellipse(100, 121)), (200, 240), max_pixels=LIMIT).shape == (100, 121)
    assert (
        mask_reason(encode(ellipse(200, 300)), (256, 256))
        == "mask's aspect ratio 1.50 differs from the image's 1.00 (300x200 against 256x256)"
    )
    assert "aspect ratio 0.67" in mask_reason(encode(ellipse(300, 200)), (200, 300))
