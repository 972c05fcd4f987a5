"""How long a comparison takes, on made predictions.

    python benchmarks/compare.py
    python benchmarks/compare.py --methods 4 --rows 7000 --samples 1000

The predictions are written as runs write them, read, compared, and the comparison is written; each part is timed.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from clipcovid.cli import run_job
from clipcovid.evaluate.compare import CompareConfig, compare, write_comparison
from clipcovid.evaluate.load_predictions import load_method_predictions
from clipcovid.evaluate.predictions import write_predictions

CLASSES = ("COVID-19", "Non-COVID", "Normal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to compare."""

    methods: int = 12
    """How many methods."""
    rows: int = 34_000
    """Images that each of them predicts."""
    val_rows: int = 5_000
    """Validation images that each of them predicts, for calibration and operating points; 0: none."""
    images_per_patient: int = 2
    """How many images a patient has."""
    samples: int = 2_000
    """Resamples of the bootstrap."""


def write_made_runs(folder: Path, config: Config) -> list[Path]:
    """Runs of methods of growing skill that predict the same images; gives their folders."""
    runs = [folder / f"method-{number:02}" for number in range(config.methods)]
    for split, rows in (("test", config.rows), ("val", config.val_rows)):
        rng = np.random.default_rng(rows)
        truth = rng.integers(0, len(CLASSES), rows)
        facts = pd.DataFrame({"image_id": [f"{split}{row:06}.png" for row in range(rows)]})
        facts["label"] = np.array(CLASSES)[truth]
        facts["patient_id"] = [f"{split}{row // config.images_per_patient}" for row in range(rows)]
        for number, run in enumerate(runs if rows else []):
            odds = np.exp(rng.normal(size=(rows, len(CLASSES))) + (1 + 0.05 * number) * np.eye(len(CLASSES))[truth])
            table = facts.copy()
            table[[f"prob_{name}" for name in CLASSES]] = odds / odds.sum(axis=1, keepdims=True)
            write_predictions(
                run / "predictions" / f"{split}.parquet",
                table,
                method=run.name,
                task="classification",
                identity={},
                manifest_hash="made",
                split_hash="made",
                split=split,
                classes=CLASSES,
            )
    return runs


def main(config: Config) -> None:
    """Time the parts and print them."""
    with tempfile.TemporaryDirectory() as made:
        paths = write_made_runs(Path(made), config)
        times = [time.perf_counter()]
        methods = load_method_predictions(paths, "test")
        times.append(time.perf_counter())
        comparison = compare(methods, CompareConfig(samples=config.samples))
        times.append(time.perf_counter())
        write_comparison(comparison, Path(made) / "comparison")
        times.append(time.perf_counter())
    read, compared, written = np.diff(times)
    print(
        f"{config.methods} methods, {config.rows:,} images, {config.samples:,} resamples, {len(comparison.pairs)} pairs"
    )
    print(f"read {read:.1f} s, compared {compared:.1f} s, written {written:.1f} s: {times[-1] - times[0]:.1f} s")


if __name__ == "__main__":
    run_job(Config, main, __doc__)
