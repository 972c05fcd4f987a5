"""clipcovid.data.sources: what each kind of data set is listed as, and what is refused."""

import json
import os
import posixpath
import zipfile

import fsspec
import pandas as pd
import pytest
from pictures import cells, listed, mask, picture, pictures
from source_folders import medpix, quex

from clipcovid.config import UserError
from clipcovid.data.images import read_bytes
from clipcovid.data.sources import PART_COLUMN, ColumnsConfig, PhantomConfig, list_source, merge_parts

# COVID-QU-Ex


@pytest.mark.parametrize("below", ["", "Infection Segmentation Data", "Infection Segmentation Data/" * 2])
def test_covidquex_is_found_at_any_depth(tmp_path, below):
    for split, label, kinds in (
        ("Train", "COVID-19", ("lung masks", "infection masks")),
        ("Val", "Non-COVID", ("infection masks",)),
        ("Test", "Normal", ()),
    ):
        quex(tmp_path / below, "x (1)", split, label, kinds)
    (tmp_path / "README.txt").write_text("hello")
    listing = listed("covidquex", tmp_path)
    assert cells(listing, "split", "label") == [("test", "Normal"), ("train", "COVID-19"), ("val", "Non-COVID")]
    table = listing.table.set_index("label")
    assert table["image_id"]["Normal"] == f"{below.rstrip('/')}/Test/Normal/images/x (1).png".lstrip("/")
    assert table["path"]["Normal"] == str(tmp_path / below / "Test/Normal/images/x (1).png")
    assert [bool(table[kind]["COVID-19"]) for kind in ("lung_mask", "infection_mask")] == [True, True]
    assert [bool(table[kind]["Non-COVID"]) for kind in ("lung_mask", "infection_mask")] == [False, True]
    assert [bool(table[kind]["Normal"]) for kind in ("lung_mask", "infection_mask")] == [False, False]
    assert table["infection_mask"]["COVID-19"].endswith("COVID-19/infection masks/x (1).png")
    assert not listing.merge_equal_pixels
    assert listing.dataset == "covidquex"


def test_covidquex_in_lower_case_has_the_classes_own_names(tmp_path):
    quex(tmp_path, "a", "train", "covid-19")
    quex(tmp_path, "b", "VAL", "Non-Covid")
    listing = listed("covidquex", tmp_path)
    assert cells(listing, "split", "label") == [("train", "COVID-19"), ("val", "Non-COVID")]
    assert (listing.table["lung_mask"] != "").all()


def test_covidquex_masks_of_another_ending_are_found(tmp_path):
    picture(tmp_path / "Train/Normal/images/a.jpg")
    mask(tmp_path / "Train/Normal/lung masks/a.PNG")
    assert listed("covidquex", tmp_path).table["lung_mask"][0].endswith("a.PNG")


def test_another_layout_is_not_taken_for_covidquex(tmp_path):
    picture(tmp_path / "Normal/a.png")
    with pytest.raises(UserError, match="--source imagefolder"):
        listed("covidquex", tmp_path)
    quex(tmp_path / "set")
    with pytest.raises(UserError, match="Train is one of its splits: give the folder that Train is in"):
        listed("covidquex", tmp_path / "set/Train")


def test_covidquex_says_what_it_leaves_out_and_which_mask_is_not_clear(tmp_path):
    quex(tmp_path)
    picture(tmp_path / "Train/Normal/b.png")
    mask(tmp_path / "Train/Normal/lung masks/gone.png")
    listing = listed("covidquex", tmp_path)
    assert len(listing.table) == 1
    assert any(note.endswith("nor masks of such: 2, e.g. Train/Normal/b.png.") for note in listing.notes)
    mask(tmp_path / "Train/Normal/lung masks/a.tif")
    with pytest.raises(UserError, match=r"a\.png and .*a\.tif are both the lung_mask of Train/Normal/images/a\.png"):
        listed("covidquex", tmp_path)


def rows(*made):
    """A table for `merge_parts`, from rows of (sha256, part, split, label, lung mask, infection mask)."""
    table = pd.DataFrame(made, columns=["sha256", PART_COLUMN, "split", "label", "lung_mask", "infection_mask"])
    return table.assign(image_id=[str(i) for i in range(len(made))], view="")


def test_parts_merge_by_content_into_the_stricter_split():
    merged, found = merge_parts(
        rows(
            ("a", "infection", "train", "x", "", "ia"),
            ("b", "infection", "val", "x", "", "ib"),
            ("c", "infection", "train", "x", "lc", ""),
            ("a", "lung", "test", "x", "la", ""),
            ("b", "lung", "train", "x", "lb", ""),
            ("d", "lung", "val", "x", "ld", ""),
            ("c", "lung", "train", "x", "other", ""),
        )
    )
    assert found == {"merged": 3, "moved": 2}
    asked = [("0", "test", "la", "ia"), ("1", "val", "lb", "ib"), ("2", "train", "lc", ""), ("5", "val", "ld", "")]
    assert list(map(tuple, merged[["image_id", "split", "lung_mask", "infection_mask"]].to_numpy())) == asked


def test_what_is_not_the_same_image_of_another_part_stays_apart():
    table = rows(
        ("a", "one", "train", "x", "", ""),
        ("a", "one", "test", "x", "", ""),  # a part's own duplicate
        ("b", "one", "train", "x", "", ""),
        ("b", "two", "train", "y", "", ""),  # other label
        ("", "one", "train", "x", "", ""),  # unreadable: nothing is known of the pixels
        ("", "two", "train", "x", "", ""),
    )
    merged, found = merge_parts(table)
    assert found == {"merged": 0, "moved": 0}
    pd.testing.assert_frame_equal(merged, table, check_dtype=False)
    again = pd.concat([table[:2], table[:2].assign(**{PART_COLUMN: "two"})], ignore_index=True)
    assert merge_parts(again)[0]["split"].tolist() == ["train", "test"]


def test_only_parts_of_covidquex_are_parts(tmp_path):
    quex(tmp_path / "Lung Segmentation Data", kinds=["lung masks"])
    assert not listed("covidquex", tmp_path).merge_equal_pixels
    quex(tmp_path / "Infection Segmentation Data")
    assert listed("covidquex", tmp_path).merge_equal_pixels
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text("path,part\na.png,1\nb.png,2\n")
    listing = listed("table", tmp_path / "t.csv")
    assert not listing.merge_equal_pixels
    assert listing.table["part"].tolist() == ["1", "2"]


# image folders


def test_imagefolder_takes_classes_and_splits_from_folders(tmp_path):
    picture(tmp_path / "one/Flu/a.png")
    picture(tmp_path / "one/Flu/deeper/b.png")
    picture(tmp_path / "one/Normal/a.png")
    listing = listed("imagefolder", tmp_path / "one")
    asked = [("Flu/a.png", "Flu"), ("Flu/deeper/b.png", "Flu"), ("Normal/a.png", "Normal")]
    assert cells(listing, "image_id", "label") == asked
    assert set(listing.table["split"]) == {""}
    assert listing.dataset == "one"
    for split in ("Training", "valid", "test"):
        picture(tmp_path / "two" / split / "Flu/a.png")
    listing = listed("imagefolder", tmp_path / "two")
    assert cells(listing, "split", "label") == [("test", "Flu"), ("train", "Flu"), ("val", "Flu")]


def test_imagefolder_passes_over_hidden_files_only(tmp_path):
    for name in ("Flu/a.png", "Flu/._a.png", ".thumbs/b.png", "__MACOSX/Flu/._a.png", "loose.png", "Flu/notes.txt"):
        picture(tmp_path / name, format="PNG")
    assert cells(listed("imagefolder", tmp_path), "image_id", "label") == [("Flu/a.png", "Flu"), ("loose.png", "")]


def test_imagefolder_follows_links_and_survives_a_circle(tmp_path):
    picture(tmp_path / "elsewhere/flu/a.png")
    picture(tmp_path / "set/Normal/b.png")
    (tmp_path / "set/Flu").symlink_to(tmp_path / "elsewhere/flu")
    (tmp_path / "set/Normal/c.png").symlink_to(tmp_path / "set/Normal/b.png")
    (tmp_path / "set/Normal/round").symlink_to(tmp_path / "set")
    listing = listed("imagefolder", tmp_path / "set")
    assert cells(listing, "image_id", "label") == [("Flu/a.png", "Flu"), ("Normal/b.png", "Normal")]
    assert listing.notes == ("1 rows name a file again (1 files): each file is one image.",)


def test_metadata_csv_is_joined_by_file_name(tmp_path):
    for name in ("Flu/a.png", "Flu/b.png", "Normal/c.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.csv").write_text(
        "file_name,label,patient_id,view,age,path\n"
        "./Flu/a.png,Influenza,p1,PA,50,x\nNormal\\c.png,,p2,AP,,x\nFlu/gone.png,Flu,p3,,,x\nFlu/gone.png,Flu,p3,,,x\n"
    )
    listing = listed("imagefolder", tmp_path)
    assert cells(listing, "image_id", "label", "patient_id", "view", "age") == [
        ("Flu/a.png", "Influenza", "p1", "PA", "50"),
        ("Flu/b.png", "Flu", "", "", ""),
        ("Flu/gone.png", "Flu", "p3", "", ""),
        ("Normal/c.png", "Normal", "p2", "AP", ""),
    ]
    (tmp_path / "metadata.csv").write_text("name,finding\nFlu/a.png,Sick\n")
    with pytest.raises(UserError, match=r"no column file_name .*--columns.path \(name, finding\)"):
        listed("imagefolder", tmp_path)
    asked = [("Flu/a.png", "Sick"), ("Flu/b.png", "Flu"), ("Normal/c.png", "Normal")]
    assert cells(listed("imagefolder", tmp_path, path="name", label="finding"), "image_id", "label") == asked


def test_a_metadata_csv_that_contradicts_itself_is_refused(tmp_path):
    picture(tmp_path / "Flu/a.png")
    (tmp_path / "metadata.csv").write_text("file_name,view\nFlu/a.png,PA\nFlu/a.png,AP\n")
    with pytest.raises(UserError, match=r"different things of Flu/a\.png"):
        listed("imagefolder", tmp_path)


def test_a_folder_without_classes_is_refused(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"no class folders .*\(<Class>/image\.png\)\.$"):
        listed("imagefolder", tmp_path)
    (tmp_path / "t.csv").write_text("path,label\na.png,x\n")
    with pytest.raises(UserError, match=r"no class folders .*--source table --root .*/t\.csv\.$"):
        listed("imagefolder", tmp_path)


# tables

ROWS = [
    {"path": "a.png", "label": "Flu", "patient_id": "50", "caption": 'a "quoted", long\ntext ü\u2028x', "age": "61"},
    {"path": "sub/b.png", "label": "Normal", "patient_id": "", "caption": "", "age": ""},
    {"path": "/far/c.png", "label": "", "patient_id": "7", "caption": "N/A", "age": "3"},
    {"path": "s3://bucket/d.png", "label": "Flu", "patient_id": "12345678901234567891", "caption": "ok", "age": "4.5"},
]


def with_numbers(row):
    """The row as JSON has it: numbers, nulls."""
    number = {"": None, "4.5": 4.5}
    return row | {key: number[row[key]] if row[key] in number else int(row[key]) for key in ("patient_id", "age")}


def write_table(path):
    table, numbers = pd.DataFrame(ROWS), [with_numbers(row) for row in ROWS]
    match path.suffix:
        case ".csv" | ".tsv":
            table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",", encoding="utf-8-sig")
        case ".json" if path.stem == "list":
            path.write_text(json.dumps(numbers))
        case ".json":
            path.write_text(json.dumps({f"case {i}": row for i, row in enumerate(numbers)}))
        case ".jsonl":
            path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in numbers), encoding="utf-8")
        case ".parquet":
            table.to_parquet(path)
    return path


def test_every_kind_of_table_gives_the_same_manifest(tmp_path):
    first = listed("table", write_table(tmp_path / "t.csv"))
    assert first.table["path"].tolist() == [
        str(tmp_path / "a.png"),
        str(tmp_path / "sub/b.png"),
        "/far/c.png",
        "s3://bucket/d.png",
    ]
    assert first.table["patient_id"].tolist() == [row["patient_id"] for row in ROWS]
    assert first.table["age"].tolist() == [row["age"] for row in ROWS]
    assert first.table["caption"].tolist() == [ROWS[0]["caption"], "", "", "ok"]
    assert first.table["image_id"].tolist() == [row["path"] for row in ROWS]
    assert first.dataset == "t"
    for name in ("t.tsv", "list.json", "object.json", "t.jsonl", "t.parquet", "t.CSV"):
        if name == "t.CSV":
            (tmp_path / name).write_bytes((tmp_path / "t.csv").read_bytes())
        other = listed("table", write_table(tmp_path / name))
        if name == "object.json":
            assert other.table["image_id"].tolist() == ["case 0", "case 1", "case 2", "case 3"]
            other.table["image_id"] = first.table["image_id"]
        pd.testing.assert_frame_equal(other.table, first.table, check_dtype=False, obj=name)


def test_numbers_of_a_parquet_file_keep_their_digits(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    ids = [2**60 + 1, None, 2**60 + 3]
    table = pd.DataFrame(
        {"path": ["a.png", "b.png", "c.png"], "patient_id": pd.array(ids, "Int64"), "age": [50.0, None, 1.5]}
    )
    table.to_parquet(tmp_path / "t.parquet")
    found = listed("table", tmp_path / "t.parquet").table
    assert found["patient_id"].tolist() == [str(ids[0]), "", str(ids[2])]
    assert found["age"].tolist() == ["50", "", "1.5"]


def test_columns_are_renamed_even_crosswise(tmp_path):
    pictures(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text(" image ,finding,label,view,age\na.png,Flu,reader 1,PA,3\n")
    row = listed("table", tmp_path / "t.csv", path="image", label="finding").table.iloc[0]
    assert (row["image_id"], row["label"], row["view"], row["age"]) == ("a.png", "Flu", "PA", "3")
    assert not {"image", "finding"} & set(row.index)
    row = listed("table", tmp_path / "t.csv", path="image", label="view", view="label").table.iloc[0]
    assert (row["label"], row["view"]) == ("PA", "reader 1")


def test_names_that_differ_in_case_and_signs_alone_are_read_and_said(tmp_path):
    pictures(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("Path,Patient ID,LABEL,Label\na.png,7,x,y\n")
    listing = listed("table", tmp_path / "t.csv")
    assert cells(listing, "image_id", "patient_id", "label", "LABEL") == [("a.png", "7", "", "x")]
    assert any("Path is read as path, Patient ID is read as patient_id." in note for note in listing.notes)
    (tmp_path / "t.csv").write_text("path,patient_id,Patient ID\na.png,7,8\n")
    listing = listed("table", tmp_path / "t.csv")
    assert cells(listing, "patient_id", "Patient ID") == [("7", "8")]
    assert listing.notes == ()


def test_columns_that_may_be_those_that_lack_are_named(tmp_path):
    pictures(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("path,class,target,subject_id,set\na.png,x,1,7,train\n")
    listing = listed("table", tmp_path / "t.csv")
    for words in (
        "no column label: is it class or target? --columns.label",
        "no column patient_id: is it subject_id? --columns.patient-id",
        "no column split: is it set? --columns.split",
    ):
        assert any(words in note for note in listing.notes), words
    listing = listed("table", tmp_path / "t.csv", label="class", patient_id="subject_id", split="set")
    assert cells(listing, "label", "patient_id", "split") == [("x", "7", "train")]
    assert listing.notes == ()


def test_classes_that_are_columns_of_0_and_1_are_hinted_at(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    table = tmp_path / "t.csv"
    for one in ("1", "1.0"):
        table.write_text(f"path,COVID,Normal,age,flag\na.png,{one},0,1,0\nb.png,0,{one},60,0\n")
        assert listed("table", table).notes == (
            f"{table} has no column label, and COVID, Normal hold 0 and 1 alone: if they are the classes, write the name of "
            "each image's one into a column label.",
        )
    table.write_text("path,label,COVID,Normal\na.png,x,1,0\nb.png,y,0,1\n")
    assert listed("table", table).notes == ()
    table.write_text("path,sex\na.png,1\nb.png,0\n")
    assert listed("table", table).notes == ()


def test_a_row_of_several_images_is_a_row_for_each(tmp_path):
    """As R2Gen's annotation.json names the views of a study."""
    pictures(tmp_path, "r1/0.png", "r1/1.png", "r2/0.png")
    content = {
        "train": [{"id": "r1", "report": "clear", "image_path": ["r1/0.png", "r1/1.png"], "split": "train"}],
        "test": [{"id": "r2", "report": "mass", "image_path": ["r2/0.png"], "split": "test"}],
    }
    (tmp_path / "annotation.json").write_text(json.dumps(content))
    listing = listed("table", tmp_path / "annotation.json", path="image_path", caption="report")
    assert cells(listing, "image_id", "patient_id", "caption", "split") == [
        ("r1/0.png", "r1", "clear", "train"),
        ("r1/1.png", "r1", "clear", "train"),
        ("r2/0.png", "", "mass", "test"),
    ]
    assert any("1 rows of annotation.json name several images" in note for note in listing.notes)


def test_an_unknown_column_is_named_with_those_that_there_are(tmp_path):
    (tmp_path / "t.csv").write_text("image,finding\na.png,Flu\n")
    with pytest.raises(UserError, match=r"no column 'diagnosis'; it has: image, finding\."):
        listed("table", tmp_path / "t.csv", path="image", label="diagnosis")
    with pytest.raises(UserError, match=r"no column named path.*--columns.path \(image, finding\)"):
        listed("table", tmp_path / "t.csv")
    picture(tmp_path / "Flu/a.png")
    with pytest.raises(UserError, match=r"--columns\.\* .*covidquex has none"):
        listed("covidquex", tmp_path, label="x")


def test_rows_without_a_usable_path_are_refused_one_by_one(tmp_path):
    pictures(tmp_path, "ok.png", "..fine/a.png", "sub/b.png", "ok2.png", "m.png")
    paths = ["ok.png", "", "../up.png", "a/../../up.png", "..fine/a.png", "sub\\b.png", "x/../ok2.png", "..\\up.png"]
    (tmp_path / "t.csv").write_text("path,lung_mask\n" + "".join(f"{path},m.png\n" for path in paths))
    listing = listed("table", tmp_path / "t.csv")
    assert listing.table["image_id"].tolist() == ["ok.png", "..fine/a.png", "sub/b.png", "ok2.png"]
    assert listing.table["path"].tolist() == [str(tmp_path / name) for name in listing.table["image_id"]]
    reasons = dict(listing.refused.to_numpy())
    assert set(reasons) == {"row 2", "../up.png", "a/../../up.png", "..\\up.png"}
    assert reasons["row 2"] == "no image path"
    assert reasons["../up.png"].startswith("the path leaves the data set's folder")
    (tmp_path / "t.csv").write_text("path,lung_mask\nok.png,../m.png\n")
    listing = listed("table", tmp_path / "t.csv")
    assert (len(listing.table), listing.table["lung_mask"][0]) == (1, "")
    assert listing.refused["path"].tolist() == ["../m.png"]


def test_a_file_listed_twice_is_one_image_and_an_id_of_several_files_is_told_apart(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png", format="PNG")
    (tmp_path / "t.csv").write_text(
        "path,label,image_id\na.png,x,1\n./a.png,x,1\nb.png,y,1\nc.png,z,1#2\nd/../a.png,,2\n"
    )
    listing = listed("table", tmp_path / "t.csv")
    assert cells(listing, "image_id", "label") == [("1", "x"), ("1#2", "y"), ("1#2#2", "z")]
    assert listing.notes == (
        "2 rows name a file again (1 files): each file is one image.",
        "1 files have the image_id of another: they are told apart, as 1#2.",
    )


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("t.csv", "path,label\nü.png,x\n".encode("latin-1"), r"not UTF-8 text \(line 2\): save it as UTF-8"),
        ("t.csv", b"", r"t\.csv is empty"),
        ("t.csv", b"path,label\n", "lists no images"),
        ("t.csv", b"path,label\na,b\na,b,c\n", "line 3: 3 fields, where the header has 2"),
        ("t.csv", b"image;label\na;b\n", r"no column named path.*\(image, label\)"),
        ("t.csv", b"path,split\na.png,fold 1\n", r"Unknown splits \['fold 1'\]"),
        ("t.json", b"[1, 2]", "no column named path"),
        ("t.xlsx", b"PK", r"t\.xlsx: a table must be \.csv, \.tsv"),
    ],
)
def test_a_table_that_cannot_be_read_is_a_sentence(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match) as error:
        listed("table", tmp_path / name)
    assert "Traceback" not in str(error.value)


def test_sizes_and_hashes_of_a_table_are_not_believed(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text("path,width,height,sha256\na.png,unknown,12.5,abc\nb.png,,,abc\n")
    table = listed("table", tmp_path / "t.csv").table
    assert table[["width", "height", "sha256"]].to_numpy().tolist() == [[0, 0, ""]] * 2


def test_half_a_surrogate_pair_breaks_nothing(tmp_path):
    pictures(tmp_path, "a.png")
    (tmp_path / "t.json").write_text('[{"path": "a.png", "caption": "lungs \\ud83d clear", "label": "x"}]')
    assert listed("table", tmp_path / "t.json").table["caption"][0] == "lungs ? clear"


# MedPix 2.0


def test_medpix2_joins_cases_and_knows_placeholders(tmp_path):
    placeholders = ["Replace this - DESCRIPTION OF RADIOLOGY IMAGE OR FINDING.", "N/A", "", "n/a", "-", " none ", None]
    medpix(tmp_path, train=[("MPX1", "pelvis"), *(("MPX2", text) for text in placeholders)], dev=[("MPX3", "x")])
    listing = listed("medpix2", tmp_path)
    table = listing.table
    assert table["split"].value_counts().to_dict() == {"train": 8, "val": 1}
    assert sorted(table["caption"])[-2:] == ["pelvis", "x"]
    assert listing.notes == (
        "The class of an image is its Type (CT), not the diagnosis, which is a column of its own.",
        "5 captions are placeholders (N/A and the like), and are left out.",
    )
    assert (table["caption"] == "").sum() == len(placeholders)
    row = table[table["patient_id"] == "MPX1"].iloc[0]
    assert (row["label"], row["view"], row["age"], row["sex"]) == ("CT", "Axial", "27", "male")
    assert (row["title"], row["diagnosis"], row["location"], row["location_category"]) == (
        "A case",
        "Stroke",
        "Head",
        "Brain",
    )
    assert row["image_id"] == "images/MPX1_train0.jpg"
    assert set(table.loc[table["patient_id"] != "MPX1", "title"]) == {""}


def test_medpix2_lists_images_that_are_missing(tmp_path):
    medpix(tmp_path, test=[("MPX1", "a"), ("MPX1", "b")])
    (tmp_path / "images/MPX1_test1.jpg").unlink()
    assert cells(listed("medpix2", tmp_path), "image_id") == [("images/MPX1_test0.jpg",), ("images/MPX1_test1.png",)]


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("descriptions_train.jsonl", '{"Type": "CT"', r"descriptions_train\.jsonl, line 1: not valid JSON"),
        ("descriptions_train.jsonl", '\n{"Type": "CT", "U_id": "a"}', r"line 2: has no image"),
        ("Case_topic.json", "[", "not a JSON list of cases"),
        ("Case_topic.json", '{"MPX1": {}}', "not a JSON list of cases"),
        ("Case_topic.json", "[{}]", "not a JSON list of cases"),
    ],
)
def test_medpix2_names_the_broken_file(tmp_path, file, content, match):
    medpix(tmp_path, train=[("MPX1", "a")])
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=match):
        listed("medpix2", tmp_path)


def test_medpix2_wants_its_files(tmp_path):
    picture(tmp_path / "images/a.png")
    with pytest.raises(UserError, match=r"no descriptions_<split>\.jsonl"):
        listed("medpix2", tmp_path)


def nih(root):
    """A small ChestX-ray14, in the layout of the archive."""
    images = ["00000001_000.png", "00000001_001.png", "00000002_000.png", "00000003_000.png", "00000004_000.png"]
    for at, name in enumerate(images[:4]):
        picture(root / f"images_{at % 2 + 1:03}" / "images" / name)
    findings = ["Cardiomegaly", "Infiltration|Pneumonia", "No Finding", "Effusion|Infiltration", "No Finding"]
    lines = [
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width"
    ]
    lines += [f"{name},{what},0,{int(name[:8])},58,M,PA,2682" for name, what in zip(images, findings, strict=True)]
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines))
    (root / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_001.png,Pneumonia,10.5,20,30,40,,,\n"
        "00000001_001.png,Infiltrate,1,2,3,4,,,\n"
    )
    (root / "train_val_list.txt").write_text("\n".join(images[:2] + images[3:]))
    (root / "test_list.txt").write_text(images[2])
    return root


def test_nih14_has_patients_boxes_the_official_test_split_and_our_classes_by_rule(tmp_path):
    table = listed("nih14", nih(tmp_path)).table.set_index("path", drop=False)
    table.index = [posixpath.basename(path) for path in table.index]
    assert len(table) == 4  # the fifth is in a part of the archive that is not here
    assert table["label"].to_dict() == {
        "00000001_000.png": "",
        "00000001_001.png": "Non-COVID",
        "00000002_000.png": "Normal",
        "00000003_000.png": "",
    }
    assert sorted(table["patient_id"]) == ["1", "1", "2", "3"]
    assert table["split"].to_dict()["00000002_000.png"] == "test"
    assert (table["split"] == "").sum() == 3
    boxes = json.loads(table.loc["00000001_001.png", "boxes"])
    assert boxes[0] == {"label": "Pneumonia", "x": 10.5, "y": 20, "width": 30, "height": 40}
    assert len(boxes) == 2
    assert table.loc["00000001_001.png", "findings"] == "Infiltration|Pneumonia"
    assert (table.loc["00000002_000.png", "view"], table.loc["00000002_000.png", "age"]) == ("PA", "58")


def test_nih14_says_what_is_not_there_and_refuses_what_is_there_twice(tmp_path):
    listing = listed("nih14", nih(tmp_path))
    missing = "Images named in Data_Entry_2017.csv that are not there: 1 of 5, e.g. 00000004_000.png."
    classes = (
        "Findings are read as classes: No Finding alone as Normal (1 images), Pneumonia with whatever else as Non-COVID (1); "
        "2 images with other findings have no label."
    )
    assert listing.notes == (missing, classes, "Passed over as no images: 1 .txt.")
    twice = tmp_path / "copies/00000001_000.png"
    twice.parent.mkdir()
    twice.write_bytes((tmp_path / "images_001/images/00000001_000.png").read_bytes())
    listing = listed("nih14", tmp_path)
    assert len(listing.table) == 4
    assert any(note.startswith("Images that are there more than once, of which the first") for note in listing.notes)
    picture(twice, size=(64, 64))
    with pytest.raises(UserError, match=r"copies/00000001_000\.png and images_001/.* may both be the image named in"):
        listed("nih14", tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/test_list.txt").write_text("00000001_000.png")
    twice.unlink()
    with pytest.raises(UserError, match=r"new/test_list\.txt and test_list\.txt, which differ"):
        listed("nih14", tmp_path)


def test_nih14_without_its_test_list_or_images(tmp_path):
    (nih(tmp_path) / "test_list.txt").unlink()
    image = tmp_path / "images_001/images/00000001_000.png"
    image.rename(image.with_suffix(".jpg"))
    listing = listed("nih14", tmp_path)
    assert len(listing.table) == 4
    assert any("no test_list.txt" in note for note in listing.notes)
    assert any("spell in another way: 1, e.g. 00000001_000.png is read as images_001" in note for note in listing.notes)
    for file in tmp_path.rglob("0*"):
        file.unlink()
    with pytest.raises(UserError, match=r"none of the 5 images named in Data_Entry_2017\.csv"):
        listed("nih14", tmp_path)


def test_nih14_wants_its_tables(tmp_path):
    picture(tmp_path / "images/a.png")
    with pytest.raises(UserError, match=r"no Data_Entry_2017\.csv"):
        listed("nih14", tmp_path)
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("Image Index,Patient ID\na.png,1\n")
    with pytest.raises(UserError, match="lacks the columns Finding Labels, View Position"):
        listed("nih14", tmp_path)


# roots


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()


def test_uris_are_listed_and_can_be_opened(tmp_path, memory):
    file = picture(tmp_path / "set/Flu/a.png")
    memory.pipe("/set/Flu/a.png", file.read_bytes())
    memory.pipe("/set/t.csv", b"path,label\nFlu/a.png,Flu\n")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(file, "set/Flu/a.png")
    roots = ["memory://set", (tmp_path / "set").as_uri(), f"zip://set::{tmp_path / 'set.zip'}", f"{tmp_path}/set/"]
    for root in roots:
        listing = listed("imagefolder", root)
        assert cells(listing, "image_id", "label") == [("Flu/a.png", "Flu")]
        assert listing.dataset == "set"
        assert read_bytes(listing.table["path"][0]) == file.read_bytes()
    listing = listed("table", "memory://set/t.csv")
    assert read_bytes(listing.table["path"][0]) == file.read_bytes()


def test_odd_names_are_found_and_read(tmp_path):
    names = ["a[1].png", "a*.png", "a::b.png", "~.png", "#1.png", "%20.png", "a?.png", " b .png", "ü.png", "'.png"]
    for i, name in enumerate(names):
        picture(tmp_path / "Flu" / name, i)
    table = listed("imagefolder", tmp_path).table
    assert set(table["image_id"]) == {f"Flu/{name}" for name in names}
    assert len({read_bytes(path) for path in table["path"]}) == len(names)


def test_a_file_name_that_is_no_utf8_does_not_stop_the_listing(tmp_path):
    picture(tmp_path / "Flu/a.png").rename(tmp_path / "Flu" / os.fsdecode(b"\xff.png"))
    picture(tmp_path / "Flu/b.png")
    assert cells(listed("imagefolder", tmp_path), "image_id") == [("Flu/b.png",), ("Flu/\ufffd.png",)]


def test_the_state_of_the_files_changes_with_size_and_time(tmp_path):
    file = picture(tmp_path / "Flu/a.png")
    (tmp_path / "README.md").write_text("read me")
    states = [listed("imagefolder", tmp_path).files_digest]
    (tmp_path / "README.md").write_text("read me now")
    assert listed("imagefolder", tmp_path).files_digest == states[0]
    picture(file, size=(48, 40))
    states.append(listed("imagefolder", tmp_path).files_digest)
    file.touch()
    states.append(listed("imagefolder", tmp_path).files_digest)
    assert len(set(states)) == 3


@pytest.mark.parametrize(
    ("source", "root", "match"),
    [
        (
            "imagenet",
            "x",
            "--source 'imagenet' is unknown: use covidquex, .*, nih14, table, phantom",
        ),
        ("covidquex", "", "--source covidquex needs --root"),
        ("phantom", "{}", r"--source phantom, the default, draws its images and takes no --root.*\(covidquex, "),
        ("covidquex", "{}/nothing", "nothing does not exist"),
        ("covidquex", "{}/t.csv", "is a file; this source wants the data set's folder"),
        ("table", "{}", "is a folder; --source table wants the table's file"),
        ("imagefolder", "{}/empty", "no class folders"),
        ("table", "nonsense://x/t.csv", "--root nonsense://x/t.csv can't be opened"),
        ("imagefolder", "zip://::{}/t.csv", "can't be opened"),
    ],
)
def test_a_root_that_does_not_fit_is_a_sentence(tmp_path, source, root, match):
    (tmp_path / "t.csv").write_text("path\na.png\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=match):
        listed(source, root.format(tmp_path))


def test_phantoms_are_drawn_once(tmp_path):
    how = PhantomConfig(images=6, size=48)
    first = list_source("phantom", "", ColumnsConfig(), how, tmp_path / "drawn")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "drawn").rglob("*.png")}
    again = list_source("phantom", "", ColumnsConfig(), how, tmp_path / "drawn")
    assert times == {path: path.stat().st_mtime_ns for path in times}
    pd.testing.assert_frame_equal(first.table, again.table)
    assert (first.dataset, len(first.table)) == ("phantom", 6)
    assert (first.table[["label", "patient_id", "caption", "lung_mask"]] != "").all(axis=None)


def test_an_absolute_path_below_the_table_has_the_same_id_as_a_relative_one(tmp_path):
    """Or the split hash would tell where on a machine the data stand."""
    scan = picture(tmp_path / "images" / "a.png")
    tables = []
    for path in (scan, scan.relative_to(tmp_path)):
        (tmp_path / "table.csv").write_text(f"path,label\n{path},Normal\n")
        tables.append(listed("table", tmp_path / "table.csv").table)
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["image_id"].tolist() == ["images/a.png"]


OPENI = """<?xml version="1.0"?><eCitation><MedlineCitation><Article><Abstract>
<AbstractText Label="FINDINGS">Clear lungs.</AbstractText><AbstractText Label="IMPRESSION">No <b>acute</b> disease.
</AbstractText></Abstract></Article></MedlineCitation><MeSH><major>{}</major></MeSH>
<parentImage id="CXR1_1_IM-0001-3001"/><parentImage id="CXR1_1_IM-0001-4001"/></eCitation>"""


def test_openis_reports_are_captions(tmp_path):
    (tmp_path / "ecgen-radiology").mkdir()
    (tmp_path / "ecgen-radiology" / "1.xml").write_text(OPENI.format("normal"))
    (tmp_path / "ecgen-radiology" / "2.xml").write_text(OPENI.format("Cardiomegaly/mild").replace("CXR1", "CXR2"))
    for number in (1, 2):
        for view in (3001, 4001):
            picture(tmp_path / "png" / f"CXR{number}_1_IM-0001-{view}.png")
    table = listed("iuxray", tmp_path).table
    assert table["label"].tolist() == ["Normal", "Normal", "", ""]
    assert table["patient_id"].tolist() == ["1", "1", "2", "2"]
    assert set(table["caption"]) == {"Clear lungs. No acute disease."}
    assert table["mesh"].tolist()[2] == "Cardiomegaly/mild"
    (tmp_path / "ecgen-radiology" / "2.xml").write_text("<open>")
    with pytest.raises(UserError, match="not valid XML"):
        listed("iuxray", tmp_path)


def test_kaggles_tables_of_openi(tmp_path):
    reports = "uid,MeSH,Problems,image,indication,comparison,findings,impression"
    (tmp_path / "indiana_reports.csv").write_text(
        f"{reports}\n1,normal,normal,,,,Clear.,None acute.\n2,Opacity,,,,,,\n"
    )
    (tmp_path / "indiana_projections.csv").write_text(
        "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n2,2_IM-0002-1001.dcm.png,Lateral\n"
    )
    picture(tmp_path / "images" / "1_IM-0001-4001.dcm.png")
    picture(tmp_path / "images" / "2_IM-0002-1001.dcm.png")
    table = listed("iuxray", tmp_path).table
    assert table["caption"].tolist() == ["Clear. None acute.", ""]
    assert table["view"].tolist() == ["Frontal", "Lateral"]
    assert all(path.endswith(".dcm.png") for path in table["path"])
    with pytest.raises(UserError, match="indiana_reports"):
        listed("iuxray", tmp_path / "images")
    picture(tmp_path / "small" / "1_IM-0001-4001.dcm.png", size=(24, 24))
    with pytest.raises(UserError, match=r"images/1_IM-0001-4001\.dcm\.png and small/1_IM-.* may both be the image"):
        listed("iuxray", tmp_path)


def test_reports_and_images_of_openi_that_miss_each_other_are_counted(tmp_path):
    for number in (1, 2):
        (tmp_path / f"{number}.xml").write_text(OPENI.format("normal").replace("CXR1", f"CXR{number}"))
    (tmp_path / "3.xml").write_text("<eCitation/>")
    picture(tmp_path / "CXR1_1_IM-0001-3001.png")
    listing = listed("iuxray", tmp_path)
    assert "Images named in the reports that are not there: 3 of 4, e.g. CXR1_1_IM-0001-4001." in listing.notes
    assert "Reports without images, left out: 1." in listing.notes
    assert len(listing.table) == 4  # what is missing is quarantined
