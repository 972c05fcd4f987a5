"""The manifest: one row an image. No torch and no Ray here.

`manifest.parquet` has the columns of `COLUMNS` as text ("" where unknown; width and height are integers), then whatever
further columns the source brought, as text. The classes, the data set's name and the hashes stand in the Parquet metadata.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.io.files import read_parquet, write_parquet
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
MASKS = ("lung_mask", "infection_mask")
SPLITS = ("train", "val", "test")  # from the least to the most strictly kept apart
SPLIT_NAMES = {
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

    def __post_init__(self) -> None:
        if missing := [column for column in COLUMNS if column not in self.table]:
            raise UserError(f"The manifest lacks the columns {', '.join(missing)}.")
        ids = self.table["image_id"]
        if not ids.is_unique:
            raise UserError(f"The manifest has image_id {ids[ids.duplicated()].iloc[0]!r} more than once.")
        if unknown := set(self.table["split"]) - set(SPLITS):
            raise UserError(f"The manifest has splits {sorted(unknown)}; they must be of {', '.join(SPLITS)}.")
        if unknown := set(self.table["label"]) - {"", *self.classes}:
            raise UserError(f"The manifest has labels {sorted(unknown)}, which are not among {list(self.classes)}.")

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 (16 hex digits) of every cell of the table, and of its columns' names."""
        return _table_hash(self.table)

    @functools.cached_property
    def split_hash(self) -> str:
        """SHA-256 (16 hex digits) of the sorted (image_id, label, patient_id, split): what may be compared with what."""
        columns = ["image_id", "label", "patient_id", "split"]
        return _table_hash(self.table[columns].sort_values("image_id"))

    def positions(self, image_ids: pd.Series) -> np.ndarray:
        """Where images stand in the table, (n,) int64."""
        at = pd.Series(np.arange(len(self.table)), index=self.table["image_id"])
        return at.loc[image_ids].to_numpy(np.int64)

    def eligible(self, split: str, needs: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int]]:
        """A split's rows that have all the columns of `needs`; and what is missing of how many others, which are left out.

        A split without any is a `UserError`.
        """
        rows, notes = self.rows(split), {}
        for need in needs:
            known, what = rows[need] != "", f"{'an' if need[0] in 'aeiou' else 'a'} {need.replace('_', ' ')}"
            if not known.any():
                raise UserError(f"No image of the {split} split of {self.dataset} has {what}.")
            if not known.all():
                notes[f"images without {what} are left out"] = int((~known).sum())
            rows = rows[known]
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
    text = json.dumps(list(table.columns)) + table.to_json(orient="values")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    """Write `manifest.parquet` into `folder`, whole or not at all."""
    meta = manifest.info | {
        "classes": list(manifest.classes),
        "dataset": manifest.dataset,
        "content_hash": manifest.content_hash,
        "split_hash": manifest.split_hash,
    }
    write_parquet(folder / "manifest.parquet", manifest.table, meta)


def read_manifest(folder: Path | str) -> Manifest:
    """Read a prepared folder's manifest; a missing, unfinished or altered one is a `UserError`."""
    path = Path(folder) / "manifest.parquet"
    if not path.exists():
        raise UserError(
            f"{folder} is not a prepared data set (it has no manifest.parquet): run "
            f"`clipcovid prepare --source … --root … --out {folder}` first."
        )
    table, meta = read_parquet(path)
    meta = meta or {}
    known = {"classes", "dataset", "content_hash", "split_hash"}
    if missing := known - set(meta):
        raise UserError(
            f"{path} lacks {', '.join(sorted(missing))} in its metadata: prepare the data set again, with --overwrite."
        )
    manifest = Manifest(
        table=table,
        classes=tuple(meta["classes"]),
        dataset=meta["dataset"],
        info={key: value for key, value in meta.items() if key not in known},
    )
    if manifest.content_hash != meta["content_hash"]:
        raise UserError(f"{path} was changed after it was written: prepare the data set again, with --overwrite.")
    return manifest
