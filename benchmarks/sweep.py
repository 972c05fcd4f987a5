"""Sweeps: prompt candidates a minute, against encoding the images in each trial, and what Ray Tune adds to trials' own time.

    python benchmarks/sweep.py --data data/phantom
    python benchmarks/sweep.py --data data/phantom --trials 8 --concurrent 1 2 --no-prompts

Prompts: the text tower of `tiny` and as many cached embeddings as asked for. Hyperparameters: a small CNN on the data's
images, all trials alike long, with as many at once as the list says, a CPU each.
"""

import contextlib
import dataclasses
import io
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from clipcovid.cli import run_job
from clipcovid.config import ClipConfig, ComputeConfig, OptimConfig
from clipcovid.data.manifest import read_manifest
from clipcovid.data.packed import PackedImages
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.models.clip import load_clip
from clipcovid.ray_backend.tune import run_trials
from clipcovid.workflows.prompt_search import CandidateScorer, read_space
from clipcovid.workflows.sweep import SweepConfig, sweep
from clipcovid.workflows.sweep_prompts import PromptSweepConfig, score_batch, trial_tasks

TINY_CLIP = ClipConfig(model="tiny", pretrained="none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    data: Path
    """A prepared folder."""
    prompts: bool = True
    """Measure the search over prompts."""
    images: int = 10_000
    """How many embeddings its candidates are scored on: the data's, again and again, each with some noise."""
    candidates: int = 5000
    """How many candidates it scores."""
    hparams: bool = True
    """Measure the search over hyperparameters."""
    trials: int = 8
    """How many trials it has."""
    epochs: int = 4
    """How long each is."""
    arch: str = "resnet18"
    """What they train."""
    image_size: int = 64
    """Side of its input in pixels."""
    concurrent: tuple[int, ...] = (1, 2, 4)
    """How many trials at once."""


def measure_prompts(config: Config, out: Path) -> None:
    """Candidates a minute, one trial after another in this process, and the seconds of a trial that encodes its images."""
    manifest, rng = read_manifest(config.data), np.random.default_rng(0)
    clip = load_clip(TINY_CLIP)
    pixels = PackedImages(config.data, manifest).images(np.arange(min(256, len(manifest.table))))
    clip.encode_images(pixels)
    began = time.perf_counter()
    seen = clip.encode_images(pixels).numpy()
    encoding = (time.perf_counter() - began) / len(pixels) * config.images
    at = rng.integers(0, len(seen), config.images)
    images = seen[at] + 0.1 * rng.normal(size=(config.images, seen.shape[1])) / seen.shape[1] ** 0.5
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    labels = np.array([max(0, manifest.classes.index(label)) for label in manifest.table["label"].iloc[at]], np.int64)
    space = read_space(None, manifest.classes)
    began = time.perf_counter()
    encoded = clip.encode_texts(space.texts).numpy()
    vectors = encoded.reshape(len(space.templates), -1, encoded.shape[1])
    print(f"{len(encoded):,} texts encoded in {time.perf_counter() - began:.1f} s, once a sweep")
    for objective in ("macro_f1", "macro_auroc"):
        asked = PromptSweepConfig(data=config.data, clip=TINY_CLIP, candidates=config.candidates, objective=objective)
        scorer = CandidateScorer(space, vectors, images, labels, asked.objective, clip.logit_scale)
        tasks = trial_tasks(asked, space, out / objective)
        began = time.perf_counter()
        run_trials(
            tasks,
            score_batch,
            settings={"config": asked, "space": space, "scorer": scorer},
            compute=ComputeConfig(workers=0),
        )
        taken = time.perf_counter() - began
        trial = taken / len(tasks)
        print(
            f"{objective}: {config.candidates / taken * 60:,.0f} candidates a minute on {config.images:,} embeddings; "
            f"a trial of {asked.batch} takes {trial:.2f} s, with its images encoded {trial + encoding:.1f} s: "
            f"{(trial + encoding) / trial:.0f} ×; a candidate a trial {(trial / asked.batch + encoding):.1f} s: "
            f"{(trial / asked.batch + encoding) / (trial / asked.batch):,.0f} ×",
            flush=True,
        )


def measure_hparams(config: Config, out: Path) -> None:
    """Seconds of a sweep over the sum of its trials' own, which are measured within them."""
    import ray

    ray.init(address="local", num_cpus=max(config.concurrent), include_dashboard=False, logging_level=logging.WARNING)
    space = out / "space.yaml"
    space.write_text("optim.lr: {log: [1.0e-4, 1.0e-2]}\n", encoding="utf-8")
    for count in config.concurrent:
        task = CnnConfig(
            data=config.data,
            out=out / str(count),
            name="sweep",
            arch=config.arch,
            weights="none",
            image_size=config.image_size,
            optim=OptimConfig(epochs=config.epochs, batch_size=32),
        )
        asked = SweepConfig(task=task, trials=config.trials, space=space, early_stopping=False, max_concurrent=count)
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            sweep(asked)
        taken = time.perf_counter() - began
        trials = json.loads((out / str(count) / "sweep" / "trials.json").read_text(encoding="utf-8"))
        own = [trial["time_total_s"] for trial in trials]
        print(
            f"{config.trials} trials, {count} at once: {taken:.1f} s, the trials' own time {sum(own):.1f} s (median "
            f"{statistics.median(own):.1f} s): overhead {taken * count / sum(own) - 1:+.0%} of their time",
            flush=True,
        )


def main(config: Config) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        if config.prompts:
            measure_prompts(config, Path(folder))
        if config.hparams:
            measure_hparams(config, Path(folder))


if __name__ == "__main__":
    run_job(Config, main, __doc__)
