"""COVIDx, on small folders with lists as its authors write them."""

import numpy as np
import pytest
from conftest import HERE
from covidx_lists import COLUMNS, LISTS, ROWS, covidx
from pictures import cells, listed, picture

from clipcovid.config import UserError
from clipcovid.data.prepare import PrepareConfig, prepare

TWO_CLASSES = {
    "train_COVIDx9B.txt": "3 ARDSSevere.png negative cohen\nCOVID-1 a b.jpg positive sirm\nx-7 1.png negative rsna\n",
    "test_COVIDx9B.txt": "y-8 1.png positive rnsa\n",
}
FOUR_CLASSES = {  # as of the first version, without a source
    "train_split_v1.txt": "3 ARDSSevere.png viral\n29 a b.jpg bacteria\n10000927 1.png normal\n",
    "test_split_v1.txt": "2 1.png COVID-19\n",
}


def refused(root, match, **how):
    with pytest.raises(UserError, match=match):
        listed("covidx", root, **how)


def test_the_only_version_is_read_with_patients_sources_and_its_own_splits(tmp_path):
    covidx(tmp_path)
    (tmp_path / "test_notes.txt").write_text("These are notes on the test split.\n")
    listing = listed("covidx", tmp_path)
    assert cells(listing, *COLUMNS) == ROWS
    assert listing.dataset == "covidx"
    assert "The lists test_COVIDx9A.txt, train_COVIDx9A.txt of COVIDx are read, version 9A." in listing.notes
    assert any("--rename normal=Normal pneumonia=Non-COVID" in note for note in listing.notes)


def test_of_several_versions_one_is_chosen_by_name(tmp_path):
    covidx(tmp_path, LISTS | TWO_CLASSES | FOUR_CLASSES)
    refused(
        tmp_path,
        r"versions 9A \(COVID-19, normal, pneumonia\); 9B \(negative, positive\); split_v1 \(COVID-19, bacteria, normal, "
        r"viral\): say which with --version",
    )
    refused(tmp_path, "--version 9C is none of them", version="9C")
    assert cells(listed("covidx", tmp_path, version="covidx9a"), *COLUMNS) == ROWS
    two = listed("covidx", tmp_path, version="9B")
    assert set(two.table["label"]) == {"negative", "positive"}
    assert "The source rnsa of 1 images is read as rsna." in two.notes
    assert any("negative is all that is not COVID-19" in note for note in two.notes)
    four = listed("covidx", tmp_path, version="split_v1")
    assert cells(four, "label", "patient_id", "source") == [
        ("COVID-19", "2", ""),
        ("bacteria", "29", ""),
        ("normal", "10000927", ""),
        ("viral", "3", ""),
    ]
    assert any("--rename bacteria=Non-COVID normal=Normal viral=Non-COVID" in note for note in four.notes)


def test_lists_and_images_may_lie_deeper_and_images_of_one_name_are_told_apart_by_their_splits(tmp_path):
    covidx(tmp_path / "data", {})
    (tmp_path / "labels").mkdir()
    for name, text in LISTS.items():
        (tmp_path / "labels" / name).write_text(text)
        (tmp_path / name).write_text(text)  # a copy
    assert cells(listed("covidx", tmp_path), *COLUMNS) == [(f"data/{row[0]}", *row[1:]) for row in ROWS]
    (tmp_path / "labels/test_COVIDx9A.txt").write_text("y-8 1.png normal ricord\n")
    refused(tmp_path, r"test_COVIDx9A\.txt and labels/test_COVIDx9A\.txt, two lists of the split test that differ")


def test_unnamed_lists_are_a_version_too_and_a_validation_split_is_kept(tmp_path):
    covidx(tmp_path, {"train.txt": TWO_CLASSES["train_COVIDx9B.txt"], "test.txt": TWO_CLASSES["test_COVIDx9B.txt"]})
    picture(tmp_path / "val/v.png", 9)
    (tmp_path / "val.txt").write_text("v-1 v.png negative rsna\n")
    listing = listed("covidx", tmp_path)
    assert "val/v.png" in set(listing.table["image_id"])
    assert listing.table.groupby("split").size().to_dict() == {"test": 1, "train": 3, "val": 1}
    (tmp_path / "train_COVIDx.txt").write_text(LISTS["train_COVIDx9A.txt"])
    refused(tmp_path, r"versions COVIDx \(.*\); plain \(")
    assert len(listed("covidx", tmp_path, version="plain").table) == 5


def test_a_patient_that_stands_for_nobody_is_unknown(tmp_path):
    text = LISTS["train_COVIDx9A.txt"].replace("COVID-1", "COVID")
    listing = listed("covidx", covidx(tmp_path, LISTS | {"train_COVIDx9A.txt": text}))
    assert listing.table.set_index("image_id").loc["train/a b.jpg", "patient_id"] == ""
    assert "The patient of 1 images is given as COVID alone: not known." in listing.notes


def test_what_is_not_there_is_said_and_a_list_without_any_image_is_refused(tmp_path):
    covidx(tmp_path)
    (tmp_path / "train/a b.jpg").unlink()
    notes = listed("covidx", tmp_path).notes
    assert "1 of 3 images that train_COVIDx9A.txt names are not there, e.g. a b.jpg." in notes
    (tmp_path / "test/1.png").unlink()
    refused(tmp_path, r"none of the 1 images that test_COVIDx9A\.txt names.* belong into a folder test")
    refused(tmp_path / "train", "has no list of COVIDx")
    with pytest.raises(UserError, match="--version is for --source covidx; imagefolder has no versions"):
        listed("imagefolder", tmp_path, version="9A")


def test_it_is_prepared_with_a_validation_split_of_its_training_patients(tmp_path):
    lines = [f"p{number // 2} {number}.png {'positive' if number % 4 < 2 else 'negative'} rsna" for number in range(40)]
    for number in range(40):
        picture(tmp_path / "raw" / ("train" if number < 32 else "test") / f"{number}.png", number)
    (tmp_path / "raw/train_COVIDx9B.txt").write_text("\n".join(lines[:32]))
    (tmp_path / "raw/test_COVIDx9B.txt").write_text("\n".join(lines[32:]))
    config = PrepareConfig(
        source="covidx", root=str(tmp_path / "raw"), version="9B", out=tmp_path / "out", compute=HERE
    )
    table = prepare(config, log=lambda text: None).manifest.table
    assert set(table["split"]) == {"train", "val", "test"}
    assert set(table.loc[table["split"] == "test", "image_id"]) == {f"test/{number}.png" for number in range(32, 40)}
    assert np.array_equal(table.groupby("patient_id")["split"].nunique(), np.ones(20))
