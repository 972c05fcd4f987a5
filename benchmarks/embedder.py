"""One embedding worker on this machine's device, as ratios measured in one run; it needs no Ray.

    python benchmarks/embedder.py
    python benchmarks/embedder.py --model ViT-L-14 --batch-size 512 --images 1024 --repeat 16

The worker of `clipcovid embed` reads packed images, encodes them and writes a shard; `raw` decodes the original files. `model
alone` encodes batches that are in memory, as uint8. `open_clip + DataLoader` is open_clip's own transform and model on the
same files, with as many loading processes as there are cores, in the worker's precision. They take turns.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from embed import Config as LoaderConfig
from embed import measure_plain_loop
from rich.console import Console
from rich.table import Table

from clipcovid.cli import run_job
from clipcovid.config import ClipConfig, ComputeConfig, ImagesConfig
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.data.prepare import PrepareConfig, prepare
from clipcovid.data.sources import PhantomConfig
from clipcovid.inference.embed import EmbedConfig, Embedder
from clipcovid.ray_backend.resources import ResourcePlan, resolve_precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    model: str = "ViT-B-32"
    """The encoder, with random weights."""
    images: int = 1024
    """Images that are prepared."""
    repeat: int = 8
    """How often a turn goes through them."""
    batch_size: int = 256
    """Images in a forward pass, for every contender."""
    rounds: int = 3
    """How often each contender takes its turn."""
    loader: bool = True
    """Also measure open_clip with a DataLoader."""


def make_worker(config: Config, data: Path, manifest: Manifest, pixels: Literal["packed", "raw"]) -> Embedder:
    """The worker that `clipcovid embed` starts on this machine's device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = os.cpu_count() or 1
    plan = ResourcePlan(
        workers=0,
        cpus_per_worker=threads,
        gpus_per_worker=float(device == "cuda"),
        threads=threads,
        batch_size=config.batch_size,
    )
    settings = EmbedConfig(data=data, clip=ClipConfig(model=config.model, pretrained="none"), input=pixels)
    return Embedder(config=settings, manifest=manifest, precision=resolve_precision("auto", device), resources=plan)


def make_contenders(config: Config, folder: Path) -> dict[str, Callable[[], int]]:
    """What takes turns: each embeds the images, and gives how many."""
    data = folder / "data"
    size = ImagesConfig(size=224)
    phantoms = PhantomConfig(images=config.images, size=224)
    prepare(PrepareConfig(out=data, phantom=phantoms, images=size, compute=ComputeConfig(workers=0)))
    manifest = read_manifest(data)
    workers = {pixels: make_worker(config, data, manifest, pixels) for pixels in ("packed", "raw")}
    rows = list(range(config.images)) * config.repeat
    batches = [workers["packed"].read(rows[: config.batch_size])] * (len(rows) // config.batch_size)

    def model_alone() -> int:
        for batch in batches:
            features = workers["packed"].clip.encode_images(batch)
        features.cpu()
        return len(batches) * config.batch_size

    def embed_rows(worker: Embedder, count: int) -> int:
        return worker({"path": str(folder / "shard.parquet"), "rows": rows[:count]})["images"]

    return {
        "model alone": model_alone,
        "packed": lambda: embed_rows(workers["packed"], len(rows)),
        "raw": lambda: embed_rows(workers["raw"], config.images),
    }


def main(config: Config) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        contenders = make_contenders(config, Path(folder))
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(config.rounds + 1):
            for name in list(contenders)[:: 1 if turn % 2 else -1]:
                began = time.perf_counter()
                images = contenders[name]()
                if turn:  # the first warms up
                    speeds[name].append(images / (time.perf_counter() - began))
        if config.loader:
            loader = LoaderConfig(model=config.model, images=config.images, batch_size=config.batch_size)
            precision = resolve_precision("auto", "cuda" if torch.cuda.is_available() else "cpu")
            speeds["open_clip + DataLoader"] = [
                measure_plain_loop(loader, Path(folder, "data"), os.cpu_count() or 1, 1, precision).steady
                for _ in range(config.rounds)
            ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    table = Table("contender", "images/s", "÷ model alone", title=f"{config.model}, {device}")
    for name, values in speeds.items():
        ratios = [value / alone for value, alone in zip(values, speeds["model alone"], strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        table.add_row(name, f"{statistics.median(values):,.0f}", f"{middle:.2f} ({low:.2f}–{high:.2f})")
    Console().print(table)


if __name__ == "__main__":
    run_job(Config, main, __doc__)
