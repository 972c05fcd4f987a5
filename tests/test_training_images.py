"""Which images a model learned from."""

import hashlib

import pandas as pd
import pytest

from clipcovid.data.manifest import Manifest, normalize_columns
from clipcovid.data.training_images import TrainingImages, read_training_images, seen_in_training
from clipcovid.io.files import write_json


def rows(*names):
    """Manifest rows of images whose pixels have these names; "" is of an unknown one."""
    hashes = [hashlib.sha256(name.encode()).hexdigest() if name else "" for name in names]
    return pd.DataFrame({"sha256": hashes})


def test_images_are_known_by_their_pixels_alone():
    images = TrainingImages.from_splits({"train": rows("a", "b", "b", ""), "val": rows("c")})
    assert images.contains(rows("b", "x", "c", "")).tolist() == [True, False, True, False]
    assert images.contains(rows("b", "c"), ["train"]).tolist() == [True, False]
    assert len(images.table) == 3


def test_what_several_learned_from_is_kept_together(tmp_path):
    one, other = (
        TrainingImages.from_splits({"train": rows("a")}),
        TrainingImages.from_splits({"train": rows("a", "b"), "val": rows("a")}),
    )
    checkpoint = tmp_path / "run" / "checkpoint"
    (checkpoint / "hf").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_text("")
    TrainingImages.union([one, other]).write(checkpoint)
    for place in (tmp_path / "run", checkpoint, checkpoint / "hf", checkpoint / "model.safetensors"):
        images = read_training_images(place)
        assert images is not None
        assert images.contains(rows("a", "b", "c")).tolist() == [True, True, False]
    assert read_training_images(tmp_path) is None


@pytest.mark.parametrize(
    ("split_hash", "known", "says"),
    [
        (None, [True, False], "taken to be those of the train and val split"),
        ("another", [False, False], "is not known"),
    ],
)
def test_a_run_of_an_older_version_is_judged_by_its_split(tmp_path, split_hash, known, says):
    table = normalize_columns(pd.DataFrame({"image_id": ["1", "2"], "split": ["train", "test"], "label": "a"}))
    manifest = Manifest(table=table, classes=("a",), dataset="d")
    write_json(tmp_path / "config.json", {"identity": {"split_hash": split_hash or manifest.split_hash}})
    (tmp_path / "checkpoint").mkdir()
    found, assumed = seen_in_training(tmp_path, manifest)
    assert found.tolist() == known
    assert says in assumed


@pytest.mark.parametrize("text", ["{", "[1]", '{"identity": 3}', '{"model_type": "clip"}', ""])
def test_a_config_of_anything_else_tells_nothing(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    table = normalize_columns(pd.DataFrame({"image_id": ["1"], "split": ["train"], "label": "a"}))
    found, assumed = seen_in_training(tmp_path, Manifest(table=table, classes=("a",), dataset="d"))
    assert (found.tolist(), assumed) == ([False], "")
