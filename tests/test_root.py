"""clipcovid.data.sources.root: what stands below a root, and what of it is no image."""

import os
import sys

import fsspec
import pytest
from image_files import dicom
from pictures import cells, listed, picture

from clipcovid.config import UserError
from clipcovid.data.images import BadImage, read_bytes
from clipcovid.data.sources.root import DatasetRoot


@pytest.fixture
def s3(monkeypatch):
    """An S3 server with an empty bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fs = fsspec.filesystem("s3")
    fs.mkdir("bucket")
    yield fs
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_a_bucket_is_listed_and_read(s3, tmp_path):
    data = picture(tmp_path / "a.png").read_bytes()
    s3.pipe({"bucket/set/Flu/a.png": data, "bucket/set/Flu/b": data, "bucket/set/Normal/c.png": data})
    s3.pipe({"bucket/set/Flu/viewer": b"MZ\0\0", "bucket/t.csv": b"path,label\nset/Flu/a.png,Flu\nset/gone.png,Flu\n"})
    listing = listed("imagefolder", "s3://bucket/set")
    assert cells(listing, "path", "label") == [
        ("s3://bucket/set/Flu/a.png", "Flu"),
        ("s3://bucket/set/Flu/b", "Flu"),
        ("s3://bucket/set/Normal/c.png", "Normal"),
    ]
    assert read_bytes("s3://bucket/set/Flu/a.png") == data
    listing = listed("table", "s3://bucket/t.csv")
    assert listing.table["image_id"].tolist() == ["set/Flu/a.png", "set/gone.png"]
    assert read_bytes(listing.table["path"][0]) == data
    with pytest.raises(BadImage, match="file not found"):
        read_bytes(listing.table["path"][1])


def test_the_reason_why_a_file_cannot_be_opened_is_the_message(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(BadImage, match=r"^can't be opened: Is a directory$"):
        read_bytes(str(tmp_path / "folder.png"))
    with pytest.raises(BadImage, match="Protocol not known: nonsense"):
        read_bytes("nonsense://a.png")


def test_a_hospitals_disc_has_images_and_other_files(tmp_path):
    scan = dicom()
    files = {"COVID/IM0001": scan, "COVID/1.2.840.7": scan, "COVID/b.dcm": scan, "COVID/empty.png": b""}
    passed = ["COVID/DICOMDIR", "COVID/LOCKFILE", "Thumbs.db", "autorun.inf", "viewer/run.exe", "viewer/lib.dll"]
    passed += ["viewer/help.html", "viewer/icon.ico", "VERSION", "COVID/.DS_Store", "__MACOSX/COVID/b.dcm"]
    for name, data in (files | dict.fromkeys(passed, scan[:0] + b"MZ\0text") | {"COVID/DICOMDIR": scan}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(data)
    listing = listed("imagefolder", tmp_path)
    assert set(listing.table["image_id"]) == set(files)
    counts = "2 hidden, 2 without ending, 1 .dll, 1 .exe, 1 .html, 1 .ico, 1 autorun.inf, 1 dicomdir, 1 thumbs.db"
    assert f"Passed over as no images: {counts}." in listing.notes
    assert "viewer has programs in it: if its pictures are a viewer's, move it away." in listing.notes


def test_what_was_read_is_not_passed_over(tmp_path):
    picture(tmp_path / "Flu/a.png")
    (tmp_path / "metadata.csv").write_text("file_name,view\nFlu/a.png,PA\n")
    assert not [note for note in listed("imagefolder", tmp_path).notes if "Passed over" in note]
    (tmp_path / "labels.csv").write_text("file,label\n")
    assert "Passed over as no images: 1 .csv." in listed("imagefolder", tmp_path).notes


def test_files_are_looked_for_in_the_folders_that_paths_name_alone(tmp_path):
    picture(tmp_path / "a/1.png")
    picture(tmp_path / "b/2.png")
    root = DatasetRoot(str(tmp_path))
    asked = {"a/1.png", "a/2.png", "c/1.png", str(tmp_path / "b/2.png"), "s3://bucket/x.png"}
    assert root.existing_files(asked) == {"a/1.png", str(tmp_path / "b/2.png"), "s3://bucket/x.png"}
    assert "_listed" not in vars(root)


def test_a_name_that_is_no_utf8_is_a_bad_file_with_the_true_reason(tmp_path):
    picture(tmp_path / "ü.png")
    (tmp_path / "ü.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xfc.png"))
    root = DatasetRoot(str(tmp_path))
    assert root.images() == ["\ufffd.png"]
    with pytest.raises(BadImage, match="its name is not UTF-8"):
        read_bytes(root.resolve(root.images()[0]))


def test_where_names_are_not_utf8_letters_beyond_ascii_are_refused_with_the_way_out(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b/ü.png")
    root = DatasetRoot(str(tmp_path))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UserError, match=r"'b/\\xfc.png' is not ASCII.*set PYTHONUTF8=1"):
        root.images()
    with pytest.raises(UserError, match="set PYTHONUTF8=1"):
        root.existing_files(["a.png", "ü.png"])
    assert root.existing_files(["a.png"]) == {"a.png"}
    assert len(read_bytes(str(tmp_path / "b/ü.png"))) > 0  # as a worker does, whose locale may differ
