"""Many zero-shot classifiers scored at once, against scikit-learn one by one."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from clipcovid.evaluate.prompt_scoring import score_candidates

CLASSES = ("a", "b", "c")


def unit(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    return unit(rng.normal(size=(80, 6))), unit(rng.normal(size=(5, 3, 6))), rng.integers(0, 3, 80)


def test_macro_f1_is_scikit_learns(drawn):
    images, texts, labels = drawn
    found = score_candidates(images, texts, labels, CLASSES, "macro_f1", 10)
    for value, one in zip(found, texts, strict=True):
        assert value == pytest.approx(f1_score(labels, (images @ one.T).argmax(axis=1), average="macro"))


def test_macro_auroc_is_scikit_learns(drawn):
    images, texts, labels = drawn
    found = score_candidates(images, texts, labels, CLASSES, "macro_auroc", 10)
    for value, one in zip(found, texts, strict=True):
        raised = np.exp(10 * (images @ one.T).astype(np.float64))
        chances = raised / raised.sum(axis=1, keepdims=True)
        assert value == pytest.approx(roc_auc_score(labels, chances, multi_class="ovr", average="macro"), abs=1e-6)


def test_equal_texts_are_no_better_than_chance(drawn):
    images, texts, labels = drawn
    same = np.repeat(texts[:1, :1], 3, axis=1)
    assert score_candidates(images, same, labels, CLASSES, "macro_auroc", 10)[0] == pytest.approx(0.5)


def test_a_class_without_images_counts_in_no_mean(drawn):
    images, texts, labels = drawn
    two = np.where(labels == 2, 0, labels)
    for objective in ("macro_f1", "macro_auroc"):
        assert np.isfinite(score_candidates(images, texts, two, CLASSES, objective, 10)).all()
