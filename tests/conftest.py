"""What several test files share: one Ray, prepared phantoms, and a tiny checkpoint."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.pop("RAY_ADDRESS", None)
os.environ["MPLBACKEND"] = "Agg"

from clipcovid.config import ComputeConfig, ImagesConfig
from clipcovid.data.prepare import PrepareConfig, prepare
from clipcovid.data.sources import PhantomConfig
from clipcovid.ray_backend.cluster import connect

LOCAL = ComputeConfig(address="local")
HERE = ComputeConfig(workers=0)  # no Ray, whose workers import everything anew


class Evil:
    """Makes a folder when it is unpickled: what a checkpoint must not be able to do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def interruptible() -> None:
    """Take Ctrl-C in a new process, which shells turn off in what they start in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_and_list_imports(script, *args):
    """The finished process of a script, and the modules that it imported."""
    command = [sys.executable, "-X", "importtime", script, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = "".join(line for line in lines if not line.startswith("import time:"))
    return done, {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}


def shown_below(out):
    """Of each run that MLflow shows in the folder `out`, the names of those beneath it."""
    with sqlite3.connect(out / "mlflow.db") as database:  # importing MLflow takes seconds
        names = dict(database.execute("SELECT run_uuid, name FROM runs"))
        below = database.execute("SELECT run_uuid, value FROM tags WHERE key = 'mlflow.parentRunId'").fetchall()
    parents = dict(below)
    return {
        name: sorted(names[child] for child, parent in below if parent == run)
        for run, name in names.items()
        if run not in parents
    }


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A local Ray that every test of this process uses, started where the path of TMPDIR is too long for sockets."""
    folder = tmp_path_factory.mktemp("a-path-that-is-too-long-for-sockets-" + 60 * "x")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_TMPDIR", raising=False)
        patch.setenv("TMPDIR", str(folder))
        connect(LOCAL)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A prepared folder of 90 phantoms at 64 px; not to be written to, but for embeddings."""
    out = tmp_path_factory.mktemp("phantoms")
    drawn, packed = PhantomConfig(images=90, size=96), ImagesConfig(size=64)
    prepare(PrepareConfig(out=out, phantom=drawn, images=packed, compute=HERE), log=lambda text: None)
    return out


def named_folder(variable, what) -> Path:
    """The folder that an environment variable names; the test is skipped where it names none."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no folder of {what}")
    return Path(folder)


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """The folder of real pretrained weights that CLIPCOVID_REAL_WEIGHTS names."""
    return named_folder("CLIPCOVID_REAL_WEIGHTS", "pretrained weights")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real X-rays that CLIPCOVID_REAL_DATA names."""
    return named_folder("CLIPCOVID_REAL_DATA", "real X-rays")
