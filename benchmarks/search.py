"""Search over a million embeddings: seconds a query and memory of the exact index, and what ivf and hnsw gain and miss.

    python benchmarks/search.py --embeddings data/medpix2/embeddings/1a2b3c4d5e6f7a8b
    python benchmarks/search.py --embeddings data/quex/embeddings/1a2b3c4d5e6f7a8b --rows 200000 --kinds exact ivf

The rows are real embeddings, jittered: noise has no neighbours, and no index of a part of it works. Indexes are searched one
query at a time, in turns with the exact one, by queries jittered in the same way.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from clipcovid.cli import run_job
from clipcovid.config import UserError
from clipcovid.inference.search import IndexKind, VectorIndex, build_index

ROWS_PER_BLOCK = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    embeddings: Path
    """A folder of stored embeddings (`embeddings/<encoder>` of a prepared data set)."""
    rows: int = 1_000_000
    """How many vectors are made of them."""
    width: int = 512
    """Their width: narrower ones are filled up by turning them at random."""
    jitter: float = 0.3
    """Length of the noise that is added to a vector of length 1."""
    queries: int = 100
    """How many are searched, one at a time."""
    kinds: tuple[IndexKind, ...] = ("exact", "ivf", "hnsw")
    """The indexes."""


class JitteredEmbeddings:
    """Jittered copies of real vectors, the same in each pass, and never all in memory."""

    def __init__(self, config: Config) -> None:
        if not config.embeddings.is_dir():
            raise UserError(f"--embeddings {config.embeddings}: there is no such folder.")
        column = pq.read_table(config.embeddings, columns=["embedding"])["embedding"].combine_chunks()
        real = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
        if real.shape[1] > config.width:
            raise UserError(f"The embeddings are {real.shape[1]} wide: give a --width of that at least.")
        turn = np.random.default_rng(0).normal(size=(real.shape[1], config.width)).astype(np.float32)
        self.real, self.config = real @ np.linalg.qr(turn.T)[0].T, config

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, float16."""
        for start in range(0, self.config.rows, ROWS_PER_BLOCK):
            yield self.sample(min(ROWS_PER_BLOCK, self.config.rows - start), seed=start).astype(np.float16)

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Rows (count, width) float32 of length 1."""
        rng = np.random.default_rng([1, seed])
        noise = rng.standard_normal((count, self.config.width), np.float32) / np.float32(self.config.width**0.5)
        made = self.real[rng.integers(0, len(self.real), count)] + np.float32(self.config.jitter) * noise
        found: np.ndarray = made / np.linalg.norm(made, axis=1, keepdims=True)
        return found


def resident_memory() -> float:
    """This process's memory, in GB."""
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 2**20


def time_queries(index: VectorIndex, queries: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Seconds of each query, searched alone, and what it found (n, 10)."""
    times, found = [], []
    for query in queries:
        began = time.perf_counter()
        found.append(index.search(query[None], 10)[0][0])
        times.append(time.perf_counter() - began)
    return times, np.stack(found)


def main(config: Config) -> None:
    """Measure, and print."""
    rows = JitteredEmbeddings(config)
    raw = config.rows * config.width * 2 / 2**30
    before, began = resident_memory(), time.perf_counter()
    exact = build_index(rows.blocks, config.width, config.rows, "exact")
    print(f"{config.rows:,} × {config.width}: built in {time.perf_counter() - began:.0f} s", flush=True)
    grown = resident_memory() - before
    print(f"exact: {grown:.2f} GB after loading, {grown / raw:.2f} of the raw float16 vectors")
    queries = rows.sample(config.queries, seed=10**9)
    time_queries(exact, queries[:3])
    times, best = time_queries(exact, queries)
    print(f"exact: {statistics.median(times):.4f} s a query (median; slowest {max(times):.4f})", flush=True)
    for kind in (kind for kind in config.kinds if kind != "exact"):
        began = time.perf_counter()
        index = build_index(rows.blocks, config.width, config.rows, kind)
        built = time.perf_counter() - began
        time_queries(index, queries[:3])
        again, _ = time_queries(exact, queries[: max(5, config.queries // 5)])
        fast, found = time_queries(index, queries)
        recall = statistics.mean(len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), best.tolist(), strict=True))
        gain = statistics.median(again) / statistics.median(fast)
        print(
            f"{kind}: {statistics.median(fast):.5f} s a query, {gain:.0f} × faster than exact, recall@10 {recall:.3f}, "
            f"depth {index.depth}, built in {built:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    run_job(Config, main, __doc__)
