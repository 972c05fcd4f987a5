"""clipcovid.data.manifest: splits, hashes, duplicates, and the file."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from clipcovid.config import UserError
from clipcovid.data.manifest import (
    COLUMNS,
    SPLITS,
    Manifest,
    assign_splits,
    conform,
    duplicates,
    groups,
    read_manifest,
    split_patients,
    strictest,
    write_manifest,
)

LABELS = ("COVID-19", "Non-COVID", "Normal")


def people(count, labels=LABELS, shares=(0.1, 0.3, 0.6)):
    """1 to 4 images each of `count` patients; what a patient has doesn't hang on how many there are."""
    rows = []
    for patient in range(count):
        rng = np.random.default_rng(patient)
        label = rng.choice(labels, p=shares)
        rows += [{"patient_id": f"p{patient}", "label": label} for _ in range(rng.integers(1, 5))]
    table = conform(pd.DataFrame(rows))
    table["path"] = table["patient_id"] + "_" + table.groupby("patient_id").cumcount().astype(str) + ".png"
    return table.assign(image_id=table["path"])


def manifest(rows=40):
    table = people(rows)
    table["split"] = assign_splits(table, val=0.1, test=0.2, seed=0)
    table["sha256"] = table["image_id"]
    return Manifest(table=table, classes=LABELS, dataset="made up", info={"images": {"size": 32}})


def made(rows, **columns):
    return conform(pd.DataFrame({"image_id": [f"{i}.png" for i in range(rows)], **columns}))


def test_no_patient_in_two_splits_and_every_image_in_one():
    table = people(500)
    table["split"] = assign_splits(table, val=0.1, test=0.2, seed=3)
    assert set(table["split"]) == set(SPLITS)
    assert split_patients(table) == 0


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
    assert split_patients(table.assign(split=["val", "val", "val", "train", "test", "test"])) == 1


def test_an_image_without_a_patient_is_a_group_of_its_own():
    table = made(300, label="x", patient_id=["", *["a"] * 20, *[""] * 279])
    assert groups(table).nunique() == 281
    table["split"] = assign_splits(table, val=0.2, test=0.3, seed=0)
    assert set(table.loc[table["patient_id"] == "", "split"]) == set(SPLITS)
    assert split_patients(table) == 0


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.1, 1)])
def test_shares_that_leave_nothing_for_training_are_refused(val, test):
    with pytest.raises(UserError, match="--val"):
        assign_splits(people(5), val=val, test=test, seed=0)


def test_strictest_prefers_test_to_val_to_train():
    splits = pd.Series(["train", "val", "test", "", "train", "", ""])
    assert strictest(splits, pd.Series(list("aaabbcc"))).to_dict() == {"a": "test", "b": "train", "c": ""}
    assert strictest(splits[:2], pd.Series(list("aa"))).to_dict() == {"a": "val"}


def test_splits_of_a_hundred_thousand_images_take_seconds():
    table = made(100_000, label="x", patient_id=[str(i // 4) for i in range(100_000)])
    shares = assign_splits(table, val=0.1, test=0.2, seed=0).value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=1e-4)


@pytest.mark.parametrize("column", ["label", "split", "patient_id"])
def test_split_hash_changes_with_a_swapped(column):
    one = manifest()
    table = one.table.copy()
    i = 0
    j = int(np.flatnonzero(table[column] != table.loc[i, column])[0])
    table.loc[[i, j], column] = table.loc[[j, i], column].to_numpy()
    assert Manifest(table=table, classes=LABELS, dataset="").split_hash != one.split_hash


def test_split_hash_stays_with_other_captions_paths_and_row_order():
    one = manifest()
    table = one.table.assign(caption="new", path="/elsewhere", width=7).sample(frac=1, random_state=0)
    other = Manifest(table=table, classes=LABELS, dataset="another")
    assert other.split_hash == one.split_hash
    assert other.content_hash != one.content_hash


def test_content_hash_notices_any_edit():
    one = manifest()
    hashes = {one.content_hash}
    for column in one.table:
        table = one.table.copy()
        new = {"split": "val" if table.loc[3, "split"] != "val" else "test", "label": "Normal"}
        table.loc[3, column] = 5 if column in ("width", "height") else new.get(column, "x")
        if column == "label" and one.table.loc[3, "label"] == "Normal":
            table.loc[3, column] = "COVID-19"
        hashes.add(Manifest(table=table, classes=LABELS, dataset="").content_hash)
    hashes.add(Manifest(table=one.table[::-1], classes=LABELS, dataset="").content_hash)
    extra = [Manifest(table=one.table.assign(**{name: "1"}), classes=LABELS, dataset="") for name in ("age", "weight")]
    hashes |= {other.content_hash for other in extra}
    assert len(hashes) == 1 + len(COLUMNS) + 1 + 2


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    one = manifest()
    write_manifest(tmp_path, one)
    back = read_manifest(tmp_path)
    pd.testing.assert_frame_equal(back.table, one.table, check_dtype=False)
    assert (back.classes, back.dataset, back.info) == (one.classes, one.dataset, one.info)
    assert (back.content_hash, back.split_hash) == (one.content_hash, one.split_hash)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.assign(label=[*table["label"][1:], table["label"][0]]),
        lambda table: table[::-1],
        lambda table: table[1:],
        lambda table: table.rename(columns={"view": "caption", "caption": "view"}),
        lambda table: table.assign(note=""),
    ],
)
def test_an_altered_file_is_refused(tmp_path, change):
    write_manifest(tmp_path, manifest())
    path = tmp_path / "manifest.parquet"
    arrow = pq.read_table(path)
    new = (
        type(arrow)
        .from_pandas(change(arrow.to_pandas()), preserve_index=False)
        .replace_schema_metadata(arrow.schema.metadata)
    )
    pq.write_table(new, path)
    with pytest.raises(UserError, match=r"was changed after it was written.*--overwrite"):
        read_manifest(tmp_path)


def test_other_files_in_a_manifests_place_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a prepared data set.*jobs/prepare\.py"):
        read_manifest(tmp_path)
    path = tmp_path / "manifest.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(UserError, match="lacks classes, content_hash, dataset, split_hash"):
        read_manifest(tmp_path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("image_id", "p0_1.png", "more than once"),
        ("split", "fold 1", "splits"),
        ("split", "", "splits"),
        ("label", "Flu", "Flu"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(column, value, match):
    table = manifest().table.copy()
    table["image_id"] = [f"p0_{i}.png" for i in range(len(table))]
    table.loc[0, column] = value
    with pytest.raises(UserError, match=match):
        Manifest(table=table, classes=LABELS, dataset="")
    with pytest.raises(UserError, match="lacks the columns boxes"):
        Manifest(table=table.drop(columns="boxes"), classes=LABELS, dataset="")


def test_rows_of_a_split():
    one = manifest()
    assert Counter(one.table["split"]) == {split: len(one.rows(split)) for split in SPLITS}
    assert len(one.rows("all")) == len(one.table)
    with pytest.raises(UserError, match="--split 'dev' is unknown"):
        one.rows("dev")
    only = Manifest(table=one.table.assign(split="train"), classes=LABELS, dataset="mine")
    with pytest.raises(UserError, match="'test' of mine has no images"):
        only.rows("test")


def test_duplicates_within_and_across_splits_are_counted_beyond_the_first():
    splits = ["train", "train", "train", "val", "train", "test", "test", "test", "train"]
    table = made(9, split=splits, sha256=["a", "a", "b", "b", "c", "c", "c", "", ""])
    # a: one more in train. b: train and val. c: train and test, and one more in test. "": unknown, not alike.
    assert duplicates(table) == {"within": 2, "across": 2}
    assert duplicates(table[:0]) == {"within": 0, "across": 0}
    json.dumps(duplicates(table))


def test_cells_become_text():
    cells = [float("nan"), None, 50.0, 50, 50.5, " a ", True, pd.NaT, [1, "ü"], {"x": None}, np.array([1, 2]), "\ud83d"]
    table = conform(pd.DataFrame({"image_id": range(len(cells)), "view": cells}))
    asked = ["", "", "50", "50", "50.5", "a", "True", "", '[1, "\\u00fc"]', '{"x": null}', "[1, 2]", "?"]
    assert table["view"].tolist() == asked
    ages = conform(pd.DataFrame({"image_id": ["a", "b"], "age": [50, None], "patient_id": [7.0, None]}))
    assert ages["age"].tolist() == ["50", ""]
    assert ages["patient_id"].tolist() == ["7", ""]


def test_missing_columns_are_made_and_further_ones_carried():
    table = conform(pd.DataFrame({"age": [3], "image_id": ["a"], 0: ["zero"]}, index=[9]))
    assert table.columns.tolist() == [*COLUMNS, "age", "0"]
    assert table.loc[0, "0"] == "zero"
    assert (table["width"].dtype, table.loc[0, "width"], table.loc[0, "label"]) == (np.int32, 0, "")
