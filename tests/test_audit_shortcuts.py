"""The shortcut probes: planted shortcuts are found, nothing is found where nothing is, and no patient is on both sides."""

import numpy as np
import pandas as pd
import pytest
from audit_sets import CLASSES, noise, noise_set, open_set, write_set

from clipcovid.audit import probes, shortcuts
from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import AuditData
from clipcovid.audit.probes import PROBES
from clipcovid.audit.shortcuts import check_shortcuts, grade, out_of_fold_scores, run_probe
from clipcovid.evaluate.metrics import classification_metrics

BY_NAME = {probe.name: probe for probe in PROBES}


def audited(folder, against=()):
    return {
        finding.check: finding
        for finding in check_shortcuts(AuditData(main=open_set(folder)), AuditConfig(data=folder))
    }


def faults(findings):
    return {name for name, finding in findings.items() if finding.severity in ("high", "medium")}


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_found_in_noise(tmp_path, seed):
    images, rows = noise_set(None, n=240, seed=seed)
    rows["source"] = [f"site {i // 2 % 2}" for i in range(240)]
    findings = audited(write_set(tmp_path / "set", images, rows))
    assert faults(findings) == set()
    assert (
        "source from the lungs, for no image has a known source and a lung mask" in findings["shortcut probes"].summary
    )


def test_many_images_of_few_patients_tell_no_class(tmp_path):
    """Each patient's images are alike: folds of images would tell the class at once, folds of patients can't."""
    rng = np.random.default_rng(0)
    faces = noise(rng, 45, 64)
    images = np.clip(faces.repeat(8, axis=0) + rng.normal(scale=5, size=(360, 64, 64)), 0, 255).astype(np.uint8)
    patients = [f"p{i // 8}" for i in range(360)]
    rows = {"label": [CLASSES[i // 8 % 3] for i in range(360)], "patient_id": patients}
    assert faults(audited(write_set(tmp_path / "set", images, rows))) == set()


def test_markers_burnt_into_a_class_are_found(tmp_path):
    """20 of 20: a bright or dark mark of 5 x 4 of 64 pixels, somewhere in a corner, on one class or a place for each."""
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        images, rows = noise_set(None, n=150, seed=seed)
        places = rng.permutation([(1, 1), (1, 56), (56, 1), (56, 56)])
        for i, label in enumerate(rows["label"]):
            place = CLASSES.index(label)
            if seed % 2 or place == seed % 3:
                y, x = places[place] + rng.integers(0, 3, 2)
                images[i, y : y + 5, x : x + 4] = 255 if seed % 4 < 2 else 0
        prepared = open_set(write_set(tmp_path / str(seed), images, rows))
        found += grade(run_probe(BY_NAME["class from corners"], prepared, 0), False) in ("high", "medium")
    assert found >= 19


def test_a_probe_that_tells_is_a_finding_with_its_numbers_and_images(tmp_path):
    images, rows = noise_set(None, n=240, seed=1)
    images[np.array(rows["label"]) == "Normal", 3:8, 3:6] = 255
    folder = write_set(tmp_path / "set", images, rows)
    found = audited(folder)
    corners = found["class from corners"]
    assert corners.severity == "high"
    assert "Normal from the others, AUROC" in corners.summary
    assert corners.numbers["chance"] == {"balanced_accuracy": 1 / 3, "auroc": 0.5}
    low, high = corners.numbers["intervals"]["auroc/Normal"]
    assert 0.8 < low <= corners.numbers["metrics"]["auroc/Normal"] <= high
    assert all(rows["label"][int(name[:-4])] == "Normal" for _, name in corners.examples[0].images)


def test_the_lungs_tell_and_what_is_outside_of_them_does_not(tmp_path):
    rng = np.random.default_rng(2)
    images, rows = noise_set(None, n=240, seed=2)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 12:28] = mask[20:44, 36:52] = 255
    for i, label in enumerate(rows["label"]):
        lungs = images[i][mask > 0].astype(float) * 0.2 + 60 * CLASSES.index(label) + 30 + rng.normal(scale=5)
        images[i][mask > 0] = np.clip(lungs, 0, 255)
    prepared = open_set(write_set(tmp_path / "set", images, rows, masks=[mask] * 240))
    scores = {
        name: run_probe(BY_NAME[f"class from {name}"], prepared, 0)
        for name in ("the image with its lungs blacked out", "the image with its centre blacked out", "the whole image")
    }
    macro = {name: result.metrics["macro_auroc"] for name, result in scores.items()}
    assert scores["the whole image"].metrics["auroc/Normal"] > 0.95
    assert abs(macro["the image with its lungs blacked out"] - 0.5) < 0.12
    assert abs(macro["the image with its centre blacked out"] - 0.5) < 0.12


def test_images_beyond_the_most_are_drawn_by_patient(tmp_path, monkeypatch):
    monkeypatch.setattr(shortcuts, "MAX_IMAGES", 101)
    images, rows = noise_set(None, n=240, seed=3)
    prepared = open_set(write_set(tmp_path / "set", images, rows))
    result = run_probe(BY_NAME["class from corners"], prepared, 0)
    assert len(result.rows) == 100  # whole patients, of two images each
    assert set(result.rows) == {row ^ 1 for row in result.rows.tolist()}
    assert "140 of 240 images" in result.left_out[0]


def test_files_of_another_size_tell_their_class(tmp_path):
    images, rows = noise_set(None, n=240, seed=3)
    rng = np.random.default_rng(3)
    rows["width"] = [int(rng.integers(60, 70)) + 8 * (label == "COVID-19") for label in rows["label"]]
    found = audited(write_set(tmp_path / "set", images, rows))
    assert found["class from file properties"].severity in ("high", "medium")
    assert "COVID-19 from the others" in found["class from file properties"].summary


@pytest.mark.parametrize(("confounded", "severity"), [(False, "low"), (True, "high")])
def test_a_source_that_shows_is_bad_where_the_classes_differ_between_the_sources(tmp_path, confounded, severity):
    images, rows = noise_set(None, n=240, seed=4)
    sites = (
        ["b" if label == "COVID-19" else "a" for label in rows["label"]]
        if confounded
        else ["ab"[i // 2 % 2] for i in range(240)]
    )
    images = np.where(np.array(sites)[:, None, None] == "b", images // 2, images).astype(np.uint8)
    found = audited(write_set(tmp_path / "set", images, rows | {"source": sites}))
    assert found["source from the image"].severity == severity


def test_probes_look_at_what_they_say():
    border, corner = probes.border_mask(4), probes.corner_mask(12)
    assert border.sum() == 64**2 - 56**2
    assert corner.sum() == 4 * 12**2
    assert border[0, 30]
    assert not border[4, 30]
    assert corner[[0, 63, 52], [0, 0, 11]].all()
    assert not corner[[0, 12], [12, 0]].any()
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    small = probes.small_images(images)
    assert small[1, 2, 3] == pytest.approx(images[1, 4:6, 6:8].mean())


def test_no_patient_is_scored_by_a_model_that_saw_the_patient():
    """Scores of a patient's images don't change with the labels of that patient."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(120, 8)), np.array([CLASSES[i // 4 % 3] for i in range(120)])
    groups = pd.Series([f"p{i // 4}" for i in range(120)])
    base = out_of_fold_scores(features, labels, groups, "linear", 0)
    moved = features.copy()
    moved[:4] += 100  # what the first patient's images are like changes other folds, and not the patient's own model
    changed = out_of_fold_scores(moved, labels, groups, "linear", 0)
    same_fold = np.isclose(base[4:], changed[4:]).all(axis=1)
    assert 15 <= same_fold.sum() <= 40  # the others of that patient's fold, about a fifth


def test_scores_of_two_classes_are_columns_in_their_order():
    rng = np.random.default_rng(0)
    labels = np.array(["b", "a"] * 50)
    features = (labels == "b")[:, None] + 0.1 * rng.normal(size=(100, 2))
    scores = out_of_fold_scores(features, labels, pd.Series(range(100)), "linear", 0)
    assert classification_metrics(labels.tolist(), scores, ["a", "b"])["accuracy"] == 1


@pytest.mark.parametrize("n", [1, 2, 12])
def test_few_images_are_said_and_not_probed(tmp_path, n):
    images, rows = noise_set(None, n=n)
    found = audited(write_set(tmp_path / "set", images, rows))
    assert list(found) == ["shortcut probes"]
    assert "0 of 9 shortcut probes were tried" in found["shortcut probes"].summary
    assert "too few images or patients" in found["shortcut probes"].summary or n == 1


def test_masks_of_some_images_are_said(tmp_path):
    images, rows = noise_set(None, n=300, seed=5)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 12:52] = 255
    masks = [mask if i < 240 else None for i in range(300)]
    prepared = open_set(write_set(tmp_path / "set", images, rows, masks=masks))
    result = run_probe(BY_NAME["class from the image with its lungs blacked out"], prepared, 0)
    assert len(result.rows) == 240
    assert result.left_out == ["60 images without a lung mask"]


def test_a_class_without_masks_leaves_the_probe_untried(tmp_path):
    images, rows = noise_set(None, n=240, seed=5)
    mask = np.full((64, 64), 255, np.uint8)
    masks = [mask if label == "Normal" else None for label in rows["label"]]
    prepared = open_set(write_set(tmp_path / "set", images, rows, masks=masks))
    reason = run_probe(BY_NAME["class from the image with its lungs blacked out"], prepared, 0)
    assert isinstance(reason, str)
    assert "160 images without a lung mask" in reason
