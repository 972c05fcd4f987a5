"""clipcovid.data.packed: shards and their reader."""

import dataclasses
import pickle

import numpy as np
import pandas as pd
import pytest

from clipcovid.config import UserError
from clipcovid.data.manifest import Manifest, normalize_columns, read_manifest, write_manifest
from clipcovid.data.packed import PackedImages
from clipcovid.data.shards import mask_hashes, read_shard, write_shard

SIZE = 16


def row(number, mode="gray", **masks):
    shape = (SIZE, SIZE) if mode == "gray" else (SIZE, SIZE, 3)
    pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    about = {"image_id": f"{number}.png", "width": 40, "height": 30, "sha256": str(number), "bad": "{}"}
    return about | {"image": pixels.tobytes(), "lung_mask": b"", "infection_mask": b""} | masks


def folder(path, shards, mode="gray", ids=None):
    """A prepared folder of these shards' rows, in the manifest sorted by id, or of `ids`."""
    for number, rows in enumerate(shards):
        write_shard(path / "images" / f"{number:05}.arrow", rows)
    ids = ids or sorted(row["image_id"] for rows in shards for row in rows)
    table = normalize_columns(pd.DataFrame({"image_id": ids, "split": "train"}))
    images = {"size": SIZE, "mode": mode}
    write_manifest(path, Manifest(table=table, classes=(), dataset="x", info={"images": images}))
    return path


def test_masks_are_known_by_their_pixels(tmp_path):
    empty, mask = bytes(SIZE * SIZE), bytes(SIZE * SIZE - 1) + b"\xff"
    one, same, other, none = (
        mask_hashes(folder(tmp_path / name, [[row(1, **given), row(2)]]))
        for name, given in (
            ("one", {"lung_mask": mask}),
            ("same", {"lung_mask": mask}),
            ("other", {"lung_mask": empty}),
            ("none", {}),
        )
    )
    assert one == same != other
    assert (set(one), none) == ({"lung_mask"}, {})


def pixels(number, mode="gray"):
    shape = (SIZE, SIZE) if mode == "gray" else (SIZE, SIZE, 3)
    return np.frombuffer(row(number, mode)["image"], np.uint8).reshape(shape)


@pytest.mark.parametrize("mode", ["gray", "rgb"])
def test_images_are_read_in_any_order_over_shards_and_repeatedly(tmp_path, mode):
    folder(tmp_path, [[row(7, mode), row(3, mode)], [row(1, mode)], [row(5, mode), row(2, mode)]], mode)
    packed = PackedImages(tmp_path)
    ids = [1, 2, 3, 5, 7]
    for order in ([0, 1, 2, 3, 4], [4, 0, 4, 4, 2], [3], np.array([2, 1]), iter([1, 0])):
        order = list(order)
        asked = np.stack([pixels(ids[at], mode) for at in order])
        np.testing.assert_array_equal(packed.images(order), asked)
    assert len(packed) == 5
    assert packed.images(iter([1])).flags.writeable
    assert packed.images([]).shape == (0, *asked.shape[1:])
    with pytest.raises(IndexError):
        packed.images([5])


def test_masks_absent_blank_and_there_are_told_apart(tmp_path):
    drawn = np.zeros((SIZE, SIZE), np.uint8)
    drawn[3:5] = 255
    blank = bytes(SIZE * SIZE)
    rows = [row(0), row(1, lung_mask=drawn.tobytes()), row(2, lung_mask=blank, infection_mask=blank)]
    packed = PackedImages(folder(tmp_path, [rows]))
    absent, there, zeros = packed.masks("lung_mask", [0, 1, 2])
    assert absent is None
    np.testing.assert_array_equal(there, drawn)
    np.testing.assert_array_equal(zeros, np.zeros_like(drawn))
    assert [mask is None for mask in packed.masks("infection_mask", [2, 1, 0, 2])] == [False, True, True, False]


def test_pickles_small_and_reads_on(tmp_path):
    folder(tmp_path, [[row(i) for i in range(100)]])
    packed = PackedImages(tmp_path)
    sent = pickle.dumps(packed)
    assert len(sent) < 100 * SIZE * SIZE
    back = pickle.loads(sent)
    np.testing.assert_array_equal(back.images(range(100)), packed.images(range(100)))
    assert back.manifest.content_hash == packed.manifest.content_hash


def test_an_image_that_no_shard_holds_is_a_sentence(tmp_path):
    folder(tmp_path, [[row(0)]], ids=["0.png", "lost.png"])
    with pytest.raises(UserError, match=r"no packed image 'lost\.png'.*--overwrite"):
        PackedImages(tmp_path)


def test_stored_places_are_used_only_for_the_packed_files_that_they_are_of(tmp_path, monkeypatch):
    folder(tmp_path, [[row(7), row(3)], [row(1), row(5), row(2)]])
    with monkeypatch.context() as patch:
        patch.setattr("clipcovid.data.manifest.locate_packed_rows", None)  # nothing is looked up
        np.testing.assert_array_equal(PackedImages(tmp_path).images([0, 4]), [pixels(1), pixels(7)])
    write_shard(tmp_path / "images" / "00001.arrow", [row(2), row(5), row(4), row(1)])
    np.testing.assert_array_equal(PackedImages(tmp_path).images(range(5)), [pixels(n) for n in (1, 2, 3, 5, 7)])
    write_shard(tmp_path / "images" / "00002.arrow", [row(8)])
    assert len(PackedImages(tmp_path)) == 5


def test_rows_of_a_manifest_are_found_among_all_packed_images(tmp_path):
    manifest = read_manifest(folder(tmp_path, [[row(7), row(3)], [row(1), row(5), row(2)]]))
    some = dataclasses.replace(manifest, table=manifest.table.iloc[[4, 1]].reset_index(drop=True))
    np.testing.assert_array_equal(PackedImages(tmp_path, some).images([0, 1]), [pixels(7), pixels(2)])
    changed = manifest.with_columns(caption="new")
    np.testing.assert_array_equal(PackedImages(tmp_path, changed).images([4]), [pixels(7)])


def test_partial_files_are_passed_over(tmp_path):
    folder(tmp_path, [[row(0)]])
    (tmp_path / "images" / ".00001.arrow.4711").write_bytes(b"half")
    assert len(PackedImages(tmp_path)) == 1


def test_a_damaged_shard_is_a_sentence(tmp_path):
    folder(tmp_path, [[row(0)], [row(1)]])
    path = tmp_path / "images" / "00001.arrow"
    for content in (b"", path.read_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"00001\.arrow is damaged .*--overwrite"):
            PackedImages(tmp_path)


def test_a_shard_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "images" / "00000.arrow"
    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.ipc.RecordBatchFileWriter.close", lambda self: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(UserError, match="can't be written"):
            write_shard(path, [row(0)])
    assert list(path.parent.iterdir()) == []
    write_shard(path, [row(0)])
    assert read_shard(path).num_rows == 1
