"""What a search for near duplicates finds of changes that are planted on purpose: its recall on the set's own images."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from clipcovid.audit.fingerprints import make_thumbnails
from clipcovid.audit.near_duplicates import ReadPixels, keep_duplicates, propose_pairs

PLANTED_IMAGES = 100  # that are changed in each way
JPEG_QUALITY = 50
GAMMA = 1.5
ANGLE = 2.0  # degrees
CROP = 0.05  # share of width and height that is cut off


def _jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(file))


def _crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    (height, width), (top, left) = image.shape, rng.random(2) * CROP
    box = (left * width, top * height, (left + 1 - CROP) * width, (top + 1 - CROP) * height)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=box))


def _halve(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    small = Image.fromarray(image).reduce(2)
    return np.asarray(small.resize(image.shape[::-1], Image.Resampling.BILINEAR))


def _rotate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(image).rotate(rng.choice([-ANGLE, ANGLE]), Image.Resampling.BILINEAR))


def _gamma(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    exponent = rng.choice([1 / GAMMA, GAMMA])
    return np.rint(255 * (image / 255) ** exponent).astype(np.uint8)


CHANGES: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    f"JPEG, quality {JPEG_QUALITY}": _jpeg,
    f"{CROP:.0%} cropped": _crop,
    "mirrored": lambda image, rng: image[:, ::-1],
    f"gamma {GAMMA} or its inverse": _gamma,
    "inverted": lambda image, rng: ~image,
    "half the size": _halve,
    f"rotated by {ANGLE:g}°": _rotate,
}
"""What is done to an image, uint8 (h, w), which keeps its size."""


@dataclass(frozen=True)
class Recall:
    """How many of the planted copies were found."""

    found: int
    planted: int


def measure_recall(
    thumbnails: np.ndarray, read_pixels: ReadPixels, *, seed: int, floors: Mapping[str, float] | None = None
) -> dict[str, Recall]:
    """The recall of each of `CHANGES`, planted on a sample of the images; arguments as of `propose_pairs`.

    A copy is found if the search proposes it with its original, among all images, and their pixels agree. Embeddings are
    left out: copies would have to be encoded.
    """
    rng, count = np.random.default_rng(seed), len(thumbnails)
    originals = np.sort(rng.choice(count, min(PLANTED_IMAGES, count), replace=False))
    sources = list(read_pixels(originals))
    copies = [np.ascontiguousarray(change(image, rng)) for change in CHANGES.values() for image in sources]
    every = np.concatenate([thumbnails, *(make_thumbnails(copy[None]) for copy in copies)])

    def read(positions: np.ndarray) -> list[np.ndarray]:
        own = iter(read_pixels(positions[positions < count]))
        return [copies[at - count] if at >= count else next(own) for at in positions]

    planted = pd.DataFrame({"first": np.tile(originals, len(CHANGES)), "second": np.arange(count, len(every))})
    groups = planted["second"].to_numpy().reshape(len(CHANGES), len(originals))  # an original has a copy in each
    searches = [(groups.ravel(), np.arange(count)), *((originals, group) for group in groups)]
    proposed, _ = propose_pairs(every, searches, floors=floors)
    found = keep_duplicates(proposed.merge(planted), every, read)
    hits = planted["second"].isin(found["second"]).to_numpy().reshape(len(CHANGES), len(originals)).sum(axis=1)
    return {name: Recall(int(hit), len(originals)) for name, hit in zip(CHANGES, hits, strict=True)}
