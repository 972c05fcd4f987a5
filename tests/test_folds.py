import dataclasses

import pandas as pd
import pytest

from clipcovid.config import UserError
from clipcovid.data.folds import apply_fold, parse_fold
from clipcovid.data.manifest import Manifest, normalize_columns
from clipcovid.data.splits import count_duplicates, count_leaking_patients

CLASSES = ("a", "b", "c")


def manifest(patients=60, images=3, unlabelled=4):
    rows = [
        {
            "image_id": f"{patient}-{image}",
            "label": CLASSES[patient % 3],
            "patient_id": f"p{patient}" if patient % 5 else "",
            "split": "train",
        }
        for patient in range(patients)
        for image in range(1 + patient % images)
    ]
    rows += [{"image_id": f"none-{number}", "split": "test"} for number in range(unlabelled)]
    return Manifest(table=normalize_columns(pd.DataFrame(rows)), classes=CLASSES, dataset="made up")


def test_each_labelled_image_is_tested_once():
    tested = [apply_fold(manifest(), f"{number}/5", 0).rows("test")["image_id"] for number in range(1, 6)]
    whole = manifest().table
    assert sorted(pd.concat(tested)) == sorted(whole.loc[whole["label"] != "", "image_id"])


@pytest.mark.parametrize("number", [1, 4])
def test_no_patient_is_in_two_splits_and_classes_have_their_shares(number):
    table = apply_fold(manifest(), f"{number}/4", 1).table
    assert count_leaking_patients(table) == 0
    shares = table.groupby("split")["label"].value_counts(normalize=True).unstack()
    assert (shares - table["label"].value_counts(normalize=True)).abs().max().max() < 0.15
    assert set(table["split"]) == {"train", "val", "test"}


def test_equal_pixels_are_in_one_fold():
    one = manifest()
    table = one.table.assign(sha256=[str(row // 2) for row in range(len(one.table))])
    for number in range(1, 4):
        divided = apply_fold(dataclasses.replace(one, table=table), f"{number}/3", 0).table
        assert count_duplicates(divided)["across"] == 0
        assert count_duplicates(divided)["within"] > 50


def test_folds_follow_from_the_seed_and_have_hashes_of_their_own():
    hashes = {apply_fold(manifest(), f"{number}/5", 0).split_hash for number in range(1, 6)}
    assert len(hashes) == 5
    assert apply_fold(manifest(), "2/5", 0).split_hash in hashes
    assert apply_fold(manifest(), "2/5", 7).split_hash not in hashes


def test_too_few_patients_are_refused():
    with pytest.raises(UserError, match="9 folds need 9 patients of each class; made up has 4"):
        apply_fold(manifest(patients=12), "1/9", 0)


@pytest.mark.parametrize("text", ["", "1", "0/5", "6/5", "1/1", "a/b", "-1/5", "1/5/2"])
def test_what_is_no_fold_is_refused(text):
    with pytest.raises(UserError, match="must be K/N"):
        parse_fold(text)
