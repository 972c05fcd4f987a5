"""What several test files share: one Ray, prepared phantoms, and a tiny checkpoint."""

import os
from pathlib import Path

import pytest

os.environ.pop("RAY_ADDRESS", None)
os.environ["MPLBACKEND"] = "Agg"

from clipcovid.config import ComputeConfig
from clipcovid.data.prepare import PrepareConfig, prepare
from clipcovid.data.sources import PhantomConfig
from clipcovid.resources import connect

LOCAL = ComputeConfig(address="local")
HERE = ComputeConfig(workers=0)  # no Ray, whose workers import everything anew


@pytest.fixture(scope="session")
def cluster():
    """A local Ray that every test of this process uses."""
    connect(LOCAL)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A prepared folder of 90 phantoms at 64 px; not to be written to, but for embeddings."""
    out = tmp_path_factory.mktemp("phantoms")
    prepare(PrepareConfig(out=out, phantom=PhantomConfig(images=90, size=96), compute=HERE), log=lambda text: None)
    return out


@pytest.fixture
def in_process(monkeypatch):
    """Embedding without Ray, one worker after another: every start of a worker would import torch anew."""

    def spread(items, work, chosen, *, total, label, settings):
        if items:
            worker = work(**settings)
            yield from map(worker, items)

    monkeypatch.setattr("clipcovid.inference.embed.spread", spread)
    monkeypatch.setattr("clipcovid.inference.embed.connect", lambda config: None)
    monkeypatch.setattr("clipcovid.inference.embed.nodes", lambda: [(2.0, 0.0)])


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real X-rays that CLIPCOVID_REAL_DATA names."""
    folder = os.environ.get("CLIPCOVID_REAL_DATA")
    if not folder:
        pytest.skip("CLIPCOVID_REAL_DATA names no folder of real X-rays")
    return Path(folder)
