"""clipcovid.evaluate.calibration: each number beside a naive one, or a value known by hand."""

import itertools

import numpy as np
import pytest
from made_predictions import CLASSES, make

from clipcovid.evaluate import bootstrap, metrics
from clipcovid.evaluate.calibration import (
    BINS,
    are_probabilities,
    bin_indices,
    calibration_metrics,
    weighted_calibration_metrics,
)


def encoded(n, **options):
    labels, probabilities = make(n, **options)
    return np.array([CLASSES.index(label) for label in labels]), probabilities


def naive_ece(confidence, outcome, weights, ends):
    """A row at a time: bins are (low, high], the first with its lower end."""
    total = 0.0
    for low, high in itertools.pairwise(ends):
        rows = [i for i, c in enumerate(confidence) if low < c <= high or (low == ends[0] and c == low)]
        if weight := sum(weights[i] for i in rows):
            mean = sum(weights[i] * confidence[i] for i in rows) / weight
            share = sum(weights[i] * outcome[i] for i in rows) / weight
            total += weight * abs(mean - share)
    return total / sum(weights)


@pytest.mark.parametrize("seed", range(4))
def test_every_draw_is_that_of_plain_loops(seed):
    truth, probabilities = encoded(80, seed=seed)
    weights = np.random.default_rng(seed).integers(0, 3, (3, 80)).astype(float)
    draws = weighted_calibration_metrics(truth, probabilities)(weights)
    width = np.linspace(0, 1, BINS + 1)
    for row, weighting in enumerate(weights):
        squares = [
            sum((p - (i == t)) ** 2 for i, p in enumerate(rows)) for rows, t in zip(probabilities, truth, strict=True)
        ]
        assert draws["brier"][row] == pytest.approx(np.average(squares, weights=weighting))
        top, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
        assert draws["ece"][row] == pytest.approx(naive_ece(confidence, top == truth, weighting, width))
        mass = [0.0, *np.unique(np.quantile(confidence, width[1:-1], method="inverted_cdf")), 1.0]
        assert draws["ece_equal_mass"][row] == pytest.approx(naive_ece(confidence, top == truth, weighting, mass))
        each = [naive_ece(probabilities[:, i], truth == i, weighting, width) for i in range(3)]
        assert draws["classwise_ece"][row] == pytest.approx(np.mean(each))


def test_certainty_of_0_and_1_is_counted():
    """The ends of the scale are in bins: a confidence of exactly 1 that is wrong costs 1."""
    sure = np.eye(2)[[0, 0, 1, 1]]
    assert set(calibration_metrics(np.array([0, 0, 1, 1]), sure).values()) == {0}
    wrong = calibration_metrics(np.array([1, 1, 0, 0]), sure)
    assert wrong == pytest.approx(
        {"brier": 2, "ece": 1, "ece_equal_mass": 1, "classwise_ece": 1, "classwise_ece_equal_mass": 1}
    )


def test_a_constant_predictor_has_one_bin():
    truth = np.array([0] * 7 + [1] * 3)
    constant = np.tile([0.6, 0.4], (10, 1))
    for equal_mass in (False, True):
        assert len(np.unique(bin_indices(constant[:, 0], equal_mass=equal_mass))) == 1
    assert calibration_metrics(truth, constant)["ece"] == pytest.approx(0.1)
    assert calibration_metrics(truth, constant)["ece_equal_mass"] == pytest.approx(0.1)


def test_bins_of_equal_mass_have_equal_numbers_of_rows():
    confidence = np.random.default_rng(0).beta(8, 1, 1500)
    assert np.ptp(np.bincount(bin_indices(confidence, equal_mass=True))) <= 1
    assert np.ptp(np.bincount(bin_indices(confidence), minlength=BINS)) > 100


def test_promises_that_are_kept_cost_nothing_and_others_what_they_exceed():
    rng = np.random.default_rng(0)
    first = rng.random(200_000)
    probabilities = np.stack([first, 1 - first], axis=1)
    kept = calibration_metrics((rng.random(200_000) > first).astype(int), probabilities)
    assert max(value for name, value in kept.items() if "ece" in name) < 0.01
    sharper = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert calibration_metrics((rng.random(200_000) > first).astype(int), sharper)["ece"] > 0.1


def test_scores_that_are_no_probabilities_have_none():
    labels, probabilities = make(30)
    assert are_probabilities(probabilities)
    for scores in (probabilities * 100, probabilities - 0.5, np.log(probabilities)):
        assert not are_probabilities(scores)
        assert "brier" not in metrics.classification_metrics(labels, scores, CLASSES)
        assert "ece" not in bootstrap.classification_intervals(labels, scores, CLASSES, [""] * 30)["intervals"]


def test_calibration_has_intervals_and_baselines():
    labels, probabilities = make(120)
    values = metrics.classification_metrics(labels, probabilities, CLASSES)
    bounds = bootstrap.classification_intervals(labels, probabilities, CLASSES, [""] * 120)["intervals"]
    baselines = metrics.baseline_scores(labels, labels, CLASSES)
    assert bounds["brier"][0] < values["brier"] < bounds["brier"][1]
    assert {"ece", "classwise_ece", "ece_equal_mass"} <= bounds.keys()
    assert baselines["prior"]["brier"] == baselines["majority"]["brier"] > values["brier"]
    assert baselines["prior"]["classwise_ece"] == pytest.approx(0)  # it promises the very shares


def test_errors_are_those_of_mapie():
    """MAPIE's number of bins is that of their ends."""
    from mapie.metrics.calibration import expected_calibration_error

    truth, probabilities = encoded(300)
    right = (probabilities.argmax(axis=1) == truth).astype(int)
    ours, options = calibration_metrics(truth, probabilities), {"num_bins": BINS + 1, "split_strategy": "uniform"}
    assert ours["ece"] == pytest.approx(expected_calibration_error(right, probabilities.max(axis=1), **options))
    each = [expected_calibration_error((truth == at).astype(int), probabilities[:, at], **options) for at in range(3)]
    assert ours["classwise_ece"] == pytest.approx(np.mean(each))
