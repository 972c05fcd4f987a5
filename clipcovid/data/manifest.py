"""The manifest: one row an image. No torch and no Ray here.

`manifest.parquet` has the columns of `COLUMNS` as text ("" where unknown; width and height are integers), then whatever
further columns the source brought, as text. The classes, the data set's name and the hashes stand in the Parquet metadata.

`manifest.arrow` is a copy of it to be memory-mapped, with the hashes and each image's place in the packed files. It is made
again whenever it does not belong to the Parquet file, and may be deleted.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from clipcovid.config import UserError
from clipcovid.data.shards import MASK_COLUMNS as MASK_COLUMNS
from clipcovid.data.shards import ShardIndex, locate_packed_rows
from clipcovid.identity import ROWS_PER_BLOCK, file_hash, rows_digest
from clipcovid.io.arrow_tables import MappedTable, map_table, positions_in, to_frame, write_table
from clipcovid.io.files import is_writable, read_parquet, write_parquet
from clipcovid.io.tables import MISSING_WORDS

TEXT_COLUMNS = (
    "image_id",
    "path",
    "label",
    "patient_id",
    "split",
    "source",
    "view",
    "caption",
    "lung_mask",
    "infection_mask",
    "boxes",
    "sha256",
)
COLUMNS = (*TEXT_COLUMNS[:-1], "width", "height", "sha256")
INVERTED = "inverted"  # a further column: MONOCHROME1 where a file shows black as white, see `images.undo_inversion`
ARROW_COPY = "manifest.arrow"
HASH_PROPERTIES = ("content_hash", "split_hash", "images_hash")  # that the copy keeps
PACKED_ROW = "packed_row"  # of the Arrow copy alone: the image's row, counted through all packed files
SPLITS = ("train", "val", "test")  # from the least to the most strictly kept apart
SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared data set's table and what is known of it as a whole."""

    table: pd.DataFrame
    """One row an image, the columns of `COLUMNS` first."""
    classes: tuple[str, ...]
    """Class names, in the order of every probability table."""
    dataset: str
    """The data set's name."""
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further facts kept in the metadata: the pack hash, how it was prepared, what was found."""
    mapped_table: MappedTable | None = dataclasses.field(default=None, init=False, repr=False, compare=False)
    """The Arrow copy that has these rows: what other processes open instead of being sent the table."""
    changed_columns: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
    """The columns in which the table differs from the copy."""

    def __post_init__(self) -> None:
        if missing := [column for column in COLUMNS if column not in self.table]:
            raise UserError(f"The manifest lacks the columns {', '.join(missing)}.")
        ids = self.table["image_id"]
        if not ids.is_unique:
            raise UserError(f"The manifest has image_id {ids[ids.duplicated()].iloc[0]!r} more than once.")
        if unknown := set(self.table["split"].unique()) - set(SPLITS):
            raise UserError(f"The manifest has splits {sorted(unknown)}; they must be of {', '.join(SPLITS)}.")
        if unknown := set(self.table["label"].unique()) - {"", *self.classes}:
            raise UserError(f"The manifest has labels {sorted(unknown)}, which are not among {list(self.classes)}.")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "table" or not self.mapped_table}

    if not TYPE_CHECKING:  # to mypy, it would have every attribute

        def __getattr__(self, name: str) -> pd.DataFrame:
            """The table, opened at its first use by a process that was sent the manifest."""
            if name != "table" or "mapped_table" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            table = to_frame(self.mapped_table.open().drop_columns([PACKED_ROW])).assign(**self.changed_columns)
            self.__dict__["table"] = table
            return table

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 (16 hex digits) of every cell of the table, and of its columns' names."""
        return _table_hash(self.table)

    @functools.cached_property
    def split_hash(self) -> str:
        """SHA-256 (16 hex digits) of the sorted (image_id, label, patient_id, split): what may be compared with what."""
        columns = ["image_id", "label", "patient_id", "split"]
        return _table_hash(self.table[columns].sort_values("image_id"))

    @functools.cached_property
    def images_hash(self) -> str:
        """SHA-256 (12 hex digits) of the sorted (image_id, sha256): which images these are."""
        return rows_digest(self.table[["image_id", "sha256"]].sort_values("image_id"))

    def with_columns(self, classes: Sequence[str] | None = None, **columns: Any) -> "Manifest":
        """The manifest with other values, (n,) or one for all, in some columns, and maybe other classes."""
        table = self.table.assign(**columns)
        manifest = dataclasses.replace(self, table=table, classes=tuple(self.classes if classes is None else classes))
        manifest.__dict__.update(
            mapped_table=self.mapped_table,
            changed_columns=self.changed_columns | {name: table[name] for name in columns},
        )
        return manifest

    def positions(self, image_ids: pd.Series) -> np.ndarray:
        """Where images stand in the table, (n,) int64; an image that does not is a KeyError."""
        positions = positions_in(image_ids, self.table["image_id"])
        if (positions < 0).any():
            raise KeyError(image_ids[positions < 0].iloc[0])
        return positions

    def packed_rows(self, folder: Path) -> tuple[ShardIndex, np.ndarray]:
        """The packed files of the prepared `folder`, and each image's row in them (see `locate_packed_rows`)."""
        if self.mapped_table and self.mapped_table.path.parent == folder.resolve():
            table, metadata = map_table(self.mapped_table.path)
            index = ShardIndex(**metadata["shards"])
            if metadata["key"] == self.mapped_table.key and index.matches(folder):
                return index, table[PACKED_ROW].combine_chunks().to_numpy()
        return locate_packed_rows(folder, self.table["image_id"])

    def rows_with(self, split: str, columns: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int]]:
        """A split's rows that have a value in each of `columns`, and notes: what is missing → how many images are left out.

        Raises `UserError` where no row is left.
        """
        rows, notes = self.rows(split), {}
        for column in columns:
            has_value, noun = rows[column] != "", f"{'an' if column[0] in 'aeiou' else 'a'} {column.replace('_', ' ')}"
            if not has_value.any():
                raise UserError(f"No image of the {split} split of {self.dataset} has {noun}.")
            if not has_value.all():
                notes[f"images without {noun} are left out"] = int((~has_value).sum())
                rows = rows[has_value]
        return rows.reset_index(drop=True), notes

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of one split, or of all for `all`; an unknown or empty split is a `UserError`."""
        if split != "all" and split not in SPLITS:
            raise UserError(f"--split {split!r} is unknown: use {', '.join(SPLITS)} or all.")
        rows = self.table if split == "all" else self.table[self.table["split"] == split]
        if rows.empty:
            raise UserError(
                f"The split {split!r} of {self.dataset} has no images: prepare the set again, with --resplit or other shares "
                "(--val, --test)."
            )
        return rows.reset_index(drop=True)


def _table_hash(table: pd.DataFrame) -> str:
    """Of the columns' names, and of all cells as JSON; in blocks, since the text of a large table is larger still."""
    total = hashlib.sha256((json.dumps(list(table.columns)) + "[").encode())
    for start in range(0, len(table), ROWS_PER_BLOCK):
        cells = table.iloc[start : start + ROWS_PER_BLOCK].to_json(orient="values")
        total.update(f"{',' if start else ''}{cells[1:-1]}".encode())
    total.update(b"]")
    return total.hexdigest()[:16]


def normalize_columns(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with every manifest column, in order, as text ("" for missing), width and height as int32 (0 unknown).

    The words for a missing value mean missing in every text column but the label's: a class may have such a name (see
    `classes.clean_labels`).
    """
    table = table.rename(columns=str)
    for column in COLUMNS:
        if column not in table:
            table[column] = 0 if column in ("width", "height") else ""
    extra = [str(column) for column in table if column not in COLUMNS]
    for column in [*TEXT_COLUMNS, *extra]:
        table[column] = table[column].astype(object).where(table[column].notna(), "").map(_text)
        if column != "label":
            table[column] = table[column].mask(table[column].isin(MISSING_WORDS), "")
    for column in ("width", "height"):
        table[column] = table[column].astype("int32")
    return table[[*COLUMNS, *extra]].reset_index(drop=True)


def _text(value: Any) -> str:
    """Text of a cell; a whole number that pandas read as a float (because others were missing) loses its `.0`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, np.ndarray):  # a list of a Parquet file
        value = value.tolist()
    text = json.dumps(value, default=str) if isinstance(value, (list, dict)) else str(value).strip()
    return text.encode(
        errors="replace"
    ).decode()  # half a surrogate pair, which JSON and file names can hold, is no text


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.parquet` into `folder`, whole or not at all, and its Arrow copy."""
    meta = manifest.info | {
        "classes": list(manifest.classes),
        "dataset": manifest.dataset,
        "content_hash": manifest.content_hash,
        "split_hash": manifest.split_hash,
    }
    write_parquet(folder / "manifest.parquet", manifest.table, meta)
    _write_copy(folder, manifest, file_hash(folder / "manifest.parquet"))


def read_manifest(folder: Path | str) -> Manifest:
    """Open a prepared folder's manifest; a missing, unfinished or altered one is a `UserError`.

    Its Arrow copy is mapped, and made where there is none, as by older versions. Where it can't be written, the table is read
    into memory.
    """
    path = Path(folder) / "manifest.parquet"
    if not path.exists():
        raise UserError(
            f"{folder} is not a prepared data set (it has no manifest.parquet): run "
            f"`clipcovid prepare --source … --root … --out {folder}` first."
        )
    key = file_hash(path)
    if mapped := _open_copy(path.parent, key):
        return mapped
    manifest = _read_parquet(path)
    if is_writable(path.parent):
        with contextlib.suppress(UserError):  # of a full disk, or of a damaged shard, which whoever needs it will name
            _write_copy(path.parent, manifest, key)
    return _open_copy(path.parent, key) or manifest


def _read_parquet(path: Path) -> Manifest:
    """The manifest in memory, every cell checked against the hash that was written with it."""
    table, meta = read_parquet(path)
    meta = meta or {}
    required_keys = {"classes", "dataset", "content_hash", "split_hash"}
    if missing := required_keys - set(meta):
        raise UserError(
            f"{path} lacks {', '.join(sorted(missing))} in its metadata: prepare the data set again, with --overwrite."
        )
    manifest = Manifest(
        table=table,
        classes=tuple(meta["classes"]),
        dataset=meta["dataset"],
        info={key: value for key, value in meta.items() if key not in required_keys},
    )
    if manifest.content_hash != meta["content_hash"]:
        raise UserError(f"{path} was changed after it was written: prepare the data set again, with --overwrite.")
    return manifest


def _write_copy(folder: Path, manifest: Manifest, key: str) -> None:
    """Write `manifest.arrow`; `key` is the hash of the Parquet file that it is a copy of."""
    index, rows = locate_packed_rows(folder, manifest.table["image_id"])
    table = pa.Table.from_pandas(manifest.table, preserve_index=False)
    metadata = {
        "key": key,
        "classes": list(manifest.classes),
        "dataset": manifest.dataset,
        "info": manifest.info,
        "hashes": {name: getattr(manifest, name) for name in HASH_PROPERTIES},
        "shards": dataclasses.asdict(index),
    }
    write_table(folder / ARROW_COPY, table.append_column(PACKED_ROW, pa.array(rows)), metadata)


def _open_copy(folder: Path, key: str) -> Manifest | None:
    """The manifest of the Arrow copy; None where there is none of the Parquet file with this hash."""
    mapped = MappedTable((folder / ARROW_COPY).resolve(), key)
    try:
        _, metadata = map_table(mapped.path)
    except (pa.ArrowException, OSError, ValueError):
        return None
    if metadata.get("key") != key:
        return None
    manifest: Manifest = object.__new__(Manifest)  # not checked again: it was before it was copied
    named = {"classes": tuple(metadata["classes"]), "dataset": metadata["dataset"], "info": metadata["info"]}
    manifest.__dict__.update(named | metadata["hashes"] | {"mapped_table": mapped, "changed_columns": {}})
    return manifest
