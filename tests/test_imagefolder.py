"""clipcovid.data.sources: what folders say of the images in them, and what tables in them say."""

import pandas as pd
import pytest
from covidx_lists import COLUMNS, LISTS, ROWS, covidx
from pictures import cells, listed, pictures

from clipcovid.config import UserError


def rows_of(root, *columns, **how):
    return cells(listed("imagefolder", root, **how), *columns)


def refused(root, match):
    with pytest.raises(UserError, match=match):
        listed("imagefolder", root)


# masks


def relative(root, listing, *columns):
    return [tuple(text.removeprefix(f"{root}/") for text in row) for row in cells(listing, *columns)]


def test_masks_of_the_radiography_database_are_lung_masks(tmp_path):
    names = ["COVID/images/COVID-1.png", "COVID/masks/COVID-1.png", "Normal/images/Normal-1.png"]
    pictures(tmp_path, *names, "Normal/masks/Normal-1.png", "Viral Pneumonia/images/1.png")
    (tmp_path / "COVID.metadata.xlsx").write_bytes(b"PK")
    listing = listed("imagefolder", tmp_path)
    assert relative(tmp_path, listing, "image_id", "label", "lung_mask", "infection_mask") == [
        ("COVID/images/COVID-1.png", "COVID", "COVID/masks/COVID-1.png", ""),
        ("Normal/images/Normal-1.png", "Normal", "Normal/masks/Normal-1.png", ""),
        ("Viral Pneumonia/images/1.png", "Viral Pneumonia", "", ""),
    ]
    assert any("read as masks of the lungs, as the COVID-19 Radiography Database has them" in n for n in listing.notes)
    assert "Files read as masks, by their names: 2, e.g. COVID/masks/COVID-1.png." in listing.notes
    assert "Passed over as no images: 1 .xlsx." in listing.notes


def test_a_backslash_in_the_name_of_a_folder_is_no_slash(tmp_path):
    names = ["COVID/1.png", r"50% \textbf{a}~^#/2.png"]
    pictures(tmp_path, *names)
    listing = listed("imagefolder", tmp_path)
    assert sorted(relative(tmp_path, listing, "image_id", "label", "path")) == sorted(
        (name, name.partition("/")[0], name) for name in names
    )
    assert listing.refused.empty


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        ("A/lung masks/x.png", "lung_mask"),
        ("A/Lung_Masks/x_mask.PNG", "lung_mask"),
        ("A/infection masks/x.png", "infection_mask"),
        ("lung masks/A/x.png", "lung_mask"),
        ("A/x_lung_mask.png", "lung_mask"),
        ("A/x-infection-mask.png", "infection_mask"),
        ("A/masks/lung/x.png", "lung_mask"),
        ("A/lung_masks/infection x.png", "lung_mask"),
    ],
)
def test_masks_go_to_their_images(tmp_path, mask, kind):
    image = "A/infection x.png" if "infection x" in mask else "A/x.png"
    pictures(tmp_path, image, "B/y.png", mask)
    assert relative(tmp_path, listed("imagefolder", tmp_path), "image_id", kind) == [(image, mask), ("B/y.png", "")]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (
            ["A/images/1.png", "A/masks/1.png"],
            r"A/masks/1\.png is a mask of A/images/1\.png, but is it of lungs or inf",
        ),
        (["COVID/x.png", "COVID/x_mask.png"], r"is a mask of COVID/x\.png, but is it"),
        (["A/x.png", "A/x_mask.png"], r"A/x_mask\.png is a mask of A/x\.png, but is it"),
        (["images/1.png", "masks/1.png"], "but is it of lungs or infections"),
        (["A/1.png", "B/1.png", "lung masks/1.png"], r"lung masks/1\.png may be the mask of A/1\.png or of B/1\.png"),
        (["A/x_mask.png", "B/y_mask.png"], "A/x_mask.png is called a mask, and is beside no image|B/y_mask"),
        (["A/x.png", "A/lung masks/x.png", "A/x_lung_mask.png"], r"are both a lung_mask of A/x\.png"),
        (
            ["A/images/1.png", "A/labels/1.png"],
            "A/labels has files of the same names as A/images. If they are masks, call",
        ),
        (["train/images/1.png", "train/labels/1.png"], "train/labels has files of the same names"),
    ],
)
def test_masks_that_are_not_clear_are_refused(tmp_path, names, match):
    pictures(tmp_path, *names, "C/c.png")
    refused(tmp_path, match)


def test_people_with_masks_are_classes(tmp_path):
    pictures(tmp_path, "with_mask/1.png", "without_mask/1.png", "without_mask/damask.png")
    assert {row[0] for row in rows_of(tmp_path, "label")} == {"with_mask", "without_mask"}


def test_masks_of_no_image_are_left_out_and_counted(tmp_path):
    pictures(tmp_path, "A/1.png", "A/lung masks/1.png", "A/lung masks/2.png", "B/1.png")
    listing = listed("imagefolder", tmp_path)
    assert len(listing.table) == 2
    assert any(note.endswith("beside no image of their name: 1, e.g. A/lung masks/2.png.") for note in listing.notes)


def test_masks_that_a_table_names_are_masks(tmp_path):
    pictures(tmp_path, "A/1.png", "A/drawn/1.png", "B/1.png")
    (tmp_path / "metadata.csv").write_text("file_name,infection_mask\nA/1.png,A/drawn/1.png\nB/1.png,\n")
    listing = listed("imagefolder", tmp_path)
    assert relative(tmp_path, listing, "image_id", "infection_mask") == [("A/1.png", "A/drawn/1.png"), ("B/1.png", "")]


# classes and splits


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["train/A/1.png", "validate/A/2.png", "TEST/B/3.png"], [("A", "train"), ("A", "val"), ("B", "test")]),
        (["A/train/1.png", "A/Test/2.png", "B/train/3.png"], [("A", "test"), ("A", "train"), ("B", "train")]),
        (["train_images/A/1.png", "Test set/B/2.png"], [("A", "train"), ("B", "test")]),
        (["images/A/1.png", "images/B/2.png"], [("A", ""), ("B", "")]),
        (["train/images/A/1.png", "test/images/B/2.png"], [("A", "train"), ("B", "test")]),
        (["train/A/1.png", "train/B/1.png", "test/1.png"], [("", "test"), ("A", "train"), ("B", "train")]),
        (["A/1.png", "B/deep/er/1.png"], [("A", ""), ("B", "")]),
        (["A test/1.png", "Devic/1.png"], [("A test", ""), ("Devic", "")]),
    ],
)
def test_folders_are_classes_and_splits(tmp_path, names, rows):
    pictures(tmp_path, *names)
    assert rows_of(tmp_path, "label", "split") == rows


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (
            ["train/A/1.png", "test/A/1.png", "extra/A/1.png"],
            r"called as splits \(test, train\) beside .* not \(extra\)",
        ),
        (["train/A/1.png", "x/train/A/1.png", "x/test/A/1.png"], r"give --root .*/x, which has splits itself, or move"),
        (["A/train/1.png", "A/2.png", "B/train/3.png"], r"have splits in them \(train\), and A is none"),
        (["A/train/1.png", "B/other/3.png"], "and B/other is none"),
        (["x/train/A/1.png", "x/test/B/1.png"], r"two layers of folders \(x/.*give --root .*/x\."),
        (["x/train/A/1.png", "y/train/B/1.png"], r"either may be the classes: say which it is in a metadata\.csv"),
        (["x/y/Test/A/1.png", "B/1.png"], r"splits deep below it \(x/y/Test\): give .*, --root .*/x/y, or say"),
        (["x/A/1.png", "x/B/1.png"], r"one class folder, x, with further folders in it \(A, B\).*give --root .*/x;"),
        (["x/y/A/1.png", "x/y/B/1.png"], r"give --root .*/x/y;"),
        (["DICOMDIR", "PA0/1.png", "PA1/1.png"], "is a DICOM disc"),
        (
            ["site1/COVID/1.png", "site1/Normal/2.png", "site2/COVID/3.png", "site2/Normal/4.png"],
            r"same folders \(COVID, Normal\) in its folders site1, site2, .* COVID, Normal are, move them a level up, "
            r"COVID/site1; if site1, site2 are, move the images up into them; or say what is what in a metadata\.csv",
        ),
        ([f"train/fold{at}/{name}/images/1.png" for at in range(5) for name in "AB"], r"\(A, B\) in its folders fold0"),
        (
            [f"s{at}/{name}/1.png" for at in range(6) for name in "ABC"[: 3 - at % 2]],
            r"\(A, B\) in its folders s0, s1, s2, s3, …,",
        ),
    ],
)
def test_folders_that_are_half_understood_are_refused(tmp_path, names, match):
    pictures(tmp_path, *names, format="PNG")
    refused(tmp_path, match)


@pytest.mark.parametrize(
    "names",
    [
        [f"{label}/p{at}{label}/{image}.png" for label in "AB" for at in range(6) for image in range(2)],
        [
            f"{label}/p{at}/1.png" for label, ids in (("A", range(9)), ("B", range(7, 20))) for at in ids
        ],  # two have both
        ["A/PA/1.png", "B/PA/2.png", "B/AP/3.png"],
        ["A/1.png", "B/2.png", "C/old/3.png", "C/new/4.png"],
    ],
)
def test_class_folders_with_folders_of_their_own_are_classes(tmp_path, names):
    pictures(tmp_path, *names)
    assert {row[0] for row in rows_of(tmp_path, "label")} == {name[0] for name in names}


def test_what_is_unlikely_of_classes_is_said(tmp_path):
    pictures(tmp_path / "one", "A/1.png", "A/2.png")
    assert "All images are of one class, A." in listed("imagefolder", tmp_path / "one").notes
    pictures(tmp_path / "many", *(f"p{i}/1.png" for i in range(11)))
    (note,) = listed("imagefolder", tmp_path / "many").notes
    assert note.startswith("11 class folders for 11 images: if they are patients")
    pictures(tmp_path / "loose", "A/1.png", "B/1.png", "c.png", "train_x/A/1.png")
    assert "Images without a class: 1 of 4, e.g. c.png." in listed("imagefolder", tmp_path / "loose").notes
    pictures(tmp_path / "named", "train1/A/1.png", "test/B/1.png")
    assert "The folder train1 is read as the split train." in listed("imagefolder", tmp_path / "named").notes


# tables in the folder


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_metadata_table_is_joined_in_any_format(tmp_path, ending):
    pictures(tmp_path, "a.png", "b.png")
    rows = pd.DataFrame({"file_name": ["a.png", "b.png"], "label": ["x", "y"], "objects": [{"bbox": [1]}, None]})
    write = {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}[ending]
    write(
        tmp_path / f"metadata.{ending}",
        **({"orient": "records", "lines": True} if ending == "jsonl" else {"index": False}),
    )
    assert rows_of(tmp_path, "image_id", "label") == [("a.png", "x"), ("b.png", "y")]


def test_columns_of_a_metadata_table_that_are_read_under_another_name_are_said(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,Label\na.png,x\nb.png,y\n")
    listing = listed("imagefolder", tmp_path)
    assert cells(listing, "label") == [("x",), ("y",)]
    assert listing.notes[0].endswith("metadata.csv: Label is read as label.")


def test_a_metadata_table_in_a_folder_is_of_that_folder(tmp_path):
    pictures(tmp_path, "train/a.png", "train/masks/a.png", "test/a.png", "test/b.png")
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "a.png", "label": "x", "lung_mask": "masks/a.png"}\n')
    (tmp_path / "test/metadata.csv").write_text("file_name,label\na.png,y\ngone.png,y\n")
    listing = listed("imagefolder", tmp_path)
    assert relative(tmp_path, listing, "image_id", "label", "split", "lung_mask") == [
        ("test/a.png", "y", "test", ""),
        ("test/b.png", "", "test", ""),
        ("test/gone.png", "y", "", ""),
        ("train/a.png", "x", "train", "train/masks/a.png"),
    ]
    assert "Images without a row in test/metadata.csv, train/metadata.jsonl: 1 of 3, e.g. test/b.png." in listing.notes
    (tmp_path / "test/metadata.jsonl").write_text("")
    refused(tmp_path, r"has test/metadata\.csv and test/metadata\.jsonl: which one is right")


def test_a_table_with_labels_needs_no_class_folders(tmp_path):
    pictures(tmp_path, "images/a.png", "images/B.png", "other/c.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\nset/images/a.png,x\nimages/b.png,y\nother/c.png,x\n")
    listing = listed("imagefolder", tmp_path)
    assert cells(listing, "image_id", "label") == [("images/B.png", "y"), ("images/a.png", "x"), ("other/c.png", "x")]
    assert "2 of the 3 paths in metadata.csv name no file to the letter" in listing.notes[0]
    (tmp_path / "metadata.csv").write_text("file_name,caption\nimages/a.png,clear\n")
    pictures(tmp_path / "captions/images", "a.png", "b.png")
    (tmp_path / "captions/metadata.csv").write_text("file_name,caption\nimages/a.png,clear\nimages/b.png,dense\n")
    assert rows_of(tmp_path / "captions", "caption", "label") == [("clear", ""), ("dense", "")]


def swapped(root, values, column="label", rows=16):
    """A table whose labels, or splits, are those of the other folder in its first `rows` of 16 rows."""
    names = [f"{values[at % 2]}/{at}.png" if column == "label" else f"{values[at % 2]}/A/{at}.png" for at in range(16)]
    pictures(root, *names)
    lines = [f"{name},{values[1 - at % 2]}" for at, name in enumerate(names[:rows])]
    (root / "metadata.csv").write_text("\n".join([f"file_name,{column}", *lines]))
    return listed("imagefolder", root)


@pytest.mark.parametrize("rows", [16, 4])
def test_labels_and_splits_of_a_table_that_differ_from_the_folders_are_taken_and_counted(tmp_path, rows):
    for column, values, first in (
        ("label", ("A", "B"), "A/0.png is B"),
        ("split", ("train", "test"), "test/A/1.png is train"),
    ):
        listing = swapped(tmp_path / column, values, column, rows)
        assert (
            f"{rows} of {rows} images have another {column} in metadata.csv than their folder (first: {first}): the "
            "table's is taken." in listing.notes
        )
        assert cells(listing, "image_id", column)[0][1] == first.split()[-1]


def test_tables_that_agree_with_the_folders_or_speak_of_others_are_not_in_conflict(tmp_path):
    pictures(tmp_path / "splits", "train/covid/1.png", "Dev/covid/2.png", "test/normal/3.png")
    rows = "train/covid/1.png,COVID,training\nDev/covid/2.png,COVID,val\ntest/normal/3.png,Normal,\n"
    (tmp_path / "splits/metadata.csv").write_text(f"file_name,label,split\n{rows}")
    pictures(tmp_path / "sites", "site1/1.png", "site2/2.png")
    (tmp_path / "sites/metadata.csv").write_text("file_name,label\nsite1/1.png,COVID\nsite2/2.png,Normal\n")
    for name in ("splits", "sites"):
        assert listed("imagefolder", tmp_path / name).notes == ()


def test_the_lists_of_covidx_are_joined(tmp_path):
    covidx(tmp_path)
    (tmp_path / "README.txt").write_text("hello")
    listing = listed("imagefolder", tmp_path)
    assert cells(listing, *COLUMNS) == ROWS
    assert "train_COVIDx9A.txt is read as a list of COVIDx, for the split train." in listing.notes
    (tmp_path / "train_COVIDx9B.txt").write_text(LISTS["train_COVIDx9A.txt"].replace("normal", "negative"))
    refused(tmp_path, r"train_COVIDx9A\.txt and train_COVIDx9B\.txt, two lists of the split train")
