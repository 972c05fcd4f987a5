"""Runs of several seeds as one method: which they are, and intervals that know of seeds and patients."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipcovid.evaluate.draws import Draws
from clipcovid.evaluate.load_predictions import MethodPredictions
from clipcovid.evaluate.seeds import group_by_seed, seed_runs


def run(name, method="cnn", **identity):
    return MethodPredictions(
        name=f"{method} ({name})",
        source=f"outputs/{name}",
        path=Path(f"outputs/{name}/predictions/test.parquet"),
        metadata={"method": method, "identity": identity},
        trained_on=frozenset(),
        table=pd.DataFrame(),
    )


def test_runs_that_differ_in_their_seed_alone_are_one_method():
    runs = [run("a", seed=0, lr=1), run("b", seed=1, lr=1), run("c", "probe", seed=0, lr=1), run("d", seed=2, lr=1)]
    assert group_by_seed(runs) == {"cnn (3 seeds)": [0, 1, 3], "probe (c)": [2]}
    assert list(group_by_seed(runs, pool=False).values()) == [[0], [1], [2], [3]]


def test_other_settings_are_other_methods_with_names_of_their_own():
    runs = [run(f"{lr}-{seed}", seed=seed, lr=lr) for lr in (1, 2) for seed in (0, 1)]
    assert group_by_seed(runs) == {"cnn (2 seeds, 1-0 …)": [0, 1], "cnn (2 seeds, 2-0 …)": [2, 3]}
    one_each = [run("a", seed=0, lr=1), run("b", seed=1, lr=2)]
    assert list(group_by_seed(one_each)) == ["cnn (a)", "cnn (b)"]


def test_a_seed_that_stands_twice_or_is_not_known_pools_nothing():
    assert list(group_by_seed([run("a", seed=0), run("b", seed=0)]).values()) == [[0], [1]]
    assert list(group_by_seed([run("a"), run("b")]).values()) == [[0], [1]]


def test_seeds_of_random_weights_count_as_seeds():
    runs = [run(str(seed), seed=seed, **{"clip.weights": "none", "clip.seed": str(seed)}) for seed in (0, 1)]
    assert list(group_by_seed(runs).values()) == [[0, 1]]


def test_the_spread_is_that_of_the_seeds():
    runs = [run("a", seed=4), run("b", seed=7)]
    found = seed_runs(runs, [{"f1": 0.5, "own": 1.0}, {"f1": 0.7}])
    assert dataclasses.asdict(found) == {
        "runs": ["a", "b"],
        "sources": ["outputs/a", "outputs/b"],
        "seeds": [4, 7],
        "values": {"f1": [0.5, 0.7]},
        "std": {"f1": pytest.approx(0.2 / np.sqrt(2))},
    }


def made_draws(seed_effects, samples=4000, patient_deviation=0.02):
    rng = np.random.default_rng(5)
    shared = rng.normal(0, patient_deviation, samples)
    values = 0.7 + np.asarray(seed_effects)
    return Draws({"f1": values}, {"f1": values[:, None] + shared})


def test_one_seed_is_left_as_it_is():
    draws = made_draws([0.0, 0.1])
    pooled = draws.pool([[1], [0]])
    assert (pooled.samples["f1"] == draws.samples["f1"][::-1]).all()
    assert pooled.values["f1"].tolist() == draws.values["f1"][::-1].tolist()


@pytest.mark.parametrize("effects", [(-0.05, 0.05), (-0.04, 0.0, 0.04), (-0.06, -0.01, 0.02, 0.05)])
def test_the_variance_is_that_of_seeds_and_that_of_patients(effects):
    pooled = made_draws(effects).pool([range(len(effects))])
    assert pooled.values["f1"][0] == pytest.approx(0.7 + np.mean(effects))
    expected = np.var(effects, ddof=1) / len(effects) + 0.02**2
    assert pooled.samples["f1"][0].var() == pytest.approx(expected, rel=0.08)
    assert pooled.samples["f1"][0].mean() == pytest.approx(pooled.values["f1"][0], abs=0.003)


def test_no_resample_leaves_the_range_of_the_seeds():
    samples = np.random.default_rng(0).uniform(0, 1, (2, 500)).round()
    pooled = Draws({"f1": samples.mean(axis=1)}, {"f1": samples}).pool([[0, 1]])
    assert set(pooled.samples["f1"][0]) <= {0.0, 1.0}


def test_equal_seeds_leave_only_the_patients():
    draws = made_draws([0.0, 0.0, 0.0])
    assert draws.pool([[0, 1, 2]]).samples["f1"][0] == pytest.approx(draws.samples["f1"][0])


def test_seeds_are_the_same_in_every_metric_and_differ_between_methods():
    draws = made_draws([-0.05, 0.05, -0.05, 0.05])
    twice = Draws(draws.values | {"g": draws.values["f1"]}, draws.samples | {"g": draws.samples["f1"]})
    pooled = twice.pool([[0, 1], [2, 3]])
    assert (pooled.samples["f1"] == pooled.samples["g"]).all()
    assert not np.allclose(pooled.samples["f1"][0], pooled.samples["f1"][1])


def test_what_a_seed_lacks_the_method_lacks():
    draws = Draws({"f1": np.array([0.5, np.nan])}, {"f1": np.array([[0.5, 0.6], [np.nan, 0.7]])})
    pooled = draws.pool([[0, 1]])
    assert np.isnan(pooled.values["f1"][0])
    assert np.isnan(pooled.samples["f1"][0]).any()
