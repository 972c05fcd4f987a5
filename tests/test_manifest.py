"""clipcovid.data.manifest: hashes, cells, and the file."""

import dataclasses
import hashlib
import json
import pickle
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from patients import LABELS, people

from clipcovid.config import UserError
from clipcovid.data.manifest import (
    COLUMNS,
    HASH_PROPERTIES,
    PACKED_ROW,
    SPLITS,
    Manifest,
    normalize_columns,
    read_manifest,
    write_manifest,
)
from clipcovid.data.splits import assign_splits
from clipcovid.io.tables import MISSING_WORDS


def manifest(rows=40):
    table = people(rows)
    table["split"] = assign_splits(table, val=0.1, test=0.2, seed=0)
    table["sha256"] = table["image_id"]
    return Manifest(table=table, classes=LABELS, dataset="made up", info={"images": {"size": 32}})


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
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.arrow", "manifest.parquet"}


def reopened(given):
    """What another process gets that the manifest is sent to."""
    return pickle.loads(pickle.dumps(given))


def test_a_manifest_is_sent_as_the_place_of_its_copy(tmp_path):
    write_manifest(tmp_path, manifest(4000))
    opened = read_manifest(tmp_path)
    sent = pickle.dumps(opened)
    assert len(sent) < 1000
    back = pickle.loads(sent)
    pd.testing.assert_frame_equal(back.table, opened.table)
    assert PACKED_ROW not in back.table
    assert back.content_hash == Manifest(table=back.table, classes=LABELS, dataset="").content_hash
    assert all(
        getattr(back, name) == getattr(opened, name) for name in (*HASH_PROPERTIES, "classes", "dataset", "info")
    )


def test_changed_columns_are_sent_and_nothing_else(tmp_path):
    write_manifest(tmp_path, manifest(4000))
    opened = read_manifest(tmp_path)
    changed = opened.with_columns(["a", *LABELS], caption="new", label="a").with_columns(view=opened.table["image_id"])
    back = reopened(changed)
    pd.testing.assert_frame_equal(
        back.table, opened.table.assign(caption="new", label="a", view=opened.table["image_id"])
    )
    assert back.classes == ("a", *LABELS)
    assert (
        len({one.content_hash for one in (opened, changed, Manifest(table=back.table, classes=("a",), dataset=""))})
        == 2
    )
    assert len(pickle.dumps(changed)) < len(pickle.dumps(dataclasses.replace(changed))) / 3
    with pytest.raises(UserError, match="labels"):
        opened.with_columns(label="Flu")


def test_a_set_of_an_older_version_gets_its_copy_when_it_is_opened(tmp_path):
    write_manifest(tmp_path, one := manifest())
    (tmp_path / "manifest.arrow").unlink()
    opened = read_manifest(tmp_path)
    assert opened.mapped_table
    assert (tmp_path / "manifest.arrow").exists()
    assert (opened.content_hash, opened.split_hash) == (one.content_hash, one.split_hash)


@pytest.mark.parametrize("content", [b"", b"ARROW1 not really", None])
def test_a_copy_of_another_file_or_a_damaged_one_is_made_again(tmp_path, content):
    write_manifest(tmp_path, one := manifest())
    if content is None:
        write_manifest(tmp_path / "other", manifest(7))
        content = (tmp_path / "other" / "manifest.arrow").read_bytes()
    (tmp_path / "manifest.arrow").write_bytes(content)
    assert read_manifest(tmp_path).table["image_id"].tolist() == one.table["image_id"].tolist()
    assert read_manifest(tmp_path).mapped_table


def test_where_no_copy_can_be_written_the_table_is_read_into_memory(tmp_path, monkeypatch):
    write_manifest(tmp_path, one := manifest())
    (tmp_path / "manifest.arrow").unlink()
    for name, value in (("is_writable", lambda folder: False), ("_write_copy", _full)):
        with monkeypatch.context() as patch:
            patch.setattr(f"clipcovid.data.manifest.{name}", value)
            opened = read_manifest(tmp_path)
        assert not opened.mapped_table
        assert reopened(opened).content_hash == one.content_hash
        pd.testing.assert_frame_equal(reopened(opened).table, opened.table)


def _full(*args):
    raise UserError("no room")


def test_a_worker_says_when_the_set_was_prepared_anew_or_is_not_there(tmp_path):
    write_manifest(tmp_path, manifest())
    sent = pickle.dumps(read_manifest(tmp_path))
    write_manifest(tmp_path, manifest(7))
    with pytest.raises(UserError, match=r"manifest\.arrow was changed while it was in use"):
        len(pickle.loads(sent).table)
    (tmp_path / "manifest.arrow").unlink()
    with pytest.raises(UserError, match="every node must see this folder"):
        len(pickle.loads(sent).table)


def test_hashes_are_those_of_the_whole_text_however_large_the_table(monkeypatch):
    one = manifest()
    ids, pixels = one.table["image_id"].tolist(), one.table["sha256"].tolist()
    text = json.dumps(list(one.table.columns)) + one.table.to_json(orient="values")
    images = json.dumps(sorted(zip(ids, pixels, strict=True)))
    for rows in (7, 8, len(ids), 1000):
        monkeypatch.setattr("clipcovid.data.manifest.ROWS_PER_BLOCK", rows)
        monkeypatch.setattr("clipcovid.identity.ROWS_PER_BLOCK", rows)
        again = Manifest(table=one.table, classes=LABELS, dataset="")
        assert again.content_hash == hashlib.sha256(text.encode()).hexdigest()[:16]
        assert again.images_hash == hashlib.sha256(images.encode()).hexdigest()[:12]


def test_positions_are_those_in_the_table():
    one = manifest()
    order = np.random.default_rng(0).permutation(len(one.table))[:11]
    assert one.positions(one.table["image_id"].iloc[order]).tolist() == order.tolist()
    assert one.positions(one.table["image_id"][:0]).tolist() == []
    with pytest.raises(KeyError, match="nobody"):
        one.positions(pd.Series([one.table["image_id"][0], "nobody"]))


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
    with pytest.raises(UserError, match=r"is not a prepared data set.*clipcovid prepare"):
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


def test_cells_become_text():
    cells = [
        float("nan"),
        None,
        50.0,
        50,
        50.5,
        " a ",
        True,
        pd.NaT,
        [1, "ü"],
        {"x": None},
        np.array([1, 2]),
        "\ud83dx",
    ]
    table = normalize_columns(pd.DataFrame({"image_id": range(len(cells)), "view": cells}))
    asked = ["", "", "50", "50", "50.5", "a", "True", "", '[1, "\\u00fc"]', '{"x": null}', "[1, 2]", "?x"]
    assert table["view"].tolist() == asked
    ages = normalize_columns(pd.DataFrame({"image_id": ["a", "b"], "age": [50, None], "patient_id": [7.0, None]}))
    assert ages["age"].tolist() == ["50", ""]
    assert ages["patient_id"].tolist() == ["7", ""]


def test_missing_columns_are_made_and_further_ones_carried():
    table = normalize_columns(pd.DataFrame({"age": [3], "image_id": ["a"], 0: ["zero"]}, index=[9]))
    assert table.columns.tolist() == [*COLUMNS, "age", "0"]
    assert table.loc[0, "0"] == "zero"
    assert (table["width"].dtype, table.loc[0, "width"], table.loc[0, "label"]) == (np.int32, 0, "")


@pytest.mark.parametrize("column", ["image_id", "path", "patient_id", "split", "view", "lung_mask", "sex"])
def test_the_words_for_a_missing_value_mean_missing_in_every_text_column(column):
    words = sorted(MISSING_WORDS)
    assert {"", "nan", "NaN", "None", "NA", "N/A", "null", "<NA>"} <= set(words)
    table = normalize_columns(pd.DataFrame({column: [*words, " nan ", "nan7", "No", "Anna"]}))
    assert table[column].tolist() == [""] * (len(words) + 1) + ["nan7", "No", "Anna"]


def test_a_class_may_be_called_none():
    assert normalize_columns(pd.DataFrame({"label": ["None", None]}))["label"].tolist() == ["None", ""]
