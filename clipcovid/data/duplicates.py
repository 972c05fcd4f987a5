"""One row a file: rows of a table that name the same file are one image."""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import MASK_COLUMNS

CONFLICT_REMEDIES = {
    "label": "give it one class (of several readers or findings, say, the one that most name), or prepare the set without",
    "patient_id": "correct the table",
    "split": "list it in one split",
    **dict.fromkeys(MASK_COLUMNS, "join its masks in one file"),
}
"""What an image has one of, and what to do where rows of the same file give several."""
MAX_NAMED_COLUMNS = 6  # columns that a note names


def merge_duplicate_rows(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A row a file: rows that name the same file become its first row; and what was assumed, a sentence each.

    A cell that the first row lacks is taken from the others, and boxes (JSON lists) are joined; of other columns the
    first value stays. Rows that give a file two labels, patients, splits or masks are a `UserError`. `table`: text cells,
    "" where unknown, `path` absolute or a URI.
    """
    files = canonical_paths(table["path"])
    repeated = files.duplicated(keep=False)
    if not repeated.any():
        return table, []
    rows, key = table[repeated], files[repeated]
    cells = rows.where(rows != "").groupby(key, sort=False)
    values = cells.nunique()
    for column in CONFLICT_REMEDIES:
        _refuse_contradiction(rows, key, column, values[column] > 1)
    merged = cells.first()
    merged.index = pd.Index(rows.index[~key.duplicated()])
    unlike = values[values.columns.difference(["image_id", "path"], sort=False)].gt(1).sum()
    unlike["boxes"] = _join_boxes(merged, rows, key, values["boxes"] > 1)
    single = pd.concat([table[~repeated], merged.fillna("")]).sort_index().reset_index(drop=True)
    note = f"{len(table) - len(single):,} rows name a file again ({len(merged):,} files): each file is one image"
    different = [f"{column} ({count:,} files)" for column, count in unlike[unlike > 0].items()]
    if len(different) > MAX_NAMED_COLUMNS:
        different[MAX_NAMED_COLUMNS:] = [f"{len(different) - MAX_NAMED_COLUMNS} more columns"]
    differences = f"; where its rows differ, the first one's value stays: {', '.join(different)}" if different else ""
    return single.astype(table.dtypes), [f"{note}{differences}."]


def canonical_paths(paths: pd.Series) -> pd.Series:
    """A name a file, by which paths of the same file are equal: without `./`, links and the like. URIs stay as they are."""
    folders: dict[str, str] = {}
    links: set[str] = set()

    def name(path: str) -> str:
        path = path.removeprefix("file://")
        if "://" in path:
            return path
        folder, _, file = path.rpartition("/")
        try:
            if folder not in folders:  # asked once, not for each of its many files
                folders[folder] = str(Path(folder or "/").resolve())
                with contextlib.suppress(OSError), os.scandir(folder or "/") as entries:
                    links.update(f"{folder}/{entry.name}" for entry in entries if entry.is_symlink())
            return str(Path(path).resolve()) if path in links else f"{folders[folder].rstrip('/')}/{file}"
        except (OSError, ValueError, RuntimeError):  # of a null byte or a circle of links: the image will be refused
            return path

    return paths.map(name)


def _refuse_contradiction(rows: pd.DataFrame, key: pd.Series, column: str, several: pd.Series) -> None:
    if not several.any():
        return
    first = several.idxmax()
    values = rows.loc[(key == first) & (rows[column] != ""), column].unique()
    called = {"patient_id": "patient"}.get(column, column.replace("_", " "))
    more = f" (and {several.sum() - 1:,} more files have several)" if several.sum() > 1 else ""
    raise UserError(
        f"{first} is listed with the {called} {values[0]!r} and with {values[1]!r}{more}, but a file is one image: "
        f"{CONFLICT_REMEDIES[column]}."
    )


def _join_boxes(merged: pd.DataFrame, rows: pd.DataFrame, key: pd.Series, several: pd.Series) -> int:
    """Give the merged rows all boxes of their files; returns of how many files they are no JSON lists, and stay."""
    unread = 0
    files = several[several].index
    at = pd.Series(merged.index, index=several.index)
    for file, cells in rows.loc[key.isin(files), "boxes"].groupby(key, sort=False):
        joined = _merge_cells(cells)
        if joined is None:
            unread += 1
        else:
            merged.loc[at[file], "boxes"] = joined
    return unread


def _merge_cells(cells: Iterable[str]) -> str | None:
    """The JSON lists as one, equal entries once; None where one of them is no list."""
    boxes: dict[str, None] = {}
    for cell in cells:
        try:
            entries = json.loads(cell or "[]")
        except ValueError:
            return None
        if not isinstance(entries, list):
            return None
        boxes |= dict.fromkeys(map(json.dumps, entries))
    return f"[{', '.join(boxes)}]"
