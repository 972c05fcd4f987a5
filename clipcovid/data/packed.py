"""Packed images: uint8 pixels at one size in memory-mapped Arrow files, decoded once and read by every later job.

`images/*.arrow` (uncompressed Arrow IPC) have a row an image: `image_id`, `image` (size × size × 1 or 3 bytes, row-major;
empty where the image is bad), `lung_mask`, `infection_mask` (size × size bytes of 0/255; empty = none), and what was read
off the file: `width`, `height`, `sha256`, `bad` (path → reason, as JSON).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipcovid.config import UserError
from clipcovid.data.manifest import MASKS, Manifest, read_manifest
from clipcovid.identity import contents_hash
from clipcovid.io.files import atomic_write

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


def masks_hash(folder: Path) -> dict[str, str]:
    """Mask column → the hash of all its masks as they are packed in a prepared folder; without columns that are empty."""

    def masks(kind: str) -> Iterator[tuple[str, pa.Buffer]]:
        for path in sorted((folder / "images").glob("[0-9]*.arrow")):
            shard = read_shard(path)
            for name, mask in zip(shard.column("image_id"), shard.column(kind), strict=True):
                buffer = mask.as_buffer()
                if buffer is not None and buffer.size:
                    yield name.as_py(), buffer

    hashes = {kind: contents_hash(masks(kind)) for kind in MASKS}
    return {kind: text for kind, text in hashes.items() if text}


class PackedImages:
    """The packed images of a prepared folder, read by position in the manifest.

    Picklable and cheap to open: every process maps the same files. An image of the manifest that is missing from the
    shards is a `UserError`.
    """

    def __init__(self, folder: Path | str, manifest: Manifest | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = manifest or read_manifest(folder)
        images = self.manifest.info["images"]
        self.size, self.channels = int(images["size"]), 3 if images["mode"] == "rgb" else 1
        self._shards = [read_shard(path) for path in sorted((self.folder / "images").glob("[0-9]*.arrow"))]
        at = {
            image_id: (number, row)
            for number, shard in enumerate(self._shards)
            for row, image_id in enumerate(shard.column("image_id").to_pylist())
        }
        try:
            self._at = [at[image_id] for image_id in self.manifest.table["image_id"]]
        except KeyError as missing:
            raise UserError(
                f"{self.folder} has no packed image {missing}: prepare the data set again, with --overwrite."
            ) from None

    def __len__(self) -> int:
        return len(self._at)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedImages, (self.folder, self.manifest)

    def images(self, rows: Iterable[int]) -> np.ndarray:
        """Images at these manifest positions: uint8 (n, size, size) for gray, (n, size, size, 3) for RGB, a copy."""
        shape = (self.size, self.size) if self.channels == 1 else (self.size, self.size, 3)
        return np.array([self._bytes("image", row).reshape(shape) for row in rows], np.uint8).reshape(-1, *shape)

    def masks(self, kind: str, rows: Iterable[int]) -> list[np.ndarray | None]:
        """Masks of a kind (`lung_mask`, `infection_mask`) at these positions: uint8 (size, size) of 0/255, None if absent."""
        found = (self._bytes(kind, row) for row in rows)
        return [mask.reshape(self.size, self.size) if mask.size else None for mask in found]

    def _bytes(self, column: str, row: int) -> np.ndarray:
        number, at = self._at[row]
        buffer = self._shards[number].column(column)[at].as_buffer()
        return np.frombuffer(buffer, np.uint8) if buffer is not None else np.empty(0, np.uint8)
