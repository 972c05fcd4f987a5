"""What a prepared set of very many images costs: seconds and memory to open it, and how many images are read a second.

    python benchmarks/scale.py open
    python benchmarks/scale.py open --images 200000 --folder /tmp/large
    python benchmarks/scale.py read --size 32

`open`: the images are of 1×1 px, so that only the tables count. A driver opens the set, and asks for the hashes that name a
run; a worker is sent what the driver opened, opens the packed images, and takes the rows of each split. `read`: a worker
reads images at random. Each is a process of its own; its memory is what it grew by, and `own` what no other process shares.
"""

import dataclasses
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import tyro

from clipcovid.cli import run_job

ROWS_PER_SHARD = 256  # images a packed file, as `jobs/prepare.py` has it
LABELS = ("COVID-19", "Non-COVID", "Normal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenConfig:
    """Open a prepared set."""

    images: int = 1_000_000
    """How many images it has."""
    folder: Path | None = None
    """Where it is made, and stays. Default: a temporary folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """Read packed images at random."""

    images: int = 50_000
    """How many images the set has."""
    size: int = 32
    """Their side, in pixels."""
    batch_size: int = 64
    """Images that are read at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    measure: Annotated[
        Annotated[OpenConfig, tyro.conf.subcommand("open")] | Annotated[ReadConfig, tyro.conf.subcommand("read")],
        tyro.conf.arg(name=""),
    ]
    """The measurement, with its flags."""


def make_prepared_set(folder: Path, count: int, size: int) -> None:
    """A prepared folder of `count` images of size × size px."""
    from clipcovid.data.manifest import Manifest, normalize_columns, write_manifest

    try:
        from clipcovid.data.shards import write_shard
    except ImportError:  # where it stood in older versions, which are measured by the same script
        from clipcovid.data.packed import write_shard  # type: ignore[attr-defined,no-redef]

    numbers = range(count)
    columns: dict[str, Any] = {
        "image_id": [f"patient{number // 3:07}/study{number % 3}/view{number:07}.png" for number in numbers],
        "label": [LABELS[number % 3] for number in numbers],
        "patient_id": [f"patient{number // 3:07}" for number in numbers],
        "split": [("train", "train", "train", "train", "val", "test")[number // 3 % 6] for number in numbers],
        "sha256": [f"{number:064x}" for number in numbers],
        "view": "PA",
        "width": 1,
        "height": 1,
    }
    table = pd.DataFrame(columns).assign(path=[f"/data/x-rays/images/{image_id}" for image_id in columns["image_id"]])
    for start in range(0, count, ROWS_PER_SHARD):
        ids = table["image_id"].iloc[start : start + ROWS_PER_SHARD]
        rows = [
            {"image_id": image_id, "image": bytes([number % 256]) * size**2}
            for number, image_id in enumerate(ids, start)
        ]
        write_shard(folder / "images" / f"{start // ROWS_PER_SHARD:05}.arrow", rows)
    info = {"images": {"size": size, "mode": "gray", "fit": "stretch"}, "pack_hash": "none"}
    write_manifest(folder, Manifest(table=normalize_columns(table), classes=LABELS, dataset="many", info=info))


def resident_memory() -> list[int]:
    """This process's resident bytes: all, those that no other process can share, and the most that there were."""
    status = Path("/proc/self/status").read_text()
    return [int(status.partition(f"{name}:")[2].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "VmHWM")]


class Meter:
    """Prints the seconds and the memory of the steps of a process, in bytes an image."""

    def __init__(self, process: str, images: int) -> None:
        self.process, self.images, self.before, self.began = process, images, resident_memory(), time.perf_counter()

    def step(self, text: str) -> None:
        """Print what all has taken since the start, and how long the step took."""
        seconds = time.perf_counter() - self.began
        resident, own, most = (
            (now - then) / self.images for now, then in zip(resident_memory(), self.before, strict=True)
        )
        print(
            f"{self.process:7} {text:28} {seconds:6.2f} s {resident:6,.0f} B an image ({own:,.0f} own, {most:,.0f} at most)",
            flush=True,
        )
        self.began = time.perf_counter()


def run_driver(folder: Path, images: int, message: Path) -> None:
    """The driver: open the set and name it; leave what a worker is sent in `message`."""
    from clipcovid.data.manifest import read_manifest
    from clipcovid.identity import data_identity

    meter = Meter("driver", images)
    manifest = read_manifest(folder)
    assert len(manifest.table) == images
    meter.step("opens the set")
    data_identity(manifest)
    meter.step("names its images and split")
    message.write_bytes(pickle.dumps(manifest, pickle.HIGHEST_PROTOCOL))
    meter.step(f"sends {message.stat().st_size:,} B")


def run_worker(folder: Path, images: int, message: Path) -> None:
    """A worker: open what it was sent, and take the rows of each split."""
    from clipcovid.data.packed import PackedImages

    meter = Meter("worker", images)
    manifest = pickle.loads(message.read_bytes())  # that the driver wrote
    assert len(PackedImages(folder, manifest)) == images
    meter.step("opens the set")
    for split in ("train", "val", "test"):
        rows, _ = manifest.rows_with(split, ("label",))
        manifest.positions(rows["image_id"])
    meter.step("takes the rows of each split")


def read_images(folder: Path, config: ReadConfig) -> None:
    """A worker: read every image twice, at random; of the second time, the images read a second."""
    from clipcovid.data.packed import PackedImages

    packed = PackedImages(folder)
    for epoch in range(2):
        order, began = np.random.default_rng(epoch).permutation(config.images), time.perf_counter()
        for start in range(0, config.images, config.batch_size):
            packed.images(order[start : start + config.batch_size])
        seconds = time.perf_counter() - began
    print(f"{config.images / seconds:,.0f} images/s of {config.size}×{config.size} px, {config.batch_size} at a time")


def run_process(target: Callable[..., None], *args: Any) -> None:
    """Run a function in a fresh process, which must end well."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=args)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{target.__name__} ended with status {process.exitcode}")


def main(config: Config) -> None:
    """Make a set where it is not there yet, measure, and print."""
    measure = config.measure
    with tempfile.TemporaryDirectory() as temporary:
        folder, message = Path(temporary) / "set", Path(temporary) / "manifest.pickle"
        if isinstance(measure, ReadConfig):
            make_prepared_set(folder, measure.images, measure.size)
            run_process(read_images, folder, measure)
            return
        folder = measure.folder or folder
        if not (folder / "manifest.parquet").exists():
            began = time.perf_counter()
            make_prepared_set(folder, measure.images, 1)
            print(f"{measure.images:,} images: made in {time.perf_counter() - began:.0f} s", flush=True)
        run_process(run_driver, folder, measure.images, message)
        run_process(run_worker, folder, measure.images, message)


if __name__ == "__main__":
    run_job(Config, main, __doc__)
