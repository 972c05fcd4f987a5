"""clipcovid.data.sources: Parquet files with the images in them."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import listed
from PIL import Image

from clipcovid.config import UserError
from clipcovid.data.images import BadImage, decode_pixels, read_bytes


def png(shade):
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, shade]], np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def export(file, count=5, first=1, names=("Flu", "Normal"), **more):
    """A Parquet file as `datasets` writes it, in row groups of two."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(first + row), "path": f"{row}.png"} for row in range(count)]
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    table = pa.table({"image": images, "label": [row % 2 for row in range(count)]} | more)
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(about), file, row_group_size=2)
    return file


def shades(table, column="path"):
    return [int(decode_pixels(read_bytes(path), max_pixels=100).max()) for path in table[column]]


def test_images_in_a_parquet_file_are_read(tmp_path):
    listing = listed("table", export(tmp_path / "odd #1" / "train.parquet"))
    assert shades(listing.table) == [1, 2, 3, 4, 5]
    assert shades(listing.table[::-1]) == [5, 4, 3, 2, 1]
    assert listing.table["label"].tolist() == ["Flu", "Normal", "Flu", "Normal", "Flu"]
    assert listing.table["image_id"].tolist() == [f"{row}.png" for row in range(5)]
    assert listing.notes == (
        "The images are those in the column image.",
        "The numbers in label are read as the classes Flu, Normal.",
    )
    export(tmp_path / "odd #1" / "train.parquet", first=2)
    assert listed("table", tmp_path / "odd #1" / "train.parquet").files_digest != listing.files_digest


def test_masks_and_plain_bytes_are_images_too(tmp_path):
    masks = [png(200 + row) for row in range(5)]
    path = export(tmp_path / "t.parquet", mask=masks, code=[b"\1\2"] * 5)
    listing = listed("table", path, path="image", lung_mask="mask")
    assert shades(listing.table, "lung_mask") == [200, 201, 202, 203, 204]
    with pytest.raises(UserError, match=r"which column of t\.parquet has the images.*\(image, mask\)"):
        listed("table", path)
    with pytest.raises(UserError, match=r"which column .*\(image, path\)"):
        listed("table", export(tmp_path / "t.parquet", path=["a.png"] * 5))


def test_a_folder_of_exports_is_one_table(tmp_path):
    export(tmp_path / "data/train-00000-of-00002.parquet", first=1)
    export(tmp_path / "data/train-00001-of-00002.parquet", first=6)
    export(tmp_path / "data/test-00000-of-00001.parquet", first=11)
    table = listed("table", tmp_path / "data").table.sort_values("image_id")
    assert table["split"].tolist() == ["test"] * 5 + ["train"] * 10
    assert shades(table) == [11, 12, 13, 14, 15, *range(1, 11)]
    assert table["image_id"].is_unique
    pd.DataFrame({"path": ["a.png"]}).to_parquet(tmp_path / "data/x.parquet")
    with pytest.raises(UserError, match="wants the table's file, or a folder of Parquet files"):
        listed("table", tmp_path / "data")


def test_a_cell_without_an_image_is_quarantined(tmp_path):
    images = [{"bytes": png(9), "path": None}, {"bytes": None, "path": "1.png"}, None]
    pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet")
    table = listed("table", tmp_path / "t.parquet").table
    assert table["image_id"].tolist() == ["000000", "1.png", "000002"]
    assert read_bytes(table["path"][0]) == png(9)
    for path in table["path"][1:]:
        with pytest.raises(BadImage, match="empty file"):
            decode_pixels(read_bytes(path), max_pixels=100)
    (tmp_path / "t.parquet").unlink()
    from clipcovid.data import parquet_images

    parquet_images._group.cache_clear(), parquet_images._group_sizes.cache_clear()
    with pytest.raises(BadImage, match="file not found"):
        read_bytes(table["path"][0])
