"""All pairs of methods: differences, tests and verdicts, against naive computation and statsmodels."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.contingency_tables import cochrans_q
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from clipcovid.evaluate import pairs, significance
from clipcovid.evaluate.draws import Draws

NAMES = ("best", "middle", "worst", "twin")


def drawn(samples=400, seed=0):
    """Draws of four methods, of which the last is the first's twin; a second metric that one of them lacks."""
    rng = np.random.default_rng(seed)
    values = np.array([0.9, 0.8, 0.7, 0.9])
    shared = rng.normal(0, 0.03, samples)
    f1 = values[:, None] + shared + rng.normal(0, 0.02, (4, samples))
    f1[3] = f1[0]
    other = np.where(np.arange(4)[:, None] == 1, np.nan, f1 / 2)
    return Draws({"f1": values, "other": other.mean(axis=1)}, {"f1": f1, "other": other})


def compared(**options):
    methods = {name: at for at, name in enumerate(NAMES)}
    return pairs.compare_pairs(drawn(), methods, ("f1", "other", "none"), judged_by="f1", **options)


def right_of(shares=(0.8, 0.7, 0.6), n=200, seed=3):
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    return np.array([hard + rng.normal(0, 0.1, n) < share for share in shares])


def test_every_pair_is_there_once_with_the_naive_difference():
    found = compared()
    assert [(pair.first, pair.second) for pair in found] == list(itertools.combinations(NAMES, 2))
    draws = drawn()
    for pair in found:
        one, two = NAMES.index(pair.first), NAMES.index(pair.second)
        gaps = draws.samples["f1"][one] - draws.samples["f1"][two]
        gap = pair.differences["f1"]
        assert gap["value"] == pytest.approx(draws.values["f1"][one] - draws.values["f1"][two])
        assert (gap["low"], gap["high"]) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])))
        assert (gap["low_90"], gap["high_90"]) == pytest.approx(tuple(np.percentile(gaps, [5, 95])))
        if pair.second != "twin" or pair.first != "best":
            assert gap["p"] == pytest.approx(2 * norm.sf(abs(gap["value"]) / gaps.std(ddof=1)))
        assert ("other" in pair.differences) == ("middle" not in (pair.first, pair.second))
        assert "none" not in pair.differences


def test_p_values_are_corrected_over_all_pairs_as_statsmodels_does():
    right = dict(zip(NAMES, right_of((0.8, 0.75, 0.6, 0.78)), strict=True))
    found = compared(correct=right)
    p_values = [pair.differences["f1"]["p"] for pair in found]
    assert [pair.differences["f1"]["p_holm"] for pair in found] == pytest.approx(
        multipletests(p_values, method="holm")[1]
    )
    tests = [pair.mcnemar for pair in found]
    assert [test["p_holm"] for test in tests] == pytest.approx(
        multipletests([test["p"] for test in tests], method="holm")[1]
    )


def test_mcnemar_of_every_pair_equals_statsmodels():
    right = dict(zip(NAMES, right_of((0.8, 0.75, 0.6, 0.78)), strict=True))
    for pair in compared(correct=right):
        one, two = right[pair.first], right[pair.second]
        table = [[np.sum(one & two), np.sum(one & ~two)], [np.sum(~one & two), np.sum(~one & ~two)]]
        assert pair.mcnemar["p"] == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
        assert [pair.mcnemar["only_first"], pair.mcnemar["only_second"]] == [table[0][1], table[1][0]]


def test_methods_that_are_not_tested_have_no_mcnemar():
    found = compared(correct={"best": np.ones(5, bool), "worst": np.zeros(5, bool)})
    assert [pair.mcnemar is not None for pair in found] == [
        {pair.first, pair.second} == {"best", "worst"} for pair in found
    ]
    assert found[1].mcnemar == {"only_first": 5, "only_second": 0, "p": 0.0625, "p_holm": 0.0625}


@pytest.mark.parametrize("shares", [(0.8, 0.7, 0.6), (0.7, 0.7, 0.7, 0.69), (0.9, 0.5)])
def test_cochrans_q_equals_statsmodels(shares):
    right = right_of(shares)
    ours, theirs = significance.cochran_q(right), cochrans_q(right.T.astype(int))
    assert (ours["statistic"], ours["df"], ours["p"]) == pytest.approx((theirs.statistic, theirs.df, theirs.pvalue))


def test_cochrans_q_where_nothing_tells_methods_apart():
    same = np.tile([True, False, True], (3, 1))
    assert significance.cochran_q(same) == {"statistic": 0.0, "df": 2, "p": 1.0}


def test_twins_differ_by_nothing_and_are_equivalent_only_by_a_margin():
    twins = next(pair for pair in compared() if (pair.first, pair.second) == ("best", "twin"))
    assert twins.differences["f1"]["p"] == 1.0
    assert (twins.differences["f1"]["low"], twins.differences["f1"]["high"], twins.verdict) == (0, 0, "undecided")
    margin = next(pair for pair in compared(margin=1e-6) if (pair.first, pair.second) == ("best", "twin"))
    assert margin.verdict == "equivalent"


@pytest.mark.parametrize(
    ("narrow", "wide", "margin", "expected"),
    [
        ((-0.01, 0.015), (-0.013, 0.018), 0.02, "equivalent"),
        ((0.005, 0.015), (0.003, 0.018), 0.02, "equivalent"),  # it differs, by too little to matter
        ((0.005, 0.015), (0.003, 0.018), None, "better"),
        ((-0.015, -0.005), (-0.018, -0.003), 0.01, "worse"),
        ((-0.01, 0.02), (-0.013, 0.03), 0.02, "undecided"),  # the margin itself is not within it
        ((0.001, 0.05), (-0.001, 0.06), 0.02, "undecided"),
        ((-0.01, 0.01), (-0.02, 0.02), None, "undecided"),
    ],
)
def test_verdicts(narrow, wide, margin, expected):
    assert significance.classify_difference(narrow, wide, margin) == expected


def test_swapping_the_methods_turns_every_number_around():
    draws = drawn()
    forth = pairs.compare_pairs(draws, {"a": 0, "b": 2}, ["f1"], judged_by="f1")[0]
    back = pairs.compare_pairs(draws, {"b": 2, "a": 0}, ["f1"], judged_by="f1")[0]
    assert (forth.verdict, back.verdict) == ("better", "worse")
    one, two = forth.differences["f1"], back.differences["f1"]
    assert (one["value"], one["low"], one["high"], one["p"]) == pytest.approx(
        (-two["value"], -two["high"], -two["low"], two["p"])
    )


def test_no_intervals_no_p_no_verdict():
    for pair in compared(intervals=False):
        assert pair.differences["f1"].keys() == {"value"}
        assert pair.verdict == ""


def test_a_mostly_undefined_difference_has_no_p():
    assert significance.bootstrap_p_value(0.1, np.array([0.1, np.nan, np.nan])) is None
    assert significance.bootstrap_p_value(float("nan"), np.ones(5)) is None
    assert significance.bootstrap_p_value(0.1, np.full(9, 0.1)) is None  # one value says nothing of the spread
    assert significance.bootstrap_p_value(0.0, np.zeros(9)) == 1.0


def test_the_p_value_is_right_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(300):
        sample = rng.normal(0, 1, 60)
        means = sample[rng.integers(0, 60, (200, 60))].mean(axis=1)
        rejected += significance.bootstrap_p_value(float(sample.mean()), means) < 0.05
    assert 0.02 < rejected / 300 < 0.09
