"""Shards of packed images, `images/*.arrow` (uncompressed Arrow IPC, memory-mapped), and where each image is in them.

A row an image: `image_id`, `image` (size × size × 1 or 3 bytes, row-major; empty where the image is bad), `lung_mask`,
`infection_mask` (size × size bytes of 0/255; empty = none), and what was read off the file: `width`, `height`, `sha256`,
`bad` (path → reason, as JSON).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipcovid.config import UserError
from clipcovid.identity import buffers_hash
from clipcovid.io.arrow_tables import positions_in
from clipcovid.io.files import atomic_write

MASK_COLUMNS = ("lung_mask", "infection_mask")
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.large_binary()),
        ("lung_mask", pa.large_binary()),
        ("infection_mask", pa.large_binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("bad", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """The shards of a prepared folder, in order: file name, size in bytes and rows of each."""

    names: list[str]
    sizes: list[int]
    rows: list[int]

    def matches(self, folder: Path) -> bool:
        """Whether the prepared folder has these shards still, by name and size."""
        paths = shard_paths(folder)
        return [path.name for path in paths] == self.names and [path.stat().st_size for path in paths] == self.sizes


def shard_paths(folder: Path) -> list[Path]:
    """A prepared folder's shards, in order."""
    return sorted((folder / "images").glob("[0-9]*.arrow"))


def write_shard(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of `SCHEMA` as one shard, which appears whole or not at all."""
    batch = pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA)
    with atomic_write(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)


def read_shard(path: Path) -> pa.RecordBatch:
    """A shard, memory-mapped: only the pages that are looked at are read. A damaged one is a `UserError`."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): prepare the data set again, with --overwrite.") from None


def locate_packed_rows(folder: Path, image_ids: Any) -> tuple[ShardIndex, np.ndarray]:
    """The folder's shards; and the row of each image, counted through all of them, (n,) int64, -1 where none has it."""
    index, ids = ShardIndex([], [], []), [pa.array([], pa.large_string())]
    for path in shard_paths(folder):
        column = read_shard(path).column("image_id")
        index.names.append(path.name)
        index.sizes.append(path.stat().st_size)
        index.rows.append(len(column))
        ids.append(column.cast(pa.large_string()))
    return index, positions_in(image_ids, pa.chunked_array(ids))


def mask_hashes(folder: Path) -> dict[str, str]:
    """Mask column → the hash of all its masks as they are packed in a prepared folder; without columns that are empty."""

    def masks(kind: str) -> Iterator[tuple[str, pa.Buffer]]:
        for path in shard_paths(folder):
            shard = read_shard(path)
            for name, mask in zip(shard.column("image_id"), shard.column(kind), strict=True):
                buffer = mask.as_buffer()
                if buffer is not None and buffer.size:
                    yield name.as_py(), buffer

    hashes = {kind: buffers_hash(masks(kind)) for kind in MASK_COLUMNS}
    return {kind: text for kind, text in hashes.items() if text}
