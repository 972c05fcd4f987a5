"""clipcovid.data.splits: who is kept together, whose split stays, what is made and said."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from patients import LABELS, people

from clipcovid.config import UserError
from clipcovid.data.manifest import SPLITS, normalize_columns
from clipcovid.data.splits import (
    assign_splits,
    count_duplicates,
    count_leaking_patients,
    make_splits,
    split_units,
    strictest_split,
)


def made(rows, **columns):
    return normalize_columns(pd.DataFrame({"image_id": [f"{i}.png" for i in range(rows)], **columns}))


def test_no_patient_in_two_splits_and_every_image_in_one():
    table = people(500)
    table["split"] = assign_splits(table, val=0.1, test=0.2, seed=3)
    assert set(table["split"]) == set(SPLITS)
    assert count_leaking_patients(table) == 0


def test_every_class_gets_the_shares_asked_for():
    table = people(500)
    for val, test in ((0.1, 0.2), (0.25, 0.25), (0, 0.3), (0.2, 0)):
        split = assign_splits(table, val=val, test=test, seed=0)
        for label in LABELS:
            shares = split[table["label"] == label].value_counts(normalize=True)
            assert shares.get("val", 0) == pytest.approx(val, abs=0.04)
            assert shares.get("test", 0) == pytest.approx(test, abs=0.04)
        assert ("val" in set(split)) == (val > 0)
        assert ("test" in set(split)) == (test > 0)


def test_a_thousand_classes_of_one_patient_get_the_shares_together():
    table = made(1000, label=[f"finding {i}" for i in range(1000)])
    shares = assign_splits(table, val=0.1, test=0.2, seed=0).value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.04)
    assert shares["val"] == pytest.approx(0.1, abs=0.03)


def test_the_seed_alone_decides():
    table = people(200)
    splits = assign_splits(table, val=0.1, test=0.2, seed=0)
    assert splits.equals(assign_splits(table, val=0.1, test=0.2, seed=0))
    assert (splits != assign_splits(table, val=0.1, test=0.2, seed=1)).mean() > 0.2
    mixed = table.sample(frac=1, random_state=0)
    assert assign_splits(mixed, val=0.1, test=0.2, seed=0).sort_index().equals(splits)


def test_adding_patients_moves_few_others():
    before = assign_splits(people(500), val=0.1, test=0.2, seed=0)
    after = assign_splits(people(515), val=0.1, test=0.2, seed=0)
    assert (after[: len(before)].to_numpy() != before.to_numpy()).mean() < 0.05


def test_given_splits_stay_and_the_rest_is_filled_up_to_the_shares():
    table = people(400)
    given = table["patient_id"].isin([f"p{i}" for i in range(80)])
    table["split"] = np.where(given, "test", "")
    split = assign_splits(table, val=0.1, test=0.3, seed=0)
    assert (split[given] == "test").all()
    assert (split == "test").mean() == pytest.approx(0.3, abs=0.03)
    assert (split == "val").mean() == pytest.approx(0.1, abs=0.03)
    table["split"] = "train"
    assert (assign_splits(table, val=0.1, test=0.3, seed=0) == "train").all()


def test_images_without_a_split_follow_their_patient():
    table = made(6, patient_id=list("aaabbb"), split=["val", "", "", "train", "test", ""])
    assert assign_splits(table, val=0.1, test=0.2, seed=0).tolist() == ["val"] * 3 + ["train", "test", "test"]
    assert count_leaking_patients(table.assign(split=["val", "val", "val", "train", "test", "test"])) == 1


def test_an_image_without_a_patient_is_a_group_of_its_own():
    table = made(300, label="x", patient_id=["", *["a"] * 20, *[""] * 279])
    assert split_units(table).nunique() == 281
    table["split"] = assign_splits(table, val=0.2, test=0.3, seed=0)
    assert set(table.loc[table["patient_id"] == "", "split"]) == set(SPLITS)
    assert count_leaking_patients(table) == 0


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.1, 1)])
def test_shares_that_leave_nothing_for_training_are_refused(val, test):
    with pytest.raises(UserError, match="--val"):
        assign_splits(people(5), val=val, test=test, seed=0)


def test_strictest_prefers_test_to_val_to_train():
    splits = pd.Series(["train", "val", "test", "", "train", "", ""])
    assert strictest_split(splits, pd.Series(list("aaabbcc"))).to_dict() == {"a": "test", "b": "train", "c": ""}
    assert strictest_split(splits[:2], pd.Series(list("aa"))).to_dict() == {"a": "val"}


def test_splits_of_a_hundred_thousand_images_with_copies_take_seconds():
    rows = pd.Series(range(100_000))
    table = pd.DataFrame(
        {"image_id": rows.astype(str), "patient_id": (rows // 4).astype(str), "label": "x", "split": ""}
    )
    table["sha256"] = (rows // 2 * 3 % 80_000).astype(str)
    start = time.perf_counter()
    splits = make_splits(table, val=0.1, test=0.2, seed=0)[0]
    assert time.perf_counter() - start < 15
    assert (splits == "test").mean() == pytest.approx(0.2, abs=1e-3)


def test_duplicates_within_and_across_splits_are_counted_beyond_the_first():
    splits = ["train", "train", "train", "val", "train", "test", "test", "test", "train"]
    table = made(9, split=splits, sha256=["a", "a", "b", "b", "c", "c", "c", "", ""])
    # a: one more in train. b: train and val. c: train and test, and one more in test. "": unknown, not alike.
    assert count_duplicates(table) == {"within": 2, "across": 2}
    assert count_duplicates(table[:0]) == {"within": 0, "across": 0}
    json.dumps(count_duplicates(table))


def test_patients_and_images_with_equal_pixels_are_one_group():
    pixels = ["1", "2", "2", "3", "3", "4", "5", "5", ""]
    table = made(9, patient_id=["a", "a", "b", "b", "", "", "c", "", ""], sha256=pixels)
    # a and b share the pixels 2, b and an image without a patient the pixels 3; c and another image the pixels 5.
    assert split_units(table).tolist() == ["a", "a", "a", "a", "a", "image:5.png", "c", "c", "image:8.png"]
    assert split_units(table.assign(sha256="")).nunique() == 7


@pytest.mark.parametrize("seed", range(3))
def test_equal_pixels_are_never_in_two_splits(seed):
    table = made(400, label=list("xxyy") * 100, sha256=[str(i // 2) for i in range(400)])
    splits, _, warnings = make_splits(table, val=0.2, test=0.3, seed=seed)
    assert count_duplicates(table.assign(split=splits)) == {"within": 200, "across": 0}
    assert set(splits) == set(SPLITS)
    assert not any("pixels" in warning for warning in warnings)


def test_a_missing_val_is_made_from_train_by_patient():
    table = people(300)
    table["split"] = np.where(table["patient_id"].isin([f"p{i}" for i in range(100)]), "test", "train")
    splits, notes, warnings = make_splits(table, val=0.2, test=0.3, seed=0)
    train = table["split"] == "train"
    assert (splits[~train] == "test").all()
    assert set(splits[train]) == {"train", "val"}
    assert (splits[train] == "val").mean() == pytest.approx(0.2, abs=0.04)
    assert count_leaking_patients(table.assign(split=splits)) == 0
    assert notes == [f"val: 20% of train by patient ({(splits == 'val').sum()} images), for the set gives none."]
    assert warnings == []


def test_a_patient_of_test_is_not_taken_from_train_to_val():
    table = people(200)
    first = ~table["patient_id"].duplicated()
    table["split"] = np.where(first, "train", "test")
    splits, _, warnings = make_splits(table, val=0.5, test=0.2, seed=0)
    alone = ~table["patient_id"].isin(table.loc[~first, "patient_id"])
    assert set(splits[first & ~alone]) == {"train"}
    assert "val" in set(splits[alone])
    divided = table.loc[~first, "patient_id"].nunique()
    assert f"{divided} patients stand in more than one of the data set's own splits" in " ".join(warnings)


def test_splits_that_the_set_lacks_are_made_and_said_or_left_out_where_their_share_is_none():
    table = people(300)
    half = table["patient_id"].isin([f"p{i}" for i in range(50)])
    own = table.assign(split=np.where(half, "val", "train"))
    splits, notes, _ = make_splits(own, val=0.1, test=0.25, seed=0)
    assert (splits[half] == "val").all()
    assert (splits[~half] == "test").mean() == pytest.approx(0.25, abs=0.04)
    assert [note.partition(":")[0] for note in notes] == ["test"]
    both, notes, _ = make_splits(table.assign(split="train"), val=0.1, test=0.25, seed=0)
    assert set(both) == set(SPLITS)
    assert [note.partition(":")[0] for note in notes] == ["val", "test"]
    none, notes, warnings = make_splits(table.assign(split="train"), val=0.0, test=0.0, seed=0)
    assert (set(none), notes) == ({"train"}, [])
    assert sorted(warnings) == [f"the split {name} is empty, as --{name} 0 asks." for name in ("test", "val")]


def test_a_test_split_alone_stays_and_is_said_to_be_no_training_set():
    splits, notes, warnings = make_splits(people(20).assign(split="test"), val=0.1, test=0.2, seed=0)
    assert (set(splits), notes, len(warnings)) == ({"test"}, [], 1)
    assert "the splits train and val are empty: the data set gives test alone" in warnings[0]
    assert "--resplit" in warnings[0]


def test_images_without_a_split_among_others_are_counted():
    table = people(100)
    table["split"] = ["test"] * 30 + [""] * (len(table) - 30)
    _, notes, _ = make_splits(table, val=0.1, test=0.2, seed=0)
    assert len(notes) == 1
    assert notes[0].startswith(
        f"splits: {len(table) - 30} images without a split are spread by patient (val 10%, test 20%)"
    )


def test_own_splits_with_equal_pixels_or_patients_on_both_sides_stay_and_are_counted():
    table = made(6, patient_id=["a", "a", "b", "c", "d", "e"], split=["train", "test", "train", "test", "val", "train"])
    table["sha256"] = ["1", "2", "3", "3", "4", "5"]
    splits, _, warnings = make_splits(table, val=0.1, test=0.2, seed=0)
    assert splits.tolist() == table["split"].tolist()
    assert [warning.partition(" ")[0] for warning in warnings] == ["1", "1"]
    assert all("--resplit" in warning for warning in warnings)
    anew, notes, warnings = make_splits(table, val=0.3, test=0.3, seed=0, resplit=True)
    assert anew[0] == anew[1]
    assert anew[2] == anew[3]
    assert notes == ["splits: the data set's own splits of 6 images are put aside (--resplit)."]
    assert not any("--resplit" in warning for warning in warnings)


def test_unknown_patients_are_warned_of():
    splits_of = lambda table: make_splits(table, val=0.2, test=0.2, seed=0)[2]  # noqa: E731
    assert "no patient ids are known: splits and intervals are by image" in splits_of(made(50))[0]
    assert "10 of 50 images have no patient id" in splits_of(made(50, patient_id=["a", "b"] * 20 + [""] * 10))[0]
    assert splits_of(people(200)) == []


def test_one_patient_is_in_one_split_and_said_to_be_indivisible():
    for seed in range(8):
        splits, _, warnings = make_splits(made(12, patient_id="p", label="x"), val=0.1, test=0.2, seed=seed)
        assert set(splits) == {"train"}
        assert warnings == [
            "the splits val and test are empty: all images are of one patient or have equal pixels, and can't be divided."
        ]


def test_an_empty_split_is_explained_by_how_it_is_drawn():
    table = made(10, patient_id=[f"p{i}" for i in range(10)], label=list("AB") * 5)
    warnings = [make_splits(table, val=0.1, test=0.2, seed=seed)[2] for seed in range(6)]
    sentence = (
        "the split val is empty: each class's patients are drawn by themselves and stay whole, and 10% of so few (at most 5 "
        "of a class) can come to none; raise --val, or draw with another --seed."
    )
    assert sorted(warnings) == [[]] * 3 + [[sentence]] * 3
    twice = table.assign(split=["train"] * 5 + ["test"] * 5, patient_id=list("abcde") * 2)
    assert make_splits(twice, val=0.1, test=0.2, seed=0)[2][1] == (
        "the split val is empty: all patients of train are in other splits of the data set, too, and stay there; --resplit "
        "makes splits anew."
    )


def test_equal_pixels_under_several_labels_are_warned_of():
    table = people(200).assign(sha256=lambda table: table["image_id"])
    table.loc[:5, "sha256"] = ["1", "1", "2", "2", "3", "3"]
    table.loc[:5, "label"] = ["Normal", "COVID-19", "Normal", "Normal", "Normal", ""]
    warnings = make_splits(table, val=0.2, test=0.2, seed=0)[2]
    assert warnings == ["1 images are there several times, by equal pixels, with different labels: correct them."]
