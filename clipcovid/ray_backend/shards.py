"""Resumable work: each item's result is a file, a shard, so a killed job goes on where it was."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipcovid.ray_backend.map import Item, parallel_map
from clipcovid.ray_backend.resources import ResourcePlan


def sharded_map(
    folder: Path,
    items: Sequence[Item],
    work: Callable[..., Item] | type,
    resources: ResourcePlan,
    *,
    label: str,
    settings: dict[str, Any],
    suffix: str = ".parquet",
    resume_message: str = "",
    log: Callable[[str], None] = print,
) -> list[Path]:
    """Run `work` on every item whose shard does not exist yet, with progress; the paths of all shards, in order.

    The shard of item number n is `folder/000nn<suffix>`. An item has its number of `images`; `work` (see `parallel_map`)
    is called with the item and the absolute `path` of its shard, which it writes with `atomic_write`. `resume_message` is
    logged after "Going on: " where some shards exist: a format string of `done`, `shards`, `images_done` and `images`.
    """
    paths = [folder.resolve() / f"{number:05}{suffix}" for number in range(len(items))]
    todo = [item | {"path": str(path)} for item, path in zip(items, paths, strict=True) if not path.exists()]
    images, left = (sum(item["images"] for item in group) for group in (items, todo))
    if resume_message and len(todo) < len(items):
        counts = {"done": len(items) - len(todo), "shards": len(items), "images_done": images - left, "images": images}
        log(f"Going on: {resume_message.format(**counts)}.")
    for _ in parallel_map(todo, work, resources, total=left, label=label, settings=settings):
        pass
    return paths


def split_rows(rows: np.ndarray, size: int) -> list[Item]:
    """Items of up to `size` row numbers each, in order, with their number as `images`."""
    parts = [rows[start : start + size].tolist() for start in range(0, len(rows), size)]
    return [{"rows": part, "images": len(part)} for part in parts]


def read_shards(paths: Sequence[Path]) -> pd.DataFrame:
    """The Parquet tables of all shards, one after another."""
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
