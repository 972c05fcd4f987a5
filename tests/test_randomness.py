"""Seeds of streams: one for each set of counters, the same everywhere."""

import ast
from pathlib import Path

import pytest

from clipcovid.cli import check_seeds
from clipcovid.config import UserError
from clipcovid.data.prepare import PrepareConfig
from clipcovid.data.sources import PhantomConfig
from clipcovid.randomness import stream_seed

ROOT = Path(__file__).parents[1]


def test_no_two_sets_of_counters_share_a_seed():
    counters = [(), (0,), (1,), (-1,), (-2,), (0, 0), (0, 1), (1, 0), (2**32,), (0, 0, 1), (2**32, 0)]
    seeds = [stream_seed(stream, *each) for stream in ("noise", "augment") for each in counters]
    seeds += [stream_seed("order", seed, epoch, row) for seed in range(9) for epoch in range(9) for row in range(9)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_never_changes():
    assert stream_seed("noise", 0, 1, 2) == 2742594726479796356


def test_nothing_is_drawn_from_hash():
    for folder in ("clipcovid", "jobs", "tune", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "hash"], path


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_generators_refuse_are_refused_first(seed):
    for config in (PrepareConfig(seed=seed), PrepareConfig(phantom=PhantomConfig(seed=seed))):
        with pytest.raises(UserError, match=r"seed -?\d+ is not a whole number from 0"):
            check_seeds(config)
    check_seeds(PrepareConfig(seed=2**32 - 1))
