"""Packed images: uint8 pixels at one size in memory-mapped Arrow files, decoded once and read by every later job."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from clipcovid.config import UserError
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.data.shards import read_shard

Cells = tuple[np.ndarray, np.ndarray]
"""Offsets (n + 1,) int64 and bytes of a column of a shard."""


class PackedImages:
    """The packed images of a prepared folder, read by position in the manifest.

    Picklable and cheap to open: every process maps the same files, each when it first reads from it. An image of the
    manifest that is missing from the shards is a `UserError`.
    """

    def __init__(self, folder: Path | str, manifest: Manifest | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = manifest or read_manifest(folder)
        images = self.manifest.info["images"]
        self.size, self.channels = int(images["size"]), 3 if images["mode"] == "rgb" else 1
        index, self._rows = self.manifest.packed_rows(self.folder)
        if (self._rows < 0).any():
            missing = self.manifest.table["image_id"].iloc[int((self._rows < 0).argmax())]
            raise UserError(
                f"{self.folder} has no packed image {missing!r}: prepare the data set again, with --overwrite."
            )
        self._paths = [self.folder / "images" / name for name in index.names]
        self._starts = np.concatenate([[0], np.cumsum(index.rows, dtype=np.int64)])
        self._cells: dict[tuple[str, int], Cells] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedImages, (self.folder, self.manifest)

    def images(self, rows: Iterable[int]) -> np.ndarray:
        """Images at these manifest positions: uint8 (n, size, size) for gray, (n, size, size, 3) for RGB, a copy."""
        shape = (self.size, self.size) if self.channels == 1 else (self.size, self.size, 3)
        images = [image.reshape(shape) for image in self._read("image", rows)]
        return np.array(images, np.uint8).reshape(-1, *shape)

    def masks(self, kind: str, rows: Iterable[int]) -> list[np.ndarray | None]:
        """Masks of a kind (`lung_mask`, `infection_mask`) at these positions: uint8 (size, size) of 0/255, None if absent."""
        return [mask.reshape(self.size, self.size) if mask.size else None for mask in self._read(kind, rows)]

    def _read(self, column: str, rows: Iterable[int]) -> list[np.ndarray]:
        """The cells of a column of the shards at these positions: uint8 (size of the cell,) each, not a copy."""
        packed = self._rows[np.fromiter(rows, np.int64)]
        shards = np.searchsorted(self._starts, packed, side="right") - 1
        cells = []
        for shard, row in zip(shards.tolist(), (packed - self._starts[shards]).tolist(), strict=True):
            offsets, content = self._cells.get((column, shard)) or self._open(column, shard)
            cells.append(content[offsets[row] : offsets[row + 1]])
        return cells

    def _open(self, column: str, shard: int) -> Cells:
        _, offsets, content = read_shard(self._paths[shard]).column(column).buffers()
        cells = np.frombuffer(offsets, np.int64), np.frombuffer(content or b"", np.uint8)
        self._cells[column, shard] = cells
        return cells
