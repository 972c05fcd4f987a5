"""Images that all methods miss, and the easy and the hard ones."""

import numpy as np
import pandas as pd
import pytest

from clipcovid.evaluate.hits import Hits, find_hard_images

IMAGES = pd.DataFrame(
    {"image_id": list("abcdef"), "label": ["x", "x", "y", "y", "y", "x"], "patient_id": ["p", "", "q", "q", "r", "s"]}
)
RIGHT = np.array([[1, 0, 1, 0, 1, 0], [1, 0, 0, 0, 1, 1], [1, 0, 1, 0, 0, 1]], bool)


def described(at, image_ids):
    return [f"{at}{image_id}" for image_id in image_ids]


def test_what_all_miss_is_listed_with_what_each_says():
    hard = find_hard_images(Hits("it is right", RIGHT), ["cnn", "probe", "clip"], IMAGES, described)
    assert [(image.image_id, image.label, image.patient_id) for image in hard.missed] == [
        ("b", "x", ""),
        ("d", "y", "q"),
    ]
    assert hard.missed[1].predictions == {"cnn": "0d", "probe": "1d", "clip": "2d"}
    assert hard.counts == [2, 0, 3, 1]
    assert sum(hard.counts) == len(IMAGES)
    assert hard.labels == {
        "x": {"images": 3, "missed_by_all": 1, "right_in_all": 1},
        "y": {"images": 3, "missed_by_all": 1, "right_in_all": 0},
    }
    assert hard.expected_missed == pytest.approx(6 * 0.5**2 * 0.5)


def test_nothing_missed_and_no_labels_are_no_failure():
    right = np.ones((1, 6), bool)
    hard = find_hard_images(Hits("it is right", right), ["cnn"], IMAGES.assign(label=""), described)
    assert (hard.missed, hard.counts, hard.labels, hard.expected_missed) == ([], [0, 6], {}, 0)
