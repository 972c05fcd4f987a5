"""Embedding speed, as ratios measured in one run: our pipeline against the model alone and against open_clip + DataLoader.

    python benchmarks/embed.py
    python benchmarks/embed.py --model tiny --images 4000 --rounds 5
    python benchmarks/embed.py --model ViT-B-32 --images 256 --rounds 1 --memory

Contenders take turns, round after round, each in processes of its own, on the same synthetic X-rays and random weights.
Figures are medians, of speeds and of the rounds' ratios. `model alone` encodes uint8 arrays in memory; its fastest layout
of processes × threads is the denominator. Steady state leaves start-up and the first batch out; `with start-up` is images
over the whole command's seconds.
"""

import dataclasses
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from clipcovid.cli import run_job
from clipcovid.config import ClipConfig
from clipcovid.data.manifest import read_manifest
from clipcovid.io.files import METADATA_KEY, write_json
from clipcovid.ray_backend.resources import resolve_precision

JOBS = Path(__file__).parents[1] / "jobs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    model: str = "ViT-B-32"
    """The encoder, with random weights."""
    images: int = 512
    """Images a measurement (N)."""
    batch_size: int = 32
    """Images in a forward pass, for every contender."""
    rounds: int = 5
    """How often each contender takes its turn."""
    memory: bool = False
    """Also measure our peak memory at N and at 10 N images."""
    out: Path | None = None
    """A JSON file for every single figure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measurement."""

    steady: float
    """Images per second without start-up."""
    overall: float
    """Images over the seconds from the command's start to its end."""
    first: float = 0.0
    """Seconds from the command's start to the end of the first batch."""


def measure_model_alone(config: Config, processes: int, threads: int) -> Measurement:
    """`processes` copies of the model, `threads` threads each, on arrays in memory."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    started = time.time()
    workers = [
        context.Process(target=_encode_arrays, args=(config, processes, threads, barrier, results))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    spans = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    images = sum(span[2] for span in spans)
    ended = max(span[1] for span in spans)
    return Measurement(steady=images / (ended - min(span[0] for span in spans)), overall=images / (ended - started))


def _encode_arrays(config: Config, processes: int, threads: int, barrier: Any, results: Any) -> None:
    import numpy as np
    import torch

    from clipcovid.models.clip import load_clip
    from clipcovid.models.clip_model import default_device

    torch.set_num_threads(threads)
    device = default_device()
    precision = resolve_precision("auto", device)
    clip = load_clip(ClipConfig(model=config.model, pretrained="none"), device=device, precision=precision)
    shape = (config.batch_size, clip.image_size, clip.image_size)
    batch = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    batches = max(1, config.images // processes // config.batch_size)
    for _ in range(2):
        clip.encode_images(batch).cpu()
    barrier.wait()
    began = time.time()
    for _ in range(batches):
        features = clip.encode_images(batch)
    features.cpu()
    results.put((began, time.time(), batches * config.batch_size))


def measure_plain_loop(config: Config, data: Path, workers: int, threads: int, precision: str) -> Measurement:
    """open_clip's own transform and model over a torch DataLoader on the PNG files, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    started = time.time()
    process = context.Process(target=_load_and_encode, args=(config, data, workers, threads, precision, results))
    process.start()
    began, ended, images, after = results.get()
    process.join()
    return Measurement(steady=after / (ended - began), overall=images / (ended - started), first=began - started)


class ImageFileDataset:
    """A torch map-style data set of image files."""

    def __init__(self, paths: list[str], transform: Callable[[Any], Any]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> Any:
        from PIL import Image

        return self.transform(Image.open(self.paths[at]))


def _load_and_encode(config: Config, data: Path, workers: int, threads: int, precision: str, results: Any) -> None:
    import open_clip
    import torch

    from clipcovid.models.clip import CONFIG_FOLDER
    from clipcovid.models.clip_model import DTYPES, default_device

    torch.set_num_threads(threads)
    open_clip.add_model_config(CONFIG_FOLDER)
    device = default_device()
    model, _, transform = open_clip.create_model_and_transforms(config.model, precision=precision, device=device)
    model.eval()
    paths = read_manifest(data).table["path"].tolist()
    loader: Any = torch.utils.data.DataLoader(
        ImageFileDataset(paths, transform),  # type: ignore[arg-type]  # a Dataset but for its base
        batch_size=config.batch_size,
        num_workers=workers,
        pin_memory=device == "cuda",
    )
    began, after = 0.0, 0
    with torch.no_grad():
        for batch in loader:
            features = model.encode_image(batch.to(device, DTYPES[precision], non_blocking=True), normalize=True)
            if not began:
                features.cpu()
                began = time.time()  # the first batch belongs to start-up
            else:
                after += len(batch)
    features.cpu()
    results.put((began, time.time(), len(paths), after))


def measure_clipcovid(config: Config, data: Path, pixels: str) -> Measurement:
    """`clipcovid embed` as a user runs it; steady state is read off the times that it keeps with its shards."""
    remove_embeddings(data)
    started = time.time()
    _run(config, data, pixels)
    seconds = time.time() - started
    shards = _shards(data)
    workers: dict[int, list[dict[str, Any]]] = {}
    for shard in shards:
        workers.setdefault(shard["worker"], []).append(shard)
    low = max(min(shard["first_batch"] for shard in own) for own in workers.values())  # the first batch warms up
    high = min(max(shard["ended"] for shard in own) for own in workers.values())
    done = 0.0
    for shard in shards:  # the share of each shard that lies where all workers were at work
        warm = shard["first_batch"] <= low  # then its first batch lies before, and the rest is all that counts
        began = shard["first_batch"] if warm else shard["began"]
        images = shard["images"] - config.batch_size * warm
        if shard["ended"] > max(began, low):
            inside = min(high, shard["ended"]) - max(low, began)
            done += images * max(0.0, inside) / (shard["ended"] - began)
    first = min(shard["first_batch"] for shard in shards) - started
    return Measurement(steady=done / (high - low), overall=sum(s["images"] for s in shards) / seconds, first=first)


def remove_embeddings(data: Path) -> None:
    """Forget the embeddings of an earlier turn."""
    import shutil

    shutil.rmtree(data / "embeddings", ignore_errors=True)


def _run(config: Config, data: Path, pixels: str) -> None:
    command = [sys.executable, str(JOBS / "embed.py"), "--data", str(data), "--input", pixels]
    command += ["--clip.model", config.model, "--clip.pretrained", "none"]
    command += ["--compute.address", "local", "--compute.batch-size", str(config.batch_size)]
    subprocess.run(command, check=True, capture_output=True)


def _shards(data: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(data.glob("embeddings/*/*.parquet")):
        about = pq.read_metadata(path)
        found.append(json.loads(about.metadata[METADATA_KEY]) | {"images": about.num_rows})
    return found


EMPTY_PIPELINE_SCRIPT = """
import logging, ray, sys, time
ray.init(address="local", include_dashboard=False, object_store_memory=10**9, logging_level=logging.ERROR)
class Empty:
    def __call__(self, row): return row
rows = ray.data.from_items([{"n": n} for n in range(8)], override_num_blocks=8)
for row in rows.map(Empty, compute=ray.data.ActorPoolStrategy(size=int(sys.argv[1])), num_cpus=1).iter_rows():
    print(time.time(), flush=True)
    break
"""


def time_empty_pipeline(workers: int) -> float:
    """Seconds from a command to the first row out of a Ray Data pool of actors that do nothing."""
    started = time.time()
    result = subprocess.run(
        [sys.executable, "-c", EMPTY_PIPELINE_SCRIPT, str(workers)], check=True, capture_output=True, text=True
    )
    return float(result.stdout.split()[0]) - started


def peak_memory(config: Config, data: Path) -> dict[str, float]:
    """Peak GB of `clipcovid embed` with all its processes: `anonymous`, and `total` with its share of mapped files."""
    remove_embeddings(data)
    peak, stop = {"anonymous": 0.0, "total": 0.0}, threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            for name, value in _memory(os.getpid()).items():
                peak[name] = max(peak[name], value)

    before = _memory(os.getpid())
    thread = threading.Thread(target=watch)
    thread.start()
    _run(config, data, "packed")
    stop.set()
    thread.join()
    return {name: value - before[name] for name, value in peak.items()}


def _memory(pid: int) -> dict[str, float]:
    """Proportional set sizes of a process and all below it, in GB."""
    total = {"anonymous": 0.0, "total": 0.0}
    fields = {"Pss:": "total", "Pss_Anon:": "anonymous", "Pss_Shmem:": "anonymous"}
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if (name := fields.get(line.split()[0])) is not None:
                total[name] += int(line.split()[1]) / 1e6
        children = Path(f"/proc/{pid}/task").glob("*/children")
        for child in {int(child) for path in children for child in path.read_text().split()}:
            for name, value in _memory(child).items():
                total[name] += value
    except (FileNotFoundError, ProcessLookupError):
        return total  # it ended while it was looked at
    return total


def prepare_images(folder: Path, images: int) -> Path:
    """A prepared folder of so many phantoms."""
    data = folder / str(images)
    command = [sys.executable, str(JOBS / "prepare.py"), "--out", str(data), "--phantom.images", str(images)]
    subprocess.run([*command, "--compute.address", "local"], check=True, capture_output=True)
    return data


def main(config: Config) -> None:
    """Measure in turns, then print medians and ratios."""
    cores = os.cpu_count() or 1
    precision = resolve_precision("auto", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_images(Path(folder), config.images)
        contenders: dict[str, Callable[[], Measurement]] = {
            f"model alone, 1 × {cores} threads": lambda: measure_model_alone(config, 1, cores),
            f"model alone, {cores} × 1 thread": lambda: measure_model_alone(config, cores, 1),
            "ours, packed": lambda: measure_clipcovid(config, data, "packed"),
            "ours, raw PNG": lambda: measure_clipcovid(config, data, "raw"),
            f"open_clip + DataLoader, 1 worker, {precision}": lambda: measure_plain_loop(
                config, data, 1, cores, precision
            ),
            f"open_clip + DataLoader, {cores} workers, {precision}": lambda: measure_plain_loop(
                config, data, cores, cores, precision
            ),
        }
        if precision != "fp32":
            contenders |= {
                "open_clip + DataLoader, 1 worker, fp32": lambda: measure_plain_loop(config, data, 1, cores, "fp32"),
                f"open_clip + DataLoader, {cores} workers, fp32": lambda: measure_plain_loop(
                    config, data, cores, cores, "fp32"
                ),
            }
        figures: dict[str, list[Measurement]] = {name: [] for name in contenders}
        empty = []
        for turn in range(config.rounds):
            for name, measure in contenders.items():
                figures[name].append(measure())
                print(f"round {turn + 1}: {name}: {figures[name][-1].steady:.1f} img/s", file=sys.stderr)
            empty.append(time_empty_pipeline(cores))
        memory = {}
        if config.memory:
            memory = {
                n: peak_memory(config, prepare_images(Path(folder), n)) for n in (config.images, 10 * config.images)
            }
    report(config, figures, empty, memory)


def report(
    config: Config, figures: dict[str, list[Measurement]], empty: list[float], memory: dict[int, dict[str, float]]
) -> None:
    """Print the table of medians and what they are of the fastest model alone."""

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(measured, field) for measured in figures[name])

    def ratio(name: str, other: str) -> float:
        """The median of the rounds' ratios: a machine that slows down for a while slows both down."""
        pairs = zip(figures[name], figures[other], strict=True)
        return statistics.median(one.steady / two.steady for one, two in pairs)

    def fastest(names: list[str]) -> str:
        return max(names, key=lambda name: median(name, "steady"))

    alone = fastest([name for name in figures if name.startswith("model alone")])
    table = Table("contender", "img/s", "range", "÷ model alone", "with start-up", "first batch (s)")
    for name, measured in figures.items():
        steady = sorted(each.steady for each in measured)
        table.add_row(
            name,
            f"{median(name, 'steady'):.1f}",
            f"{steady[0]:.1f}–{steady[-1]:.1f}",
            f"{ratio(name, alone):.3f}",
            f"{median(name, 'overall'):.1f}",
            f"{median(name, 'first'):.1f}" if median(name, "first") else "",
        )
    console = Console(width=120)
    console.print(f"{config.model}, {config.images} images, median of {config.rounds} rounds")
    console.print(table)
    for precision in ("bf16", "fp32"):
        peers = [name for name in figures if "DataLoader" in name and name.endswith(precision)]
        if peers:
            packed, raw = (ratio(f"ours, {kind}", fastest(peers)) for kind in ("packed", "raw PNG"))
            console.print(f"÷ the faster open_clip + DataLoader in {precision}: packed {packed:.2f}, raw PNG {raw:.2f}")
    start = statistics.median(empty)
    console.print(
        f"an empty Ray Data actor pipeline: {start:.1f} s; ours to the end of its first batch: "
        f"+{median('ours, packed', 'first') - start:.1f} s packed, +{median('ours, raw PNG', 'first') - start:.1f} s raw"
    )
    for images, peak in memory.items():
        console.print(
            f"peak memory at {images} images: {peak['anonymous']:.2f} GB, {peak['total']:.2f} GB with mapped files"
        )
    if config.out:
        every = {name: [dataclasses.asdict(each) for each in measured] for name, measured in figures.items()}
        write_json(config.out, {"figures": every, "empty": empty, "memory": memory})


if __name__ == "__main__":
    run_job(Config, main, __doc__)
