"""The one reader of tables: each form that people's files have, the cells as they say, and what is refused."""

import gzip
import json
import time

import numpy as np
import pandas as pd
import pytest

from clipcovid.config import UserError
from clipcovid.io.tables import MISSING_WORDS, is_missing, read_table, read_table_file

ROWS = [
    {"path": "a.png", "label": "Flu", "patient_id": "007", "caption": 'a "quoted", long\ntext; ü\u2028|x'},
    {"path": "sub/b.png", "label": "None", "patient_id": "12345678901234567891", "caption": ""},
    {"path": "c.png", "label": "Normal", "patient_id": "3", "caption": '"[sic]'},
]
FRAME = pd.DataFrame(ROWS)


def read(content, name="t.csv"):
    """The rows and the notes of a file of this name."""
    notes = []
    table = read_table(content.encode() if isinstance(content, str) else content, name, notes)
    assert set(map(str, table.dtypes)) <= {"object"}
    return table.to_dict("records"), notes


# CSV


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".CSV"])
def test_any_delimiter_is_read_and_named(separator, ending):
    text = FRAME.to_csv(index=False, sep=separator)
    usual = "\t" if ending == ".tsv" else ","
    rows, notes = read(b"\xef\xbb\xbf" + text.encode(), f"t{ending}")
    assert rows == ROWS
    divided = [note for note in notes if "divided by" in note]
    assert len(divided) == (separator != usual)
    if ending == ".csv":
        assert read(gzip.compress(text.encode()), "t.csv.gz")[0] == ROWS
        assert read(text.replace("\n", "\r\n"))[0][0]["path"] == "a.png"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("path;age\na,b.png;3,5\nc.png;4\n", [("a,b.png", "3,5"), ("c.png", "4")]),
        ("path,label\na;b.png,x\n", [("a;b.png", "x")]),
        ("sep=;\r\npath;label\na.png;x\n", [("a.png", "x")]),
        ("path\na;b\n", [("a;b",)]),
        ("path,label\r\n\r\na.png,x\r\n,\r\n , \r\n", [("a.png", "x")]),  # Excel's empty rows
        (",path\n0,a.png\n1,b.png\n", [("a.png",), ("b.png",)]),  # the numbers that pandas writes
        ("path,label,,\na.png,x,,\n", [("a.png", "x")]),
        ("path,label\na.png,x,\nb.png,y,\n", [("a.png", "x"), ("b.png", "y")]),
        ('path,caption\na.png,1.5" tube\n', [("a.png", '1.5" tube')]),
    ],
)
def test_what_spreadsheets_write_is_read(text, rows):
    assert [tuple(row.values()) for row in read(text)[0]] == rows


def test_a_column_without_a_name_is_kept_where_it_says_something():
    assert read(",path\n7,a.png\n9,b.png\n")[0][1] == {"Unnamed: 0": "9", "path": "b.png"}


def test_a_stray_quote_in_a_tsv_is_text():
    lines = [f"{i}.png\t{chr(34) * (i % 3 == 0)}caption {i}" for i in range(12)]
    rows, notes = read("\n".join(["path\tcaption", *lines]), "t.tsv")
    assert [row["caption"] for row in rows] == [line.split("\t")[1] for line in lines]
    assert notes == []
    assert read("\n".join(["path\tcaption", *lines]))[0] == rows  # by what divides, not by the ending


def test_quoted_cells_of_a_tsv_lose_their_quotes_and_keep_their_line_ends():
    rows, notes = read('path\tcaption\na.png\t"one ""two"""\nb.png\t"three"\n', "t.tsv")
    assert [row["caption"] for row in rows] == ['one "two"', "three"]
    rows, notes = read('path\tcaption\na.png\t"one\ntwo"\nb.png\t"""three"""\n', "t.tsv")
    assert [row["caption"] for row in rows] == ["one\ntwo", '"three"']
    assert "line ends" in notes[0]


def test_a_quote_that_may_have_swallowed_rows_is_said():
    rows, notes = read('path,caption\na.png,"left lung\nb.png,clear\nc.png,opacity"\nd.png,"one\ntwo"\n')
    assert len(rows) == 2
    assert notes == ["t.csv, line 2: a quoted text has lines that look like rows of their own: is it meant?"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (
            "t.csv",
            "path,caption,label\n0.png,fever, cough,A\n1.png,fever, cough,A\n",
            r"t\.csv, line 2: 4 fields \(and 1",
        ),
        ("t.csv", "path,caption,label\n0.png,fever, cough,\n1.png,x,A\n", r"line 2: 4 fields, where the header has 3"),
        ("t.csv", 'path,label\n"a\nb",x\nc.png\n', r"t\.csv, line 4: 1 field, where the header has 2 \(path, label\)"),
        ("t.csv", "path,label\na.png,x\nb.png,y,\n", r"line 3: 3 fields"),
        ("t.tsv", "path\tlabel\na.png\tx\nb.png\n", r"line 3: 1 field"),
        ("t.csv", 'path,caption\na.png,x\nb.png,"open\nc.png,y\n', r"line 3: a quote that opens here is not closed"),
        ("t.csv", 'path,caption\na.png,"open" x\n', r"line 2: .* a quote within a quoted text is written twice"),
        ("t.csv", "path,label,path\na,b,c\n", "has the column 'path' twice"),
        ("t.csv", "", r"t\.csv is empty"),
        ("t.csv", "\n,,\n", r"t\.csv is empty"),
        ("t.csv", "path\nü.png\n".encode("latin-1"), r"not UTF-8 text \(line 2\): save it as UTF-8"),
        ("t.csv", "path\na.png\n".encode("utf-16"), "not UTF-8 text"),
        ("t.csv", b"PK\x03\x04\0\0", "a ZIP or Excel file: save the sheet as CSV"),
        ("t.csv", gzip.compress(b"path\n"), r"let its name end in \.gz"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\0\0", "binary file, not text"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.* run git lfs pull"),
        (
            "t.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            r"t\.parquet is a Git LFS pointer",
        ),
        ("t.tsv", b"\xef\xbb\xbf\n<!DOCTYPE html>\n", "a web page, not a table: download the file itself"),
        ("t.csv.gz", b"path\n", r"t\.csv\.gz can't be unpacked"),
        ("t.csv.gz", gzip.compress(b"path\n" * 9)[:-9], "is it whole"),
        ("t.xlsx", b"PK", r"t\.xlsx: a table must be \.csv, \.tsv, \.json"),
        ("t", b"", "must be"),
        ("t.json", "{", r"t\.json: not valid JSON \(Expecting"),
        ("t.json", "[" * 100000, "not valid JSON"),
        ("t.json", "3", "a list or an object of rows was expected, not '3'"),
        ("t.json", '[{"a": 1, "a": 2}]', "the key 'a' stands twice"),
        ("t.json", '[{"a": 1}, 2]', "others, as entry 2, are not"),
        ("t.json", '{"images": [], "annotations": [], "info": {}}', "a COCO annotation file, not a table"),
        ("t.json", '{"train": [{"path": "a", "split": "test"}]}', "under 'train' says that its split is 'test'"),
        ("t.json", '{"columns": ["a", "b"], "data": [[1]]}', "a cell for each of its columns"),
        ("t.json", '{"0": {"0": 1, "1": 2}, "1": {"0": 3, "1": 4}}', "do not say what are rows"),
        ("t.jsonl", '{"path": "a"}\n\n{"path": \n', r"t\.jsonl, line 3: not valid JSON"),
        ("t.jsonl", '{"path": "a"}\n{"a": 1, "a": 2}\n', r"line 2: the key 'a' stands twice"),
        ("t.parquet", b"PAR1xxxx", r"t\.parquet can't be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(name, content, match):
    with pytest.raises(UserError, match=match) as error:
        read(content, name)
    assert str(error.value).count("\n") == 0


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        read_table_file(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"can't be read \(Is a directory\)"):
        read_table_file(tmp_path)


def test_a_long_table_takes_about_a_second():
    lines = ["Image Index,Finding Labels,Patient ID,View Position,a,b,c,d,e,f,g,h"]
    lines += [f"{i:08}_000.png,Infiltration|Mass,{i},PA,1,2,3,4,5,6,7,8" for i in range(112120)]
    data, start = "\n".join(lines).encode(), time.process_time()
    assert len(read_table(data, "t.csv")) == 112120
    assert time.process_time() - start < 5  # on a busy machine


# JSON

INDEXED = FRAME.set_index(pd.Index(["x1", "x2", "x3"]))
IDS = [{"image_id": f"x{i + 1}", **row} for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table"])
def test_what_pandas_writes_as_json_is_read(orient):
    assert read(FRAME.to_json(orient=orient), "t.json") == (ROWS, [])
    if orient not in ("records", "table"):
        assert read(INDEXED.to_json(orient=orient), "t.json") == (IDS, [])


def test_rows_of_an_unusual_table_are_told_from_its_columns():
    """Where no name is known, the numbers that pandas gives rows tell."""
    odd = pd.DataFrame({"bild": ["a", "b"], "klasse": ["x", "y"]})
    for table in (odd, odd[1:]):
        for orient in ("columns", "records", "split"):
            assert read(table.to_json(orient=orient), "t.json")[0] == table.to_dict("records")
    assert read(odd.to_json(orient="index"), "t.json")[0] == odd.to_dict("records")
    assert read('{"a.png": {"x": 0.5, "y": 0.5}}', "t.json")[0] == [{"image_id": "a.png", "x": 0.5, "y": 0.5}]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (["x", "y"], [{"value": "x"}, {"value": "y"}]),
        ({"a": "x", "b": 1}, [{"image_id": "a", "value": "x"}, {"image_id": "b", "value": 1}]),
        ({"0": "x", "1": "y"}, [{"image_id": "0", "value": "x"}, {"image_id": "1", "value": "y"}]),
        ({"a": [0.5, 0.5]}, [{"image_id": "a", "value": [0.5, 0.5]}]),
        ({"path": ["a", "b"], "label": [1, 2]}, [{"path": "a", "label": 1}, {"path": "b", "label": 2}]),
        ({"a": {"label": 1}, "b": {"age": 3}}, [{"image_id": "a", "label": 1}, {"image_id": "b", "age": 3}]),
        ({"train": [{"id": 1}], "val": [], "test": [{"id": 2}]}, [{"id": 1, "split": "train"}, {"id": 2, "split": "test"}]),
        ({"Test": [{"id": 2, "split": "test"}]}, [{"id": 2, "split": "Test"}]),
        ([[{"label": "x", "score": 1}]], [{"value": [{"label": "x", "score": 1}]}]),
        ({"a": [{"label": "x", "score": 1}]}, [{"image_id": "a", "value": [{"label": "x", "score": 1}]}]),
        ([], []),
        ({}, []),
    ],
)  # fmt: skip
def test_lists_objects_and_splits_are_read(content, rows):
    table, notes = read(json.dumps(content), "t.json")
    assert [{key: value for key, value in row.items() if value == value} for row in table] == rows
    assert notes == []


def test_a_single_list_under_any_key_is_the_rows_and_is_said():
    rows, notes = read('{"annotations": [{"path": "a"}]}', "t.json")
    assert (rows, notes) == ([{"path": "a"}], ["The rows of t.json are those under 'annotations'."])


def test_json_lines_are_rows_or_values():
    text = '\ufeff{"path": "a\u2028b", "id": 12345678901234567891}\r\n\n{"path": "c"}'
    rows, _ = read(text, "t.jsonl")
    assert (rows[0]["path"], rows[0]["id"]) == ("a\u2028b", 12345678901234567891)
    assert rows[1]["path"] == "c"
    rows, notes = read('{"path": "a"}\n{"path": "b"}\n', "t.json")
    assert (rows, notes) == ([{"path": "a"}, {"path": "b"}], ["t.json holds JSON lines."])
    assert read('"a"\n"b"\n', "t.ndjson")[0] == [{"value": "a"}, {"value": "b"}]


# Parquet


def test_parquet_keeps_digits_lists_structs_and_named_indices(tmp_path):
    image = {"bytes": b"\x89PNG", "path": "a.png"}
    table = pd.DataFrame(
        {
            "id": pd.array([2**60 + 1, None], "Int64"),
            "label": pd.Categorical(["x", "y"]),
            "scores": [[{"label": "x", "score": 0.5}], []],
            "image": [image, None],
            "age": [1.5, np.nan],
        },
        index=pd.Index(["a.png", "b.png"], name="path"),
    )
    table.to_parquet(tmp_path / "t.parquet")
    read_back = read_table_file(tmp_path / "t.parquet")
    assert read_back["path"].tolist() == ["a.png", "b.png"]
    assert read_back["id"].tolist() == [2**60 + 1, None]
    assert read_back["label"].tolist() == ["x", "y"]
    assert read_back["scores"].tolist() == [[{"label": "x", "score": 0.5}], []]
    assert read_back["image"].tolist() == [image, None]
    table.rename_axis(None).to_parquet(tmp_path / "t.parquet")
    assert read_table_file(tmp_path / "t.parquet")["image_id"].tolist() == ["a.png", "b.png"]
    for numbered in (table.reset_index(), table.reset_index()[1:]):
        numbered.to_parquet(tmp_path / "t.parquet")
        assert "image_id" not in read_table_file(tmp_path / "t.parquet")


# missing values


def test_the_words_for_a_missing_value_are_those_of_pandas_and_two_signs():
    assert all(map(is_missing, [*MISSING_WORDS, None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, " nan "]))
    assert not any(map(is_missing, ["no", "0", 0, False, "none of these", [], ["nan"], {}, np.array([1.0, 2.0])]))
    text = "word,n\n" + "".join(f'"{word}",1\n' for word in sorted(MISSING_WORDS - {"-", "?"}))
    assert pd.read_csv(pd.io.common.StringIO(text))["word"].isna().all()
