"""clipcovid.data.sources: where a table's images are, and the lists of COVIDx."""

import dataclasses

import pytest
from covidx_lists import COLUMNS, ROWS, covidx
from pictures import cells, listed, pictures

from clipcovid.cli import from_cli
from clipcovid.config import ImagesConfig, UserError
from clipcovid.data.prepare import PrepareConfig, prepare


def table(path, *paths, column="path"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{column},label\n" + "".join(f"{name},x\n" for name in paths))
    return path


def test_images_may_be_in_another_folder(tmp_path):
    pictures(tmp_path / "scans", "a/1.png", "b/2.png")
    file = table(tmp_path / "tables/t.csv", "a/1.png", "b/2.png")
    listing = listed("table", file, images=tmp_path / "scans")
    assert cells(listing, "path", "image_id") == [
        (str(tmp_path / "scans" / name), name) for name in ("a/1.png", "b/2.png")
    ]
    assert listing.notes == ()
    with pytest.raises(
        UserError,
        match=rf"^2 of the 2 files that t\.csv names are not there: the first was looked for at {tmp_path}/tables/a/1\.png, "
        rf"there are no images below {tmp_path}/tables\. Say with --images",
    ):
        listed("table", file)
    with pytest.raises(UserError, match=r"--images .*gone does not exist"):
        listed("table", file, images=tmp_path / "gone")
    with pytest.raises(UserError, match=r"--images .*t\.csv is a file"):
        listed("table", file, images=file)
    with pytest.raises(UserError, match="--source imagefolder finds them in --root"):
        listed("imagefolder", tmp_path / "scans", images=tmp_path)


def test_the_option_is_called_images(tmp_path):
    config = from_cli(PrepareConfig, "", ["--root", "t.csv", "--images", str(tmp_path), "--out", str(tmp_path / "out")])
    assert (config.image_folder, config.images) == (str(tmp_path), ImagesConfig())
    with pytest.raises(UserError, match=rf"--out .* is inside of --images {tmp_path}"):
        prepare(dataclasses.replace(config, source="table"))


def test_paths_that_can_mean_one_file_alone_are_read_as_it(tmp_path, monkeypatch):
    names = ["train/p1/view1.jpg", "train/p2/view1.jpg", "valid/p3/view1.JPG", "valid/p4/1.2.dcm"]
    pictures(tmp_path / "CheXpert", *names[:2], format="JPEG")
    pictures(tmp_path / "CheXpert", *names[2:], format="PNG")
    pictures(tmp_path / "home", "x.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    paths = ["CheXpert/train/p1/view1.jpg", r"C:\sets\CheXpert\train\p2\view1.jpg", "valid/P3/view1.jpg", "p4/1.2"]
    listing = listed("table", table(tmp_path / "CheXpert/t.csv", *paths, "~/x.png"))
    assert listing.table["path"].tolist() == [
        *(str(tmp_path / "CheXpert" / name) for name in names),
        str(tmp_path / "home/x.png"),
    ]
    assert listing.table["image_id"].tolist()[:4] == names
    assert listing.notes[0] == (
        "5 of the 5 paths in t.csv name no file to the letter and are read as the only file that fits (case, ending, "
        f"folders): ~/x.png as {tmp_path}/home/x.png."
    )


def test_the_first_file_that_is_missing_is_named_with_the_nearest(tmp_path):
    pictures(tmp_path, "a/1.png", "b/1.png", "a/2.png")
    listing = listed("table", table(tmp_path / "t.csv", "a/2.png", "1.png", "c/3.png"))
    assert listing.table["path"].tolist() == [str(tmp_path / name) for name in ("a/2.png", "1.png", "c/3.png")]
    assert listing.notes == (
        f"2 of the 3 files that t.csv names are not there: 1.png may be a/1.png or b/1.png below {tmp_path}.",
    )
    listing = listed("table", table(tmp_path / "t.csv", "a/2.png", "c/2.png"))
    assert listing.notes[0].endswith(
        f"the first was looked for at {tmp_path}/c/2.png, the most similar file is {tmp_path}/a/2.png."
    )
    (tmp_path / "t.csv").write_text("path,lung_mask\na/1.png,m/1.png\n")
    assert "1 of the 2 files that t.csv names are not there" in listed("table", tmp_path / "t.csv").notes[0]


def test_masks_are_looked_for_as_images_are(tmp_path):
    pictures(tmp_path, "i/1.png", "m/1.png")
    (tmp_path / "t.csv").write_text("path,lung_mask\nset/i/1.png,set/m/1.png\n")
    assert listed("table", tmp_path / "t.csv").table["lung_mask"].tolist() == [str(tmp_path / "m/1.png")]


def test_a_list_of_covidx_is_a_table(tmp_path):
    covidx(tmp_path)
    listing = listed("table", tmp_path / "train_COVIDx9A.txt")
    assert cells(listing, *COLUMNS) == ROWS[1:]
    assert "its images are the split train alone: --source imagefolder" in listing.notes[0]
    (tmp_path / "lists").mkdir()
    moved = (tmp_path / "train_COVIDx9A.txt").rename(tmp_path / "lists/train.txt")
    assert cells(listed("table", moved, images=tmp_path), *COLUMNS) == ROWS[1:]
    flat = listed("table", moved, images=tmp_path / "train")
    assert cells(flat, "label", "split") == [(row[1], "train") for row in sorted(ROWS[1:], key=lambda row: row[1])]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1.png\n2.png\n", "its first line is not `patient file class source`. Save other tables as CSV"),
        ("p 1.png normal rsna\np 2.png\n", r"train\.txt, line 2: not `patient file class source`"),
        ("", "its first line is not"),
    ],
)
def test_other_text_files_are_no_list(tmp_path, text, match):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError, match=match):
        listed("table", tmp_path / "train.txt")
