"""The boxes of an image, as the manifest's column `boxes` has them: JSON text."""

import json
import math
from typing import NamedTuple

from clipcovid.config import UserError

MARGIN = 0.05


class Box(NamedTuple):
    """A finding's place, in whole pixels of the image's file: from `left` and `top` to before `right` and `bottom`."""

    label: str
    left: int
    top: int
    right: int
    bottom: int


def read_boxes(text: str, width: int, height: int, image_id: str) -> list[Box]:
    """The boxes in JSON text, `[{label, x, y, width, height}, …]`, cut to the image; "" is none.

    Other text, sides that are not above 0, and boxes that reach beyond the image by more than `MARGIN` of its side, as
    those of an image of another size do, are a `UserError`.
    """
    boxes = []
    try:
        for box in json.loads(text or "[]"):
            x, y, wide, high = (float(box[key]) for key in ("x", "y", "width", "height"))
            if not (wide > 0 and high > 0 and all(map(math.isfinite, (x, y, wide, high)))):
                raise ValueError
            label = str(box.get("label", ""))
            boxes.append(Box(label, round(x), round(y), round(x + wide), round(y + high)))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"The boxes of {image_id} are {text[:80]!r}, where a JSON list of {{label, x, y, width, height}} was expected."
        ) from None
    for box in boxes:
        beyond = max(-box.left, box.right - width) / width, max(-box.top, box.bottom - height) / height
        if max(beyond) > MARGIN or box.left >= width or box.top >= height:
            raise UserError(
                f"A box of {image_id} reaches beyond the image of {width}x{height} pixels ({box.left}, {box.top} to "
                f"{box.right}, {box.bottom}): boxes are in pixels of the image's file."
            )
    return [
        Box(label, max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        for label, left, top, right, bottom in boxes
    ]
