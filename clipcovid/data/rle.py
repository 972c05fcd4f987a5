"""Masks as text: COCO run-length encodings, as predictions tables hold them."""

import json

import numpy as np
from pycocotools import mask as coco


def encode_rle(mask: np.ndarray) -> str:
    """A mask (h, w), foreground where not 0, as the JSON of a COCO run-length encoding: `size` and `counts`."""
    encoded = coco.encode(np.asfortranarray(mask > 0).astype(np.uint8))
    return json.dumps({"size": list(mask.shape), "counts": encoded["counts"].decode()})


def decode_rle(text: str) -> np.ndarray:
    """The mask of `encode_rle`: bool (h, w)."""
    return coco.decode(json.loads(text)).astype(bool)
