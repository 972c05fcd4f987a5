"""The boxes of an image."""

import json

import pytest

from clipcovid.config import UserError
from clipcovid.data.boxes import Box, read_boxes


def read(*boxes):
    return read_boxes(json.dumps(boxes), 100, 50, "a.png")


def test_boxes_are_cut_to_the_image():
    assert read_boxes("", 100, 50, "a.png") == []
    assert read({"label": "x", "x": 10.4, "y": 20, "width": 5, "height": "3"}) == [Box("x", 10, 20, 15, 23)]
    assert read({"x": -4, "y": -1, "width": 10, "height": 53}) == [Box("", 0, 0, 6, 50)]  # not from the other end


@pytest.mark.parametrize(
    "text",
    ["{", "3", "[1]", '[{"x": 1}]', '{"x": 1}', '[{"x": 1, "y": 1, "width": 0, "height": 2}]',
     '[{"x": 1, "y": NaN, "width": 3, "height": 2}]', '[{"x": "a", "y": 1, "width": 3, "height": 2}]'],
)  # fmt: skip
def test_what_is_no_list_of_boxes_is_a_sentence(text):
    with pytest.raises(UserError, match=r"The boxes of a\.png are .*where a JSON list"):
        read_boxes(text, 100, 50, "a.png")


@pytest.mark.parametrize("box", [(120, 1, 10, 10), (1, 1, 10, 90), (-20, 1, 30, 10), (101, 1, 2, 2)])
def test_boxes_of_an_image_of_another_size_are_refused(box):
    with pytest.raises(UserError, match=r"A box of a\.png reaches beyond the image of 100x50 pixels"):
        read(dict(zip(("x", "y", "width", "height"), box, strict=True)))
