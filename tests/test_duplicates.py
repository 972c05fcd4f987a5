"""clipcovid.data.duplicates: rows that name the same file are one image, or refused."""

import json
import time

import pandas as pd
import pytest

from clipcovid.config import UserError
from clipcovid.data.duplicates import canonical_paths, merge_duplicate_rows
from clipcovid.data.manifest import normalize_columns


def table(**columns):
    return normalize_columns(pd.DataFrame({"image_id": [f"{i}" for i in range(len(columns["path"]))], **columns}))


def test_rows_of_one_file_become_its_first_row_completed_by_the_others():
    rows = table(path=["/b.png", "/a.png", "/b.png", "/c.png"], label=["x", "y", "", "x"], age=["", "1", "7", "2"])
    single, notes = merge_duplicate_rows(rows)
    assert single["path"].tolist() == ["/b.png", "/a.png", "/c.png"]
    assert single["image_id"].tolist() == ["0", "1", "3"]
    assert single["label"].tolist() == ["x", "y", "x"]
    assert single["age"].tolist() == ["7", "1", "2"]
    assert single.columns.tolist() == rows.columns.tolist()
    assert (single.dtypes == rows.dtypes).all()
    assert notes == ["1 rows name a file again (1 files): each file is one image."]


def test_a_table_without_repetitions_is_left_alone():
    rows = table(path=["/a.png", "/b.png"], label=["x", "x"])
    single, notes = merge_duplicate_rows(rows)
    assert single is rows
    assert notes == []


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("label", r"the label 'u' and with 'v' \(and 1 more files have several\).*one class"),
        ("patient_id", "the patient 'u' and with 'v'.*correct the table"),
        ("split", "the split 'u' and with 'v'.*one split"),
        ("lung_mask", "the lung mask 'u' and with 'v'.*one file"),
    ],
)
def test_rows_that_contradict_each_other_are_refused_by_name(column, words):
    rows = table(path=["/a.png", "/b.png", "/a.png", "/c.png", "/c.png"], **{column: ["u", "w", "v", "s", "t"]})
    with pytest.raises(UserError, match=f"^/a.png is listed with {words}"):
        merge_duplicate_rows(rows)


def test_boxes_of_a_file_are_joined_and_what_is_dropped_is_named():
    one, other, text = '[{"x": 1}]', '[{"x": 2}, {"x": 1}]', "1 2 3 4"
    rows = table(
        path=["/a", "/a", "/b", "/b", "/c", "/c"], boxes=[one, other, one, "", one, text], reader=["R1", "R2", *"1234"]
    )
    single, notes = merge_duplicate_rows(rows)
    assert json.loads(single["boxes"][0]) == [{"x": 1}, {"x": 2}]
    assert single["boxes"].tolist()[1:] == [one, one]
    assert len(notes) == 1
    assert notes[0].startswith("3 rows name a file again (3 files)")
    assert "boxes (1 files)" in notes[0]
    assert "reader (3 files)" in notes[0]


def test_many_differing_columns_are_named_in_short():
    rows = table(path=["/a", "/a"], **{f"c{i}": ["1", "2"] for i in range(9)})
    assert "c5 (1 files), 3 more columns." in merge_duplicate_rows(rows)[1][0]


def test_paths_of_the_same_file_are_one_name(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "d/a.png")
    (tmp_path / "folder").symlink_to(tmp_path / "d")
    names = ["d/a.png", "d/./a.png", "d/../d/a.png", "link.png", "folder/a.png"]
    paths = [f"{tmp_path}/{name}" for name in names]
    assert canonical_paths(pd.Series([*paths, f"file://{paths[0]}"])).nunique() == 1
    others = pd.Series(
        [paths[0], f"{tmp_path}/d/A.png", "s3://b/a.png", "s3://b/./a.png", "zip://a.png::b.zip", "a\0b"]
    )
    assert canonical_paths(others).nunique() == 6


def test_a_hundred_thousand_rows_take_seconds():
    rows = table(path=[f"/x/{i // 2}.png" for i in range(100_000)], label="x")
    start = time.perf_counter()
    assert len(merge_duplicate_rows(rows)[0]) == 50_000
    assert time.perf_counter() - start < 10
