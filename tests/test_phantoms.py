"""Phantoms: what is written about a picture is what was drawn in it, and nothing but the lungs tells the class."""

import io
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clipcovid.config import UserError
from clipcovid.data.phantom_anatomy import SITES
from clipcovid.data.phantom_captions import ZONES
from clipcovid.data.phantoms import CLASSES, draw_phantom, write_phantoms

SIZE, TRAIN, TEST = 128, 600, 300  # blocks of ten indices share no patient, so that 0-599 and 600-899 do not either
AT_MOST, AT_LEAST = 0.45, 0.60


@pytest.fixture(scope="module")
def phantoms():
    return [draw_phantom(index, size=SIZE, seed=1) for index in range(TRAIN + TEST)]


@pytest.fixture(scope="module")
def labels(phantoms):
    return np.array([CLASSES.index(one.label) for one in phantoms])


def same(one, other):
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("image", "lung_mask", "infection_mask"))
        and (one.label, one.patient_id, one.source, one.view, one.caption, one.boxes)
        == (other.label, other.patient_id, other.source, other.view, other.caption, other.boxes)
    )  # fmt: skip


def test_same_index_and_seed_give_the_same_phantom_in_any_order(phantoms):
    for index in (731, 5, 44):
        assert same(draw_phantom(index, size=SIZE, seed=1), phantoms[index])
    assert not np.array_equal(draw_phantom(5, size=SIZE, seed=2).image, phantoms[5].image)


@pytest.mark.parametrize("size", [64, 256])
def test_size_only_sets_the_resolution(phantoms, size):
    for index, one in enumerate(phantoms[:10]):
        other = draw_phantom(index, size=size, seed=1)
        assert (other.label, other.patient_id, other.source, other.view) == (
            one.label, one.patient_id, one.source, one.view)  # fmt: skip
        assert other.image.shape == (size, size)
        assert np.mean(other.lung_mask) == pytest.approx(np.mean(one.lung_mask), rel=0.05)
        assert np.mean(other.infection_mask) == pytest.approx(np.mean(one.infection_mask), rel=0.25, abs=1)


def test_arrays_and_infection_inside_the_lungs(phantoms):
    for one in phantoms:
        for pixels in (one.image, one.lung_mask, one.infection_mask):
            assert pixels.shape == (SIZE, SIZE)
            assert pixels.dtype == np.uint8
        assert set(np.unique(one.lung_mask)) == {0, 255}
        assert set(np.unique(one.infection_mask)) <= {0, 255}
        assert not (one.infection_mask > one.lung_mask).any()
        assert 0.1 < (one.lung_mask > 0).mean() < 0.5
        assert one.infection_mask.any() == (one.label != "Normal")


def test_boxes_are_the_connected_parts_of_the_mask(phantoms):
    for one in phantoms:
        parts, count = ndimage.label(one.infection_mask, np.ones((3, 3)))
        assert len(one.boxes) == count
        for box, (rows, columns) in zip(one.boxes, ndimage.find_objects(parts), strict=True):
            assert box["label"] == "infection"
            assert (box["x"], box["x"] + box["width"]) == (columns.start, columns.stop)
            assert (box["y"], box["y"] + box["height"]) == (rows.start, rows.stop)


def test_a_patient_has_one_class_and_one_site_and_at_most_four_images(phantoms):
    patients = {}
    for one in phantoms:
        patients.setdefault(one.patient_id, []).append((one.label, one.source))
    assert all(len(set(rows)) == 1 and len(rows) <= 4 for rows in patients.values())
    assert {len(rows) for rows in patients.values()} == {1, 2, 3, 4}
    assert not {one.patient_id for one in phantoms[:TRAIN]} & {one.patient_id for one in phantoms[TRAIN:]}


def test_classes_views_and_sites_all_occur_together(phantoms):
    counts = Counter((one.label, one.view, one.source) for one in phantoms)
    assert len(counts) == len(CLASSES) * 2 * len(SITES)
    assert min(counts.values()) >= 15


def drawn(one):
    """Side → zones of it that hold over a fifth of its infection, with the patient's left at the image's right."""
    middle = round(ndimage.center_of_mass(one.lung_mask)[1])
    found = {}
    for side, part in (("right", np.s_[:, :middle]), ("left", np.s_[:, middle:])):
        lung, infection = one.lung_mask[part] > 0, one.infection_mask[part] > 0
        thirds = np.array_split(np.flatnonzero(lung.any(1)), 3)
        zones = [
            zone for zone, rows in zip(ZONES, thirds, strict=True) if infection[rows].sum() > 0.2 * infection.sum()
        ]
        if infection.any():
            found[side] = "upper, middle and lower" if len(zones) == 3 else " and ".join(zones)
    return found


def test_captions_name_the_sides_and_zones_that_were_drawn(phantoms):
    for one in phantoms:
        words, found = one.caption.lower(), drawn(one)
        both = "both lungs" in words or "bilateral" in words
        said = {"left", "right"} if both else {side for side in ("left", "right") if f"{side} " in words}
        assert said == set(found), one.caption
        if not found:
            assert not any(word in words for word in (*ZONES, "opaci", "airspace"))
        for side, zones in found.items():
            if f"{side} " in words:
                assert f"{side} {zones} zone" in words
            elif " zone" in words:
                assert f" {zones} zone" in words
        assert ("ap view" in words or "ap chest" in words) <= (one.view == "AP")
        assert ("pa view" in words or "pa chest" in words) <= (one.view == "PA")


def test_captions_repeat_and_vary(phantoms):
    counts = Counter(one.caption for one in phantoms)
    assert counts.most_common(1)[0][1] >= 10
    assert len(counts) >= len(phantoms) // 3


def file_size(image, kind):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.tell()


def frame(image):
    cells = image.reshape(SIZE // 8, 8, SIZE // 8, 8).mean((1, 3))
    inner = np.zeros(cells.shape, bool)
    inner[1:-1, 1:-1] = True
    return cells[~inner]


SHORTCUTS = {
    "histogram": lambda image: np.histogram(image, 64, (0, 256))[0],
    "border": frame,
    "png size": lambda image: [file_size(image, "PNG")],
    "jpeg size": lambda image: [file_size(image, "JPEG")],
}


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_a_shortcut_does_not_tell_the_class(phantoms, labels, shortcut):
    features = np.array([SHORTCUTS[shortcut](one.image) for one in phantoms], float)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(
        features[:TRAIN], labels[:TRAIN]
    )
    assert model.score(features[TRAIN:], labels[TRAIN:]) <= AT_MOST


@pytest.fixture
def one_thread():
    """So small a model gains nothing from more threads, and waits long for them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cnn_accuracy(images, labels):
    """Test accuracy of a small CNN at a quarter of the pixels, trained for a few epochs."""
    torch.manual_seed(0)
    x = torch.nn.functional.avg_pool2d(torch.from_numpy(np.stack(images)).float()[:, None], 2)
    x, y = (x - x[:TRAIN].mean()) / x[:TRAIN].std(), torch.from_numpy(labels)
    layers = []
    for before, after in ((1, 12), (12, 24), (24, 48)):
        layers += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
        layers += [torch.nn.MaxPool2d(2)]
    model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48 * 16, 3))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=10 * -(-TRAIN // 32))
    for _ in range(10):
        for batch in torch.randperm(TRAIN).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return (model(x[TRAIN:]).argmax(1) == y[TRAIN:]).float().mean().item()


@pytest.mark.usefixtures("one_thread")
def test_a_cnn_learns_the_class_from_whole_images(phantoms, labels):
    assert cnn_accuracy([one.image for one in phantoms], labels) >= AT_LEAST


@pytest.mark.usefixtures("one_thread")
def test_a_cnn_learns_nothing_from_what_is_outside_the_lungs(phantoms, labels):
    assert cnn_accuracy([one.image * (one.lung_mask == 0) for one in phantoms], labels) <= AT_MOST


def test_written_set_reads_back_and_is_not_written_twice(tmp_path):
    write_phantoms(tmp_path, images=12, size=64)
    table = pd.read_csv(tmp_path / "metadata.csv", keep_default_na=False)
    assert list(table) == [
        "path", "label", "patient_id", "source", "view", "caption", "lung_mask", "infection_mask", "boxes"]  # fmt: skip
    for index, row in enumerate(table.itertuples()):
        one = draw_phantom(index, size=64)
        assert row.caption == one.caption
        assert json.loads(row.boxes) == one.boxes
        for path, pixels in (
            (row.path, one.image),
            (row.lung_mask, one.lung_mask),
            (row.infection_mask, one.infection_mask),
        ):
            assert np.array_equal(np.asarray(Image.open(tmp_path / path)), pixels)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_phantoms(tmp_path, images=12, size=64)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_other_parameters_write_anew_and_an_unfinished_set_is_finished(tmp_path):
    write_phantoms(tmp_path, images=6, size=32)
    write_phantoms(tmp_path, images=4, size=32, seed=3)
    assert len(pd.read_csv(tmp_path / "metadata.csv")) == 4
    assert len(list((tmp_path / "images").iterdir())) == 4
    (tmp_path / "metadata.csv").unlink()
    write_phantoms(tmp_path, images=4, size=32, seed=3)
    assert len(pd.read_csv(tmp_path / "metadata.csv")) == 4


def test_another_data_set_is_not_overwritten(tmp_path):
    (tmp_path / "metadata.csv").write_text("mine")
    with pytest.raises(UserError, match="not a phantom set"):
        write_phantoms(tmp_path, images=2, size=32)
    assert (tmp_path / "metadata.csv").read_text() == "mine"
