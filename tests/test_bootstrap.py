"""The fast bootstrap against a naive one, and what resampling by patient must do."""

import time

import numpy as np
import pytest
from made_predictions import CLASSES, make
from sklearn.metrics import average_precision_score, roc_auc_score

from clipcovid.config import UserError
from clipcovid.evaluate import bootstrap, metrics


def classification_of_rows(labels, probabilities, classes=CLASSES):
    return lambda rows: metrics.classification_metrics([labels[i] for i in rows], probabilities[rows], classes)


def groups_of(n, size):
    return [f"p{i // size}" for i in range(n)]


@pytest.mark.parametrize("shares", [None, [0.04, 0.16, 0.8], [0.5, 0.5, 0.0]])
@pytest.mark.parametrize("patients", [True, False])
def test_fast_intervals_equal_naive_ones(shares, patients):
    labels, probabilities = make(50, shares=shares)
    groups = groups_of(50, 3) if patients else [""] * 50
    fast = bootstrap.classification_intervals(labels, probabilities, CLASSES, groups, samples=60)
    slow = bootstrap.bootstrap(classification_of_rows(labels, probabilities), groups, samples=60)
    assert fast["intervals"].keys() <= slow["intervals"].keys()
    assert {"accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "macro_auprc", "macro_npv", "kappa"} <= fast[
        "intervals"
    ].keys()
    for name, interval in fast["intervals"].items():
        if "equal_mass" not in name:  # whose bins are those of all rows, not of each resample
            assert interval == pytest.approx(slow["intervals"][name], abs=1e-12), name
    assert (fast["unit"], fast["units"]) == (("patient", 17) if patients else ("image", 50))


def test_chunks_do_not_change_the_draws(monkeypatch):
    labels, probabilities = make(40)
    whole = draws_of(labels, probabilities, [""] * 40, samples=25)
    monkeypatch.setattr(bootstrap, "CHUNK_SIZE", 7 * 40)
    parts = draws_of(labels, probabilities, [""] * 40, samples=25)
    assert all(np.allclose(whole[name], parts[name], rtol=0, atol=1e-12, equal_nan=True) for name in whole)


@pytest.mark.parametrize("digits", [1, 9])  # with ties and without
def test_weighted_rankings_equal_scikit_learn(digits):
    labels, _ = make(80)
    positive = np.array(labels) == "Normal"
    scores = np.round(np.random.default_rng(2).random(80) + 0.2 * positive, digits)
    weights = np.random.default_rng(1).integers(0, 4, (10, 80)).astype(float)
    found = bootstrap.weighted_ranking_metrics(positive, scores)(weights)
    for name, metric in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        expected = [metric(positive, scores, sample_weight=row) for row in weights]
        assert found[name] == pytest.approx(expected, abs=1e-12)


def test_a_ranking_of_one_kind_alone_is_undefined():
    scores, weights = np.linspace(0, 1, 6), np.ones((2, 6))
    for positive in (np.ones(6, bool), np.zeros(6, bool)):
        assert all(
            np.isnan(values).all() for values in bootstrap.weighted_ranking_metrics(positive, scores)(weights).values()
        )
    some = bootstrap.weighted_ranking_metrics(np.arange(6) > 2, scores)(
        np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1.0]])
    )
    assert all(np.isnan(values).all() for values in some.values())


def test_draws_of_some_rows_are_those_of_a_table_of_these():
    labels, probabilities = make(90)
    rows = np.arange(90) % 4 > 0
    some = [label for label, taken in zip(labels, rows, strict=True) if taken]
    weights = np.random.default_rng(3).integers(0, 3, (5, 90)).astype(float)
    part = bootstrap.weighted_classification_metrics(labels, probabilities, CLASSES, rows)(weights)
    alone = bootstrap.weighted_classification_metrics(some, probabilities[rows], CLASSES)(weights[:, rows])
    assert part.keys() == {name for name in alone if "ece" not in name and name != "brier"}
    for name, values in part.items():
        assert values == pytest.approx(alone[name], abs=1e-12), name


def draws_of(labels, predictions, groups, **options):
    draw = bootstrap.weighted_classification_metrics(labels, predictions, CLASSES)
    return bootstrap.weighted_draws([draw], groups, **options)[0]


def width(interval):
    return interval[1] - interval[0]


def test_by_patient_is_wider_than_by_image_when_images_are_copies():
    labels, probabilities = make(40)
    labels, probabilities = [label for label in labels for _ in range(5)], np.repeat(probabilities, 5, axis=0)
    by_patient = bootstrap.classification_intervals(labels, probabilities, CLASSES, groups_of(200, 5))
    by_image = bootstrap.classification_intervals(labels, probabilities, CLASSES, [""] * 200)
    for name in ("accuracy", "macro_f1", "macro_auroc"):
        ratio = width(by_patient["intervals"][name]) / width(by_image["intervals"][name])
        assert 1.7 < ratio < 2.9, (name, ratio)  # sqrt(5) in theory
    assert (by_patient["unit"], by_image["unit"]) == ("patient", "image")


def test_copies_of_a_patient_leave_the_intervals_as_they_were():
    labels, probabilities = make(40)
    once = bootstrap.classification_intervals(labels, probabilities, CLASSES, [""] * 40)
    copies = bootstrap.classification_intervals(
        labels * 3, np.tile(probabilities, (3, 1)), CLASSES, [f"p{i}" for i in range(40)] * 3
    )
    for name, interval in once["intervals"].items():
        assert copies["intervals"][name] == pytest.approx(interval), name


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(150):
        right = rng.random(100) < 0.7
        interval = bootstrap.bootstrap(lambda rows: {"m": right[rows].mean()}, [""] * 100, samples=200, seed=seed)  # noqa: B023
        low, high = interval["intervals"]["m"]
        hits += low <= 0.7 <= high
    assert 0.88 <= hits / 150 <= 1


def test_unknown_patients_are_groups_of_their_own():
    result = bootstrap.bootstrap(lambda rows: {"n": len(rows)}, ["p", "p", "", "", None], samples=50)
    assert (result["unit"], result["units"]) == ("patient", 4)
    own_patients = bootstrap.bootstrap(lambda rows: {"n": len(rows)}, ["p", "q"], samples=10)
    assert own_patients["unit"] == "patient"


def test_rows_of_a_patient_are_drawn_together():
    groups, seen = ["a", "b", "a", "b", "c"], []
    bootstrap.bootstrap(lambda rows: seen.append(np.bincount(rows, minlength=5)) or {}, groups, samples=30)
    assert all(counts[0] == counts[2] and counts[1] == counts[3] for counts in seen)
    assert all(counts[[0, 1, 4]].sum() == 3 for counts in seen)


def test_seed_and_level():
    labels, probabilities = make(60)
    run = lambda **options: bootstrap.classification_intervals(labels, probabilities, CLASSES, [""] * 60, **options)  # noqa: E731
    assert run() == run()
    assert run(seed=1) != run()
    assert width(run(level=0.5)["intervals"]["accuracy"]) < width(run()["intervals"]["accuracy"])


def test_draws_of_two_methods_are_paired():
    labels, probabilities = make(60)
    draw = bootstrap.weighted_classification_metrics(labels, probabilities, CLASSES)
    first, second = bootstrap.weighted_draws([draw, draw], groups_of(60, 2), samples=50)
    again = draws_of(labels, probabilities, groups_of(60, 2), samples=50)
    assert (again["accuracy"] == first["accuracy"]).all()
    assert (first["accuracy"] - second["accuracy"] == 0).all()


def test_hard_labels_have_no_auroc_and_rare_metrics_no_interval():
    hard = bootstrap.classification_intervals(["a", "b", "a"], ["a", "b", "b"], ["a", "b"], [""] * 3)
    assert "accuracy" in hard["intervals"]
    assert not any("auroc" in name for name in hard["intervals"])
    one = bootstrap.classification_intervals(["a"], ["a"], ["a", "b"], ["p"])
    assert one["intervals"] == {}
    rare = bootstrap.bootstrap(lambda rows: {"m": 1.0} if 0 not in rows else {}, [""] * 10, samples=200)
    assert rare["intervals"] == {}  # defined in about a third of the resamples


def test_mistakes_are_sentences():
    with pytest.raises(UserError, match="1 patient ids for 2 labels"):
        bootstrap.classification_intervals(["a", "b"], ["a", "b"], ["a", "b"], ["p"])
    with pytest.raises(UserError, match="no rows"):
        bootstrap.bootstrap(lambda rows: {}, [])


def test_seven_thousand_rows_take_seconds():
    labels, probabilities = make(7000)
    start = time.perf_counter()
    bootstrap.classification_intervals(labels, probabilities, CLASSES, groups_of(7000, 2))
    assert time.perf_counter() - start < 10
