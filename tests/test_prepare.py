"""clipcovid.data.prepare and clipcovid prepare: what is packed, refused, resumed and redone."""

import contextlib
import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import HERE, LOCAL
from image_files import dicom, encode
from pictures import mask, picture
from PIL import Image
from rich.console import Console
from source_folders import medpix, quex

from clipcovid.commands.prepare import print_preparation
from clipcovid.config import ImagesConfig, UserError
from clipcovid.data import prepare as module
from clipcovid.data.images import decode_pixels, fit_image, fit_mask
from clipcovid.data.manifest import read_manifest, write_manifest
from clipcovid.data.masks import decode_mask
from clipcovid.data.packed import PackedImages
from clipcovid.data.packing import pack_row
from clipcovid.data.prepare import PrepareConfig, count_by_split, pack_hash, prepare
from clipcovid.data.sources import ColumnsConfig, PhantomConfig

JOB = Path(__file__).parents[1] / "jobs" / "prepare.py"
SMALL = ImagesConfig(size=32, max_pixels=100_000)


def run(source, root, out, **options):
    options = {"images": SMALL, "max_bad": 0.0, "compute": LOCAL} | options
    lines = []
    done = prepare(PrepareConfig(source=source, root=str(root), out=out, **options), log=lines.append)
    assert not list((out / "images").glob(".*"))
    return done, lines


def job(*args):
    return subprocess.run([sys.executable, JOB, *map(str, args)], capture_output=True, text=True, timeout=120)


def times(out):
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def folder(root, count=12, labels=("Flu", "Normal")):
    for i in range(count):
        picture(root / labels[i % len(labels)] / f"{i:03}.png", i)
    return root


def scans(root, count=20, **columns):
    """A table of images with lung masks."""
    rows = []
    for i in range(count):
        picture(root / f"x/{i:03}.png", i)
        mask(root / f"m/{i:03}.png", lit=10 + i % 20)
        row = {"path": f"x/{i:03}.png", "label": "ab"[i % 2], "patient_id": str(i // 2), "lung_mask": f"m/{i:03}.png"}
        rows.append(row | {key: values[i] for key, values in columns.items()})
    pd.DataFrame(rows).to_csv(root / "t.csv", index=False)
    return root / "t.csv"


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 4)


@pytest.fixture
def sparse_ray(monkeypatch):
    """No Ray: what is tested must be refused, or be done, before there is work."""
    monkeypatch.setattr(module, "connect", lambda compute: pytest.fail("Ray was started"))


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
PNG = encode(PIXELS)
HEADER = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + PNG[24:29]
BOMB = PNG[:12] + HEADER + zlib.crc32(HEADER).to_bytes(4, "big") + PNG[33:]
BROKEN = {
    "empty.png": (b"", "empty file"),
    "cut.png": (PNG[: len(PNG) // 2], "truncated PNG|damaged PNG"),
    "end lost.png": (PNG[:-300], "truncated PNG|damaged PNG"),
    "cut.jpg": (encode(PIXELS, "JPEG")[:500], "truncated JPEG|damaged JPEG"),
    "zeros at the end.jpg": (encode(PIXELS, "JPEG")[:500] + bytes(4000), "truncated JPEG|damaged JPEG"),
    "page.png": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "an HTML page"),
    "text.png": (b"version 1, please ask for access", "a text file"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "Git LFS"),
    "archive.jpg": (b"PK\x03\x04" + bytes(100), "a ZIP archive"),
    "document.png": (b"%PDF-1.7\n", "a PDF document"),
    "black.png": (encode(np.zeros((40, 40), np.uint8)), "constant: every pixel is 0"),
    "bomb.png": (BOMB, "declares 60000x60000 pixels"),
    "film.dcm": (dicom(NumberOfFrames=3), "multi-frame DICOM"),
    "noise.png": (np.random.default_rng(1).bytes(900), "unknown format"),
    "nulls.png": (bytes(999), "only zero bytes"),
    "gone.png": (None, "file not found"),
}
BROKEN_MASKS = {
    "wide.png": (encode(np.tile(np.array([0, 255], np.uint8), (40, 40))), "aspect ratio"),
    "gray.png": (PNG, "mask is not binary"),
    "gone.png": (None, "file not found"),
    "text.png": (b"no mask", "a text file"),
}


def test_exactly_the_broken_files_are_quarantined_with_true_reasons(cluster, tmp_path, small_shards):
    table = scans(tmp_path / "set", 60)
    rows = pd.read_csv(table, dtype=str)
    asked = {}
    for place, broken in (("x", BROKEN), ("m", BROKEN_MASKS)):
        for name, (content, reason) in broken.items():
            path = tmp_path / "set" / place / name
            asked[str(path)] = reason
            if content is not None:
                path.write_bytes(content)
    bad = [{"path": f"x/{name}", "label": "a", "lung_mask": "m/000.png"} for name in BROKEN]
    rows.loc[10:13, "lung_mask"] = [f"m/{name}" for name in BROKEN_MASKS]
    pd.concat([rows, pd.DataFrame(bad)]).sample(frac=1, random_state=0).to_csv(table, index=False)
    (done, _) = run("table", table, tmp_path / "out", max_bad=0.5)
    found = dict(pd.read_parquet(tmp_path / "out/quarantine.parquet").to_numpy())
    assert set(found) == set(asked)
    assert len(done.quarantine) == len(asked) == 20
    for path, reason in asked.items():
        assert re.search(reason, found[path]), (path, found[path])
    assert sorted(done.manifest.table["image_id"]) == sorted(rows["path"])
    packed = PackedImages(tmp_path / "out")
    for at, row in enumerate(packed.manifest.table.itertuples()):
        image = decode_pixels(Path(row.path).read_bytes(), max_pixels=10**6)
        np.testing.assert_array_equal(packed.images([at])[0], fit_image(image, SMALL))
        hit = row.image_id in set(rows.loc[10:13, "path"])
        assert (row.lung_mask == "") == hit == (packed.masks("lung_mask", [at])[0] is None)
    assert (done.manifest.table[["width", "height"]] == 40).all(axis=None)


def test_a_disk_without_room_for_the_packed_images_is_known_before_ray_starts(tmp_path, monkeypatch, sparse_ray):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20 * 2 * 64**2 - 1))
    table = scans(tmp_path)
    with pytest.raises(UserError, match=r"out needs 0\.0 GB, and 0\.0 GB are free .* a smaller --size"):
        run("table", table, tmp_path / "out", images=ImagesConfig(size=64))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20 * 2 * 64**2))
    with pytest.raises(pytest.fail.Exception, match="Ray was started"):
        run("table", table, tmp_path / "out", images=ImagesConfig(size=64))


def test_too_many_bad_files_stop_the_job_which_then_goes_on_with_a_higher_limit(tmp_path):
    root, out = folder(tmp_path / "set", 8), tmp_path / "out"
    (root / "Flu/bad.png").write_bytes(b"")
    (root / "Normal/bad.png").write_text("hello")
    flags = ("--source", "imagefolder", "--root", root, "--out", out, "--size", 32, "--max-pixels", 100_000)
    done = job(*flags, "--compute.workers", "0")
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 2 of 10 images are bad or have a bad mask (20.0%; --max-bad allows 5.0%): 1 × ")
    assert "1 × empty file" in last
    assert "quarantine.parquet" in last
    assert "Traceback" not in done.stderr
    assert len(pd.read_parquet(out / "quarantine.parquet")) == 2
    assert not (out / "manifest.parquet").exists()
    before = times(out / "images")
    finished, lines = run("imagefolder", root, out, max_bad=0.2)
    assert len(finished.manifest.table) == 8
    assert lines == ["Going on: 1 of 1 packed files are there."]
    assert times(out / "images") == before
    assert not (out / "listing.parquet").exists()


def test_the_share_of_bad_counts_images_of_the_wanted_classes_once(cluster, tmp_path):
    table = scans(tmp_path / "set", 20, infection_mask=["m/no.png"] + [""] * 19)
    (tmp_path / "set/m/000.png").write_bytes(b"")  # two bad masks of one image
    (tmp_path / "set/x/002.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 10 images are bad or have a bad mask \(20.0%; --max-bad allows 19.0%\)"):
        run("table", table, tmp_path / "out", classes=("a",), max_bad=0.19)
    done, _ = run("table", table, tmp_path / "out", classes=("a",), max_bad=0.2)
    assert (len(done.manifest.table), len(done.quarantine)) == (9, 3)


def test_nothing_but_bad_files_stops_the_job_whatever_the_limit(cluster, tmp_path):
    (tmp_path / "set/Flu").mkdir(parents=True)
    (tmp_path / "set/Flu/a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 1 images are bad"):
        run("imagefolder", tmp_path / "set", tmp_path / "out", max_bad=1.0)


def test_run_again_it_rewrites_nothing(cluster, tmp_path, monkeypatch):
    root = folder(tmp_path / "set")
    first, _ = run("imagefolder", root, tmp_path / "out")
    before = times(tmp_path / "out")
    monkeypatch.setattr(module, "connect", lambda compute: pytest.fail("Ray was started"))
    again, lines = run("imagefolder", root, tmp_path / "out", max_bad=0.5)
    assert (first.created, again.created, lines) == (True, False, [])
    assert again.manifest.content_hash == first.manifest.content_hash
    assert times(tmp_path / "out") == before


def test_an_interrupted_preparation_redoes_only_what_is_missing(cluster, tmp_path, small_shards, monkeypatch):
    root, out = scans(tmp_path / "set", 22), tmp_path / "out"
    whole, _ = run("table", root, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("table", root, out)
    assert (out / "listing.parquet").exists()
    shards = sorted((out / "images").glob("*.arrow"))
    assert len(shards) == 6
    shards[2].unlink()
    (out / "images" / ".00002.arrow.4711").write_bytes(b"half a file of a killed worker")
    before = times(out / "images")
    done, lines = run("table", root, out)
    assert lines == ["Going on: 5 of 6 packed files are there."]
    after = times(out / "images")
    assert {name for name in after if after[name] != before.get(name)} == {shards[2].name}
    assert done.created
    assert done.manifest.content_hash == whole.manifest.content_hash
    everything = range(len(done.manifest.table))
    np.testing.assert_array_equal(
        PackedImages(out).images(everything), PackedImages(tmp_path / "whole").images(everything)
    )
    assert sorted(times(out)) == sorted(times(tmp_path / "whole"))


def test_another_source_or_other_options_are_refused_by_name(cluster, tmp_path, monkeypatch):
    table = scans(tmp_path / "set", 8)
    out = tmp_path / "out"
    run("table", table, out)
    before = times(out)
    monkeypatch.setattr(module, "connect", lambda compute: pytest.fail("Ray was started"))
    for options, match in (
        ({"images": ImagesConfig(size=48, max_pixels=100_000)}, r"\(images.size differ\)"),
        ({"images": ImagesConfig(size=32, fit="pad", mode="rgb", max_pixels=9)}, "images.fit, images.max_pixels, im"),
        ({"images": dataclasses.replace(SMALL, mask_value=("1",))}, r"\(images.mask_value differ\)"),
        ({"seed": 1, "val": 0.3}, r"\(seed, val differ\)"),
        ({"classes": ("b", "a")}, r"\(classes differ\)"),
        ({"columns": ColumnsConfig(view="label")}, r"\(columns.view differ\)"),
    ):
        with pytest.raises(UserError, match=match + ".*choose another --out, or --overwrite"):
            run("table", table, out, **options)
    content = table.read_text()
    for line, match in (
        ("x/new.png,b,9,", r"another preparation \(the data set's files or table differ\)"),
        ("x/000.png,b,0,", r"x/000.png is listed with the label 'a' and with 'b'"),
    ):
        table.write_text(content + line + "\n")
        with pytest.raises(UserError, match=match):
            run("table", table, out)
        table.write_text(content)
    table.write_text(content.replace("000.png,a", "000.png,b"))
    with pytest.raises(UserError, match="the data set's files or table differ"):
        run("table", table, out)
    table.write_text(content)
    assert not run("table", table, out)[0].created
    assert times(out) == before


def test_a_replaced_or_added_file_is_noticed(cluster, tmp_path):
    root, out = folder(tmp_path / "set", 4), tmp_path / "out"
    (root / "Flu/000.png").write_bytes(b"")
    with pytest.raises(UserError, match="mend the files and run again with --overwrite"):
        run("imagefolder", root, out)
    picture(root / "Flu/000.png", 0)
    with pytest.raises(UserError, match="the data set's files or table differ"):
        run("imagefolder", root, out)
    done, _ = run("imagefolder", root, out, overwrite=True)
    assert (len(done.manifest.table), len(done.quarantine)) == (4, 0)
    picture(root / "Flu/new.png")
    with pytest.raises(UserError, match="the data set's files or table differ"):
        run("imagefolder", root, out)


def test_overwrite_begins_anew_and_keeps_what_is_not_ours(cluster, tmp_path, small_shards):
    root, out = folder(tmp_path / "set", 10), tmp_path / "out"
    run("imagefolder", root, out)
    (out / "embeddings/0abc").mkdir(parents=True)
    (out / "embeddings/0abc/00000.parquet").touch()
    (out / "images/mine.arrow").write_text("a user's file")
    before = times(out)
    with pytest.raises(UserError, match=r"holds images/mine\.arrow"):
        run("imagefolder", root, out, overwrite=True)
    assert not run("imagefolder", root, out)[0].created  # without a deletion it is in nobody's way
    assert times(out) == before
    (out / "images/mine.arrow").unlink()
    before = times(out)
    with pytest.raises(UserError, match="does not exist"):  # nothing is deleted before there is something to prepare
        run("imagefolder", tmp_path / "sett", out, overwrite=True)
    assert times(out) == before
    for path in list((root / "Flu").iterdir())[1:]:
        path.unlink()
    done, _ = run("imagefolder", root, out, overwrite=True)
    assert done.created
    assert len(done.manifest.table) == 6
    assert len(list((out / "images").glob("*.arrow"))) == 2
    assert not (out / "embeddings").exists()


def test_packed_files_that_nothing_accounts_for_are_not_taken(cluster, tmp_path):
    root, out = folder(tmp_path / "set", 4), tmp_path / "out"
    run("imagefolder", root, out)
    (out / "manifest.parquet").unlink()
    picture(root / "Flu/000.png", 99)
    run("imagefolder", root, out)
    image = decode_pixels((root / "Flu/000.png").read_bytes(), max_pixels=10**6)
    np.testing.assert_array_equal(PackedImages(out).images([0])[0], fit_image(image, SMALL))


def test_out_may_not_be_in_the_data_sets_own_folder(tmp_path, sparse_ray):
    root = folder(tmp_path / "set")
    table = scans(tmp_path / "scans", 2)
    before = times(tmp_path)
    for source, place, out, how in (
        ("imagefolder", root, root, "is --root"),
        ("imagefolder", root, tmp_path, "holds --root"),
        ("imagefolder", root, root / "prepared/here", "is inside of --root"),
        ("imagefolder", root.as_uri(), root / "prepared", "is inside of --root"),
        ("table", table, table.parent, "is the folder of --root"),
        ("table", table, tmp_path, "holds the folder of --root"),
    ):
        with pytest.raises(UserError, match=how):
            run(source, place, out, overwrite=True)
    assert times(tmp_path) == before


def test_other_phantoms_do_not_touch_those_that_are_prepared(cluster, tmp_path, monkeypatch):
    out = tmp_path / "out"
    how = PhantomConfig(images=12, size=48)
    done, _ = run("phantom", "", out, phantom=how)
    assert count_by_split(done.manifest)["images"].tolist()[-1] == 12
    before = times(out)
    monkeypatch.setattr(module, "connect", lambda compute: pytest.fail("Ray was started"))
    with pytest.raises(UserError, match=r"\(phantom.images differ\)"):
        run("phantom", "", out, phantom=dataclasses.replace(how, images=6))
    assert not run("phantom", "", out, phantom=how)[0].created
    assert times(out) == before


def test_a_pack_hash_stays_what_it_was():
    assert pack_hash(ImagesConfig()) == "a35455a1c7ed"
    assert len({pack_hash(ImagesConfig(mask_value=values)) for values in ((), ("1",), ("1", "2"))}) == 3


@pytest.mark.parametrize("mode", ["gray", "rgb"])
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_a_packed_row_is_the_fitted_image_with_its_masks_in_place(tmp_path, mode, fit):
    how = ImagesConfig(size=24, mode=mode, fit=fit)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    lung = mask(tmp_path / "lung.png", lit=30, size=(50, 90))
    blank = mask(tmp_path / "blank.png", lit=0, size=(25, 45))
    row = {"image_id": "a", "path": str(tmp_path / "a.png"), "lung_mask": str(lung), "infection_mask": str(blank)}
    packed = pack_row(row, how)
    assert packed["image"] == fit_image(pixels, how).tobytes()
    assert len(packed["image"]) == 24 * 24 * (3 if mode == "rgb" else 1)
    asked = fit_mask(decode_mask(lung.read_bytes(), (50, 90), max_pixels=10**6), (50, 90), how)
    assert 0 < (asked > 0).mean() < 1
    assert packed["lung_mask"] == asked.tobytes()
    assert packed["infection_mask"] == bytes(24 * 24)
    assert (packed["width"], packed["height"], packed["bad"]) == (90, 50, "{}")
    assert pack_row(row | {"lung_mask": ""}, how)["lung_mask"] == b""


def test_rgb_and_padding_come_through_whole(cluster, tmp_path):
    how = ImagesConfig(size=24, mode="rgb", fit="pad")
    table = scans(tmp_path / "set", 3)
    done, _ = run("table", table, tmp_path / "out", images=how)
    packed = PackedImages(tmp_path / "out")
    image = decode_pixels(Path(packed.manifest.table["path"][2]).read_bytes(), max_pixels=10**6)
    np.testing.assert_array_equal(packed.images([2])[0], fit_image(image, how))
    assert done.manifest.info["pack_hash"] == pack_hash(how) != pack_hash(SMALL)


def test_parts_that_share_images_by_content_become_one_row_with_both_masks(cluster, tmp_path, small_shards):
    root = tmp_path / "set"
    lung, infection = root / "Lung Segmentation Data", root / "Infection Segmentation Data"
    for i in range(6):
        quex(lung, f"a{i}", "Train", kinds=["lung masks"], seed=i)
    quex(infection, "a0", "Train", kinds=["infection masks"], seed=0)
    quex(infection, "other name", "Train", kinds=["infection masks"], seed=1, compress_level=9)
    quex(infection, "a2", "Test", kinds=["infection masks"], seed=2, optimize=True)  # a conflict of splits
    quex(infection, "new", "Val", kinds=["infection masks"], seed=50)
    quex(lung, "again", "Train", kinds=["lung masks"], seed=5)  # a part's own duplicate
    quex(lung, "bad", "Train", kinds=[], seed=60)
    quex(infection, "bad", "Train", kinds=["infection masks"], seed=61)
    (lung / "Train/Normal/images/bad.png").write_bytes(b"")

    with pytest.raises(UserError, match="1 of 10 images"):
        run("covidquex", root, tmp_path / "out")
    done, _ = run("covidquex", root, tmp_path / "out", max_bad=0.5)
    table, info = done.manifest.table, done.manifest.info
    assert info["parts"] == {"merged": 3, "moved": 1}
    assert info["duplicates"] == {"within": 1, "across": 0}
    assert len(table) == 6 + 1 + 1 + 1
    both = table[(table["lung_mask"] != "") & (table["infection_mask"] != "")]
    assert sorted(both["split"]) == ["test", "train", "train"]
    assert set(both["image_id"].str.split("/").str[0]) == {"Infection Segmentation Data"}
    assert "_part" not in table
    packed = PackedImages(tmp_path / "out")
    for kind in ("lung_mask", "infection_mask"):
        there = [one is not None for one in packed.masks(kind, both.index)]
        assert there == [True] * 3
    assert not run("covidquex", root, tmp_path / "out", max_bad=0.5)[0].created


def test_an_interruption_while_parts_are_compared_is_survived(cluster, tmp_path, monkeypatch):
    for part in ("one", "two"):
        quex(tmp_path / "set" / part, "a")
    with monkeypatch.context() as patch:
        patch.setattr(module, "merge_parts", lambda table: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("covidquex", tmp_path / "set", tmp_path / "out")
    assert len(run("covidquex", tmp_path / "set", tmp_path / "out")[0].manifest.table) == 1


def test_a_mask_that_fits_one_image_and_not_another_is_lost_only_there(cluster, tmp_path):
    picture(tmp_path / "set/a.png", size=(40, 40))
    picture(tmp_path / "set/b.png", size=(40, 80))
    mask(tmp_path / "set/m.png")
    (tmp_path / "set/t.csv").write_text("path,lung_mask\na.png,m.png\nb.png,m.png\n")
    done, _ = run("table", tmp_path / "set/t.csv", tmp_path / "out", max_bad=0.5)
    assert done.manifest.table["lung_mask"].astype(bool).tolist() == [True, False]
    assert [one is None for one in PackedImages(tmp_path / "out").masks("lung_mask", [0, 1])] == [False, True]


def test_archives_and_uris_are_prepared_in_other_processes(cluster, tmp_path):
    root = folder(tmp_path / "set", 4)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    plain, _ = run("imagefolder", root.as_uri(), tmp_path / "plain")
    zipped, _ = run("imagefolder", f"zip://set::{tmp_path / 'set.zip'}", tmp_path / "zipped")
    assert zipped.manifest.split_hash == plain.manifest.split_hash
    assert zipped.manifest.table["sha256"].tolist() == plain.manifest.table["sha256"].tolist()


def test_classes_are_chosen_ordered_and_the_others_counted(cluster, tmp_path, sparse_ray, monkeypatch):
    root = folder(tmp_path / "set", 9, ("A", "B", "C"))
    picture(root / "loose.png", 77)
    for classes, match in (
        (("A", "Z"), "--classes 'Z' labels no image; found: A, B, C"),
        (("A", "A"), "names a class"),
    ):
        with pytest.raises(UserError, match=match):
            run("imagefolder", root, tmp_path / "out", classes=classes)
    monkeypatch.undo()
    done, _ = run("imagefolder", root, tmp_path / "out", classes=("C", "A"))
    assert done.manifest.classes == ("C", "A")
    assert done.manifest.table["label"].value_counts().to_dict() == {"A": 3, "C": 3, "": 1}
    assert done.manifest.info["left_out"] == {"B": 3}
    assert count_by_split(done.manifest).iloc[-1][["C", "A", "no label", "images"]].tolist() == [3, 3, 1, 7]


def test_the_three_classes_have_their_own_order_and_no_patient_is_split(cluster, tmp_path):
    labels = ["Normal", "COVID-19", "Non-COVID"]
    rows = "".join(f"{i % 10}/{i}.png,{labels[i % 3]},p{i // 4}\n" for i in range(60))
    for i in range(60):
        picture(tmp_path / f"set/{i % 10}/{i}.png", i)
    (tmp_path / "set/t.csv").write_text("path,label,patient_id\n" + rows)
    done, _ = run("table", tmp_path / "set/t.csv", tmp_path / "out")
    assert done.manifest.classes == ("COVID-19", "Non-COVID", "Normal")
    assert (done.manifest.table.groupby("patient_id")["split"].nunique() == 1).all()
    assert done.manifest.info["patients_across_splits"] == 0


def test_medpix2_is_prepared_without_its_placeholders(cluster, tmp_path):
    medpix(tmp_path / "set", train=[("MPX1", "pelvis"), ("MPX1", "N/A")], dev=[("MPX2", "x")], test=[("MPX3", "y")])
    done, _ = run("medpix2", tmp_path / "set", tmp_path / "out")
    assert count_by_split(done.manifest)[["images", "captions"]].to_numpy().tolist() == [[2, 1], [1, 1], [1, 1], [4, 3]]


def test_an_archive_among_the_images_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("clipcovid.data.images.MAX_BYTES", 1 << 20)
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "larger than 1 MiB" in pack_row({"image_id": "a", "path": str(path)}, SMALL)["bad"]


@pytest.mark.parametrize("path", ["/", "nowhere://x", "s3://", "http://127.0.0.1:9/a.png", "a\0b", "x" * 5000])
def test_a_place_that_cannot_be_read_is_a_bad_file(path):
    packed = pack_row({"image_id": "a", "path": path}, SMALL)
    assert "can't be opened" in packed["bad"] or "not found" in packed["bad"]
    assert (packed["image"], packed["sha256"]) == (b"", "")


@pytest.mark.parametrize("options", [{"max_bad": 1.5}, {"max_bad": -0.1}, {"val": 0.5, "test": 0.5}, {"val": -0.1}])
def test_impossible_shares_are_refused(options):
    with pytest.raises(UserError, match=r"--max-bad|--val"):
        PrepareConfig(**options)


def test_the_report_shows_names_as_they_are(tmp_path, cluster):
    for i in range(5):
        picture(tmp_path / f"set/{i}.png", min(i, 3))
    rows = "".join(f"{i}.png,{'[bold]' if i < 2 else '[/x] :smile:'}\n" for i in range(5))
    (tmp_path / "set/t.csv").write_text("path,label\n" + rows)
    done, _ = run("table", tmp_path / "set/t.csv", tmp_path / "out", classes=("[/x] :smile:",))
    text = io.StringIO()
    config = PrepareConfig(source="table", out=tmp_path / "out")
    console = Console(file=text, width=200, markup=False, emoji=False)
    print_preparation(done, config, console)
    print_preparation(dataclasses.replace(done, created=False), config, console)
    shown = text.getvalue()
    for words in (
        "t: 3 images in",
        "[/x]",
        ":smile:",
        "Left out: 2 images labelled '[bold]', which is not among --classes.",
        "Quarantined: 0.",
        "Already prepared: nothing was left to do.",
    ):
        assert words in shown
    assert "pixels of another: 1 within a split, 0 across splits" in shown
    warned = shown.index("warning: no patient ids are known: splits and intervals are by image")
    assert warned < shown.index("t: 3 images in")
    old = {key: value for key, value in done.manifest.info.items() if key not in ("notes", "warnings")}
    print_preparation(dataclasses.replace(done, manifest=dataclasses.replace(done.manifest, info=old)), config, console)


def test_equal_pixels_are_kept_in_one_split(tmp_path):
    for i in range(40):
        picture(tmp_path / "set" / "AB"[i // 2 % 2] / f"{i}.png", i // 2)
    done, _ = run("imagefolder", tmp_path / "set", tmp_path / "out", compute=HERE)
    assert done.manifest.info["duplicates"] == {"within": 20, "across": 0}
    assert set(done.manifest.table["split"]) == {"train", "val", "test"}


def test_a_sets_own_splits_with_equal_pixels_are_warned_of_and_can_be_put_aside(tmp_path):
    for i in range(40):
        picture(tmp_path / "set" / ("train" if i % 2 else "test") / "AB"[i // 2 % 2] / f"{i}.png", i // 2)
    done, _ = run("imagefolder", tmp_path / "set", tmp_path / "out", compute=HERE)
    assert any("20 images have the pixels" in warning for warning in done.manifest.info["warnings"])
    anew, _ = run("imagefolder", tmp_path / "set", tmp_path / "anew", compute=HERE, resplit=True)
    assert anew.manifest.info["duplicates"]["across"] == 0
    assert "40 images are put aside (--resplit)" in anew.manifest.info["notes"][-1]


def test_a_val_split_is_made_of_train_where_the_set_gives_none(tmp_path):
    for i in range(60):
        picture(tmp_path / "set" / ("train" if i < 45 else "test") / "AB"[i % 2] / f"{i}.png", i)
    done, _ = run("imagefolder", tmp_path / "set", tmp_path / "out", compute=HERE, val=0.2)
    assert done.manifest.table["split"].value_counts().to_dict() == {"train": 36, "test": 15, "val": 9}
    assert "val: 20% of train by image (9 images), for the set gives none." in done.manifest.info["notes"]
    none, _ = run("imagefolder", tmp_path / "set", tmp_path / "none", compute=HERE, val=0.0)
    assert set(none.manifest.table["split"]) == {"train", "test"}
    with pytest.raises(UserError, match="'val' of set has no images: prepare the set again"):
        none.manifest.rows("val")


def clinic(root, patients, **tags):
    """A folder of DICOM files, one of each of `patients`, in two classes."""
    for i, patient in enumerate(patients):
        path = root / "AB"[i % 2] / f"{i}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 4096, (40, 40), dtype=np.uint16)
        date = f"2020010{9 - i % 3}"
        path.write_bytes(
            dicom(pixels, PatientID=patient, StudyDate=date, ViewPosition="AP", PatientName="Doe^J", **tags)
        )
    return root


def test_a_folder_of_dicoms_takes_patients_views_and_the_order_of_studies_from_the_headers(tmp_path, small_shards):
    root, out = clinic(tmp_path / "set", [f"P{i // 3}" for i in range(30)]), tmp_path / "out"
    done, _ = run("imagefolder", root, out, compute=HERE)
    table = done.manifest.table
    assert table["patient_id"].nunique() == 10
    assert table.groupby("patient_id")["split"].nunique().max() == 1
    assert set(table["view"]) == {"AP"}
    assert table.groupby("patient_id")["study_order"].agg("".join).str.len().eq(3).all()
    assert set(table["study_order"]) == {"1", "2", "3"}
    assert done.manifest.info["notes"][-1].startswith("from the DICOM headers come the patient (hashed) of 30")
    assert not (out / "readings").exists()
    for path in out.rglob("*.*"):
        content = path.read_bytes()
        assert not any(text in content for text in (b"2020010", b"Doe", b"P0\0", b'"P1"'))


def test_headers_outlive_an_interruption(tmp_path, small_shards, monkeypatch):
    root, out = clinic(tmp_path / "set", [f"P{i // 3}" for i in range(12)]), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_manifest", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("imagefolder", root, out, compute=HERE)
    monkeypatch.setattr(module, "_pack_shard", lambda *args, **options: pytest.fail("packed again"))
    done, _ = run("imagefolder", root, out, compute=HERE)
    assert done.manifest.table["patient_id"].nunique() == 4
    assert not (out / "readings").exists()


def test_what_was_assumed_of_single_files_is_counted(tmp_path, small_shards):
    table = scans(tmp_path / "set", 10)
    for i in range(7):
        pixels = np.full((40, 40), 1, np.uint8)
        pixels[5:20, 5:30] = 254
        Image.fromarray(pixels).save(tmp_path / f"set/m/{i:03}.png")
    done, _ = run("table", table, tmp_path / "out", compute=HERE)
    assert any(note.startswith("7 × mask of the values 1 and 254") for note in done.manifest.info["notes"])
    assert run("table", table, tmp_path / "out", compute=HERE)[0].manifest.info["notes"] == done.manifest.info["notes"]


def test_dicoms_of_one_patient_are_in_one_split_which_is_said(tmp_path):
    done, _ = run("imagefolder", clinic(tmp_path / "set", ["P1"] * 12), tmp_path / "out", compute=HERE)
    assert set(done.manifest.table["split"]) == {"train"}
    assert (
        "all images are of one patient or have equal pixels, and can't be divided" in done.manifest.info["warnings"][0]
    )


def test_classes_are_renamed_and_near_twins_and_lists_are_refused(tmp_path, sparse_ray):
    for i in range(6):
        picture(tmp_path / f"{i}.png", i)
    table = tmp_path / "t.csv"
    rows = [
        f"{i}.png,{name},\"['{name}']\""
        for i, name in enumerate(["COVID-19", "COVID-19", "Covid-19", "covid-19", "b", "b"])
    ]
    table.write_text("\n".join(["path,label,all", *rows]) + "\n")
    with pytest.raises(UserError, match=r"'COVID-19' \(2 images\), 'Covid-19' \(1 images\), 'covid-19' \(1 images\)"):
        run("table", table, tmp_path / "out")
    with pytest.raises(UserError, match="Lists of findings stand in the column 'all'"):
        run("table", table, tmp_path / "out", columns=ColumnsConfig(label="all"))
    with pytest.raises(UserError, match="--rename 'Flu' labels no image"):
        run("table", table, tmp_path / "out", rename=("Flu=b",))


def test_renamed_classes_are_prepared_and_part_of_what_tells_preparations_apart(tmp_path):
    root, out = folder(tmp_path / "set", 12, ("Flu", "flu", "Normal")), tmp_path / "out"
    done, _ = run("imagefolder", root, out, compute=HERE, rename=("flu=Flu",))
    assert done.manifest.table["label"].value_counts().to_dict() == {"Flu": 8, "Normal": 4}
    with pytest.raises(UserError, match=r"\(rename differ\)"):
        run("imagefolder", root, out, compute=HERE, rename=("flu=Grippe",))


@pytest.mark.parametrize("deep", [0, 5, 12])
def test_a_set_of_several_depths_says_how_many_are_scaled_from_their_own_range(tmp_path, deep):
    root = folder(tmp_path / "set")
    for path in sorted(root.rglob("*.png"))[:deep]:
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 9).save(path)
    notes = run("imagefolder", root, tmp_path / "out", compute=HERE)[0].manifest.info["notes"]
    sentence = (
        "5 of 12 images have more than 8 bits, and are scaled from their own darkest to their brightest value; the others "
        "are taken as they are."
    )
    assert notes == [sentence] * (deep == 5)


def test_a_set_prepared_by_other_rules_opens_but_is_not_taken_for_this_preparation(tmp_path):
    root, out = folder(tmp_path / "set", 12), tmp_path / "out"
    done, _ = run("imagefolder", root, out, compute=HERE)
    recipe = {
        key: value for key, value in done.manifest.info["recipe"].items() if key not in ("rules", "rename", "resplit")
    }
    write_manifest(out, dataclasses.replace(done.manifest, info=done.manifest.info | {"recipe": recipe}))
    assert read_manifest(out).content_hash == done.manifest.content_hash
    with pytest.raises(UserError, match=r"was prepared by another version of clipcovid.*--overwrite"):
        run("imagefolder", root, out, compute=HERE)
    assert run("imagefolder", root, out, compute=HERE, overwrite=True)[0].created


def test_a_users_mistake_on_the_command_line_ends_with_status_2():
    done = job("--source", "covidquex", "--root", "/nowhere")
    assert (done.returncode, done.stderr) == (2, "error: --root /nowhere does not exist.\n")


@pytest.mark.faults
def test_killed_at_any_time_it_ends_complete(tmp_path):
    out = tmp_path / "out"
    flags = ["--source", "phantom", "--out", out, "--phantom.images", 1500, "--phantom.size", 64, "--size", 64]
    command = [sys.executable, str(JOB), *map(str, flags), "--compute.address", "local"]
    kills = 0
    for wanted in (0, 1, 2, 4):  # shards that are there when it is killed
        started = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while started.poll() is None and len(list((out / "images").glob("*.arrow"))) <= wanted:
            time.sleep(0.02)
        kills += started.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        time.sleep(5)  # Ray's own processes see that their driver is gone
    assert kills >= 2
    done = job(*flags, "--compute.address", "local")
    assert done.returncode == 0, done.stderr
    packed = PackedImages(out)
    assert len(packed) == 1500
    assert not list((out / "images").glob(".*"))
    assert len(list((out / "images").glob("*.arrow"))) == 6
    for at in (0, 700, 1499):
        image = decode_pixels(Path(packed.manifest.table["path"][at]).read_bytes(), max_pixels=10**6)
        np.testing.assert_array_equal(packed.images([at])[0], fit_image(image, ImagesConfig(size=64)))
    assert read_manifest(out).table["image_id"].is_unique


def test_the_folder_is_named_after_the_source_unless_told():
    assert PrepareConfig(source="medpix2", root="x").out == Path("data/medpix2")
    assert PrepareConfig(out=Path("there")).out == Path("there")
