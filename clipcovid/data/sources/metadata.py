"""Tables that stand in a folder of images and describe them: `metadata.csv` and kin, the lists of COVIDx."""

import posixpath
from collections import defaultdict

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import MASK_COLUMNS
from clipcovid.data.sources.columns import ColumnsConfig, rename_columns
from clipcovid.data.sources.covidx import read_list, split_of_list
from clipcovid.data.sources.root import DatasetRoot, posix_path
from clipcovid.data.sources.rows import read_rows
from clipcovid.io.tables import is_missing

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as Hugging Face's image folders have them
EMPTY_TABLE = pd.DataFrame({"path": pd.Series([], dtype=object)})


def read_metadata(root: DatasetRoot, columns: ColumnsConfig) -> tuple[pd.DataFrame, list[str]]:
    """The rows of all tables below a folder, a row an image, with `path` and masks relative to the root; and the tables.

    A table's paths are relative to its own folder. `UserError` where tables, or rows of them, contradict each other.
    """
    paths = _tables(root)
    parts = [_read(root, path, columns) for path in paths]
    for path in [path for path in root.files() if "/" not in path and split_of_list(path)]:
        if (rows := read_list(root, path, root)) is not None:
            parts.append(rename_columns(rows, columns, path))
            paths.append(path)
            root.notes.append(f"{path} is read as a list of COVIDx, for the split {split_of_list(path)}.")
    if not parts:
        return EMPTY_TABLE, []
    _refuse_lists_of_one_split(root, paths)
    rows = pd.concat(parts, ignore_index=True).astype(object)
    for column in {"path", *MASK_COLUMNS} & set(rows):
        rows[column] = rows[column].where(rows[column].notna(), "")  # of tables without it
    rows = rows[~rows.astype(str).duplicated()].reset_index(drop=True)
    if (again := rows["path"].duplicated() & (rows["path"] != "")).any():
        raise UserError(
            f"{root.given}: {' and '.join(paths)} say different things of {rows.loc[again, 'path'].iloc[0]}: leave it one "
            "row."
        )
    return rows, paths


def _tables(root: DatasetRoot) -> list[str]:
    """The metadata tables below a root, one a folder."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in root.files():
        if posixpath.basename(path).lower() in METADATA_NAMES:
            folders[posixpath.dirname(path)].append(path)
    for paths in folders.values():
        if len(paths) > 1:
            raise UserError(f"{root.given} has {' and '.join(paths)}: which one is right? Move the other away.")
    return [paths[0] for paths in folders.values()]


def _read(root: DatasetRoot, path: str, columns: ColumnsConfig) -> pd.DataFrame:
    rows = rename_columns(read_rows(root, path), columns, f"{root.given}/{path}", root.notes)
    if not columns.path and "file_name" in rows:
        rows = rows.drop(columns="path", errors="ignore").rename(columns={"file_name": "path"})
    elif not columns.path:
        raise UserError(
            f"{root.given}/{path} has no column file_name to join the images by: say which it is with "
            f"--columns.path ({', '.join(map(str, rows))})."
        )
    folder = posixpath.dirname(path)
    for column in ("path", *MASK_COLUMNS):
        if column in rows:
            rows[column] = [
                "" if is_missing(cell) else posix_path(posixpath.join(folder, str(cell).strip().replace("\\", "/")))
                for cell in rows[column]
            ]
    return rows


def _refuse_lists_of_one_split(root: DatasetRoot, paths: list[str]) -> None:
    lists: dict[str, str] = {}
    for path in paths:
        split = split_of_list(path)
        if split and split in lists:
            raise UserError(
                f"{root.given} has {lists[split]} and {path}, two lists of the split {split}: move those of other versions "
                "away, or give one list with --source table --root … --images …"
            )
        lists[split] = path
