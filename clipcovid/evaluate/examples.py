"""Which images show what methods do well and what they do badly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from clipcovid.evaluate.metrics import encode_labels
from clipcovid.evaluate.number_format import format_short
from clipcovid.evaluate.probabilities import class_probabilities

IMAGES_IN_GROUP = 8
HITS_PER_CLASS = 4  # at least one


@dataclass(frozen=True, kw_only=True)
class ExampleImage:
    """One image, and what is said of it."""

    image_id: str
    caption: str
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    """`lung_mask` or `infection_mask` → the predicted mask, bool (h, w), of any size."""


@dataclass(frozen=True, kw_only=True)
class ExampleGroup:
    """Images that have something in common."""

    title: str
    images: tuple[ExampleImage, ...]
    """None where the title says that there are none."""


def classification_examples(tables: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> list[ExampleGroup]:
    """Hits and misses of the first method, and what all methods miss. `tables`: method → predictions, in the same order."""
    names, first = list(tables), next(iter(tables.values()))
    truth = encode_labels(first["label"].tolist(), classes)
    probabilities = np.stack([class_probabilities(table, classes) for table in tables.values()])
    predicted = probabilities.argmax(axis=2)
    right, sure = predicted == truth, probabilities.max(axis=2)
    image_ids = first["image_id"].tolist()

    def group(title: str, rows: Sequence[int] | np.ndarray) -> ExampleGroup:
        captions = [
            f"{classes[truth[row]]}, called {classes[predicted[0, row]]} ({format_short(sure[0, row], 2)})"
            if not right[0, row]
            else f"{classes[truth[row]]} ({format_short(sure[0, row], 2)})"
            for row in rows
        ]
        images = tuple(
            ExampleImage(image_id=image_ids[row], caption=caption) for row, caption in zip(rows, captions, strict=True)
        )
        return ExampleGroup(title=title, images=images)

    groups = []
    missed = np.flatnonzero(~right.any(axis=0))
    if len(names) > 1:
        true_probability = probabilities[:, missed, truth[missed]].mean(axis=0)
        title = f"{len(missed):,} of {len(truth):,} images are missed by all {len(names)} methods"
        groups.append(group(title, missed[np.argsort(true_probability, kind="stable")][:IMAGES_IN_GROUP]))
    wrong = np.flatnonzero(~right[0])
    title = f"{names[0]} misses {len(wrong):,} of {len(truth):,}: those that it is most sure of"
    groups.append(group(title, wrong[np.argsort(-sure[0, wrong], kind="stable")][:IMAGES_IN_GROUP]))
    per_class = max(1, min(HITS_PER_CLASS, 12 // len(classes)))
    hits = [np.flatnonzero(right[0] & (truth == at)) for at in range(len(classes))]
    picked = [row for rows in hits for row in rows[np.argsort(-sure[0, rows], kind="stable")][:per_class]]
    groups.append(
        group(f"{names[0]} hits {int(right[0].sum()):,}: those of each class that it is most sure of", picked)
    )
    return groups
