"""Which images the methods have right: what all of them miss, and how many are easy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

COLUMNS = ("image_id", "label", "patient_id")  # of an image


@dataclass(frozen=True)
class Hits:
    """Which images each of k tables has right."""

    criterion: str
    """What counts as right, in a sentence: "the label is the most probable class"."""
    correct: np.ndarray
    """(k, images) bool, images in the order of the tables."""


@dataclass(frozen=True, kw_only=True)
class MissedImage:
    """An image that no run has right."""

    image_id: str
    label: str
    patient_id: str
    predictions: dict[str, str]
    """Run → what it says."""


@dataclass(frozen=True, kw_only=True)
class HardImages:
    """How many methods have an image right, and the images that none has."""

    criterion: str
    runs: list[str]
    """The runs that were asked; those of several seeds stand on their own."""
    counts: list[int]
    """How many images 0, 1, … all of the runs have right."""
    expected_missed: float
    """How many images all runs would miss were their errors independent of each other."""
    labels: dict[str, dict[str, int]]
    """Label → `images`, and how many of them are `missed_by_all` and `right_in_all`; {} without labels."""
    missed: list[MissedImage]
    """The images that all miss."""


def find_hard_images(
    hits: Hits,
    names: Sequence[str],
    images: pd.DataFrame,
    describe: Callable[[int, Sequence[str]], list[str]],
) -> HardImages:
    """`HardImages` of the runs `names`, in the order of `hits`; `images`: image_id, label and patient_id of each image.

    `describe` says what a run (its index) predicts for some images, by their ids.
    """
    times_right = hits.correct.sum(axis=0)
    missed = images[times_right == 0]
    image_ids = missed["image_id"].tolist()
    texts = [describe(at, image_ids) for at in range(len(names))] if image_ids else []
    rows = [
        MissedImage(
            image_id=image_id,
            label=label,
            patient_id=patient,
            predictions={name: of_run[at] for name, of_run in zip(names, texts, strict=True)},
        )
        for at, (image_id, label, patient) in enumerate(zip(*(missed[name] for name in COLUMNS), strict=True))
    ]
    return HardImages(
        criterion=hits.criterion,
        runs=list(names),
        counts=np.bincount(times_right, minlength=len(names) + 1).tolist(),
        expected_missed=float(len(images) * np.prod(1 - hits.correct.mean(axis=1))),
        labels=_by_label(images["label"], times_right, len(names)),
        missed=rows,
    )


def _by_label(labels: pd.Series, times_right: np.ndarray, runs: int) -> dict[str, dict[str, int]]:
    found = {}
    for label in sorted(set(labels) - {""}):
        times = times_right[(labels == label).to_numpy()]
        missed, right = int((times == 0).sum()), int((times == runs).sum())
        found[str(label)] = {"images": len(times), "missed_by_all": missed, "right_in_all": right}
    return found
