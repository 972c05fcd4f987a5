"""Seconds from a training's command to its first step, beside those of an empty `TorchTrainer.fit`.

    python benchmarks/startup.py
    python benchmarks/startup.py --rounds 7 --out startup.json

The training is `jobs/cnn.py` on 60 phantoms, with 0, 1 and 2 workers in turns.
"""

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clipcovid.cli import run_job
from clipcovid.io.files import write_json

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How often it is measured."""

    rounds: int = 5
    """How often each takes its turn."""
    out: Path | None = None
    """A JSON file for every single figure."""


EMPTY_TRAINER_SCRIPT = """
import os, sys, tempfile
os.environ.update(RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2", RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0")
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
ray.init(address="local", include_dashboard=False, logging_level="ERROR")
workers = int(sys.argv[1])
scaling = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1})
run = RunConfig(storage_path=tempfile.mkdtemp())
TorchTrainer(lambda: print("FIRST", flush=True), scaling_config=scaling, run_config=run).fit()
"""


def _seconds_until(command: list[str], mark: str) -> float:
    """Seconds until a command prints `mark`; it is then let run to its end."""
    began, first = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert process.stdout is not None
    for line in process.stdout:
        if mark in line and not first:
            first = time.perf_counter() - began
    if process.wait() or not first:
        raise RuntimeError(f"{' '.join(command)} failed")
    return first


def startup_times(rounds: int) -> dict[str, list[float]]:
    """Seconds from command to first step, by workers: ours, and those of an empty `TorchTrainer.fit`'s first line."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data"
        prepare = [sys.executable, "jobs/prepare.py", "--source", "phantom", "--phantom.images", "60", "--size", "64"]
        subprocess.run([*prepare, "--out", data, "--compute.workers", "0"], cwd=ROOT, check=True, capture_output=True)
        for turn in range(rounds):
            for workers in (0, 1, 2):
                job = [sys.executable, "jobs/cnn.py", "--data", data, "--out", f"{folder}/{turn}-{workers}"]
                flags = ["--compute.address", "local", "--compute.workers", str(workers), "--optim.epochs", "1"]
                first_step = _seconds_until([*job, "--weights", "none", *flags], "step 1/")
                seconds.setdefault(f"ours, {workers} workers", []).append(first_step)
                if workers:
                    empty = _seconds_until([sys.executable, "-c", EMPTY_TRAINER_SCRIPT, str(workers)], "FIRST")
                    seconds.setdefault(f"empty, {workers} workers", []).append(empty)
    return seconds


def main(config: Config) -> None:
    """Measure, and print medians."""
    times = startup_times(config.rounds)
    for name, seconds in times.items():
        print(
            f"command to first step, {name}: {statistics.median(seconds):.1f} s ({', '.join(f'{s:.1f}' for s in seconds)})"
        )
    if config.out:
        write_json(config.out, times)


if __name__ == "__main__":
    run_job(Config, main, __doc__)
