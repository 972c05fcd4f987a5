"""The shortcut probes: what a small model is shown, and what it should not tell from it."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd

from clipcovid.audit.associations import category_codes
from clipcovid.audit.data import PreparedSet
from clipcovid.audit.fingerprints import THUMBNAIL_SIDE

BORDER = 4  # pixels of a thumbnail of 64, on each side
CORNER = 12  # pixels of a thumbnail of 64, the side of a corner's square
CENTRE = 0.8  # of the image's sides: the square that is blacked out
SMALL_SIDE = 32  # pixels of the side of the images that are looked at whole
Target = Literal["class", "source"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """What a small model is shown, and what it should tell from it."""

    target: Target
    name: str
    """`class from borders`, by which the finding is known."""
    shown: str
    """What the model sees, as it stands in a sentence."""
    features: Callable[[PreparedSet, np.ndarray], np.ndarray]
    """float (m, d) of the images at these positions, (m,) int64."""
    advice: str
    """"" for a probe that is there to be compared with."""
    model: Literal["linear", "forest"] = "linear"
    needs_masks: bool = False
    """Whether it looks at images with a lung mask alone."""


def flatten_pixels(images: np.ndarray) -> np.ndarray:
    """float32 (n, d) of thumbnails uint8 (n, h, w)."""
    return images.reshape(len(images), -1).astype(np.float32)


def small_images(images: np.ndarray) -> np.ndarray:
    """float32 (n, 32, 32): block means of thumbnails (n, 64, 64)."""
    step = THUMBNAIL_SIDE // SMALL_SIDE
    return images.reshape(len(images), SMALL_SIDE, step, SMALL_SIDE, step).mean(axis=(2, 4), dtype=np.float32)


def border_mask(width: int, size: int = THUMBNAIL_SIDE) -> np.ndarray:
    """bool (size, size): True in a rim of `width` pixels."""
    mask = np.ones((size, size), bool)
    mask[width : size - width, width : size - width] = False
    return mask


def corner_mask(side: int, size: int = THUMBNAIL_SIDE) -> np.ndarray:
    """bool (size, size): True in the four corner squares of `side` pixels."""
    edge = np.zeros(size, bool)
    edge[:side] = edge[size - side :] = True
    return edge[:, None] & edge[None, :]


def histogram_features(prepared: PreparedSet, rows: np.ndarray) -> np.ndarray:
    """Square roots of the shares of grey values, (n, 64): their distances are Hellinger's."""
    return np.sqrt(prepared.histograms[rows])


def border_features(prepared: PreparedSet, rows: np.ndarray) -> np.ndarray:
    """The pixels of the rim."""
    return prepared.thumbnails[rows][:, border_mask(BORDER)].astype(np.float32)


def corner_features(prepared: PreparedSet, rows: np.ndarray) -> np.ndarray:
    """The pixels of the corners."""
    return prepared.thumbnails[rows][:, corner_mask(CORNER)].astype(np.float32)


def outside_centre_features(prepared: PreparedSet, rows: np.ndarray) -> np.ndarray:
    """The pixels outside of the centre."""
    outside = border_mask(round(THUMBNAIL_SIDE * (1 - CENTRE) / 2))
    return prepared.thumbnails[rows][:, outside].astype(np.float32)


def image_features(prepared: PreparedSet, rows: np.ndarray) -> np.ndarray:
    """The image at 32 pixels."""
    return flatten_pixels(small_images(prepared.thumbnails[rows]))


def without_lungs_features(prepared: PreparedSet, rows: np.ndarray) -> np.ndarray:
    """The image at 32 pixels, its lungs black."""
    return _masked(prepared, rows, keep_lungs=False)


def lung_features(prepared: PreparedSet, rows: np.ndarray) -> np.ndarray:
    """The image at 32 pixels, black but for its lungs."""
    return _masked(prepared, rows, keep_lungs=True)


def _masked(prepared: PreparedSet, rows: np.ndarray, *, keep_lungs: bool) -> np.ndarray:
    lungs = prepared.lung_masks[rows]
    return flatten_pixels(small_images(np.where(lungs == keep_lungs, prepared.thumbnails[rows], 0)))


def file_features(prepared: PreparedSet, rows: np.ndarray) -> np.ndarray:
    """Width, height, aspect, depth, bytes, compression, format and channels of the files; the means of the four borders.

    What only a file's header says is left out where the headers of some files can't be read, for what is missing would tell.
    """
    files, edges = prepared.files, prepared.thumbnails[rows].astype(np.float32)
    borders = np.stack([edges[:, 0], edges[:, -1], edges[:, :, 0], edges[:, :, -1]], axis=1)
    columns = [files["width"], files["height"], files["aspect"]]
    if files["format"].notna().all():
        columns += [files["bits"], files["bytes"], files["compression"]]
        columns += [pd.Series(category_codes(files[name])) for name in ("format", "channels")]
    facts = np.stack([column.to_numpy(np.float64)[rows] for column in columns], axis=1)
    return np.hstack([facts, borders.mean(axis=2), borders.std(axis=2)])


SHORTCUT_ADVICE = (
    "A model can take this shortcut in place of the lungs. Compare models on images with the lungs blacked out (clipcovid "
    "apply-masks --keep lungs-black): what they still tell there they did not learn from the lungs; "
)
PROBES = (
    Probe(
        target="class",
        name="class from file properties",
        shown="the files' size, shape, depth, format and border colour",
        features=file_features,
        model="forest",
        advice="Bring the files of all classes to one size, shape and format from their originals; what the packed images "
        "still show of it (stretched chests, blur, blocks of JPEG) stays a shortcut.",
    ),
    Probe(
        target="class",
        name="class from the histogram",
        shown="how much there is of each grey value",
        features=histogram_features,
        advice="Exposure or a window differs between the classes: train with --augment.intensity, or equalise the images "
        "before they are prepared, and test on images of another source.",
    ),
    Probe(
        target="class",
        name="class from borders",
        shown="the outermost 6 % of the image",
        features=border_features,
        advice=SHORTCUT_ADVICE + "crop the borders before the set is prepared.",
    ),
    Probe(
        target="class",
        name="class from corners",
        shown="the four corners",
        features=corner_features,
        advice=SHORTCUT_ADVICE
        + "look for burnt-in letters and markers in the corners, and black them out in all classes.",
    ),
    Probe(
        target="class",
        name="class from the image with its centre blacked out",
        shown="the image with its centre (80 % of each side) blacked out",
        features=outside_centre_features,
        advice=SHORTCUT_ADVICE + "crop to the lungs (--keep crop) and audit the set again.",
    ),
    Probe(
        target="class",
        name="class from the image with its lungs blacked out",
        shown="the image with its lungs blacked out",
        features=without_lungs_features,
        needs_masks=True,
        advice=SHORTCUT_ADVICE + "the outline of the masks stays visible and may tell, too.",
    ),
    Probe(
        target="class", name="class from the whole image", shown="the whole image", features=image_features, advice=""
    ),
    Probe(
        target="source",
        name="source from the image",
        shown="the whole image",
        features=image_features,
        advice="Score each source apart (leave one out), and keep the shares of the classes equal in all of them.",
    ),
    Probe(
        target="source",
        name="source from the lungs",
        shown="the lungs alone",
        features=lung_features,
        needs_masks=True,
        advice="Cutting out the lungs does not hide the source: keep the shares of the classes equal in all sources.",
    ),
)
