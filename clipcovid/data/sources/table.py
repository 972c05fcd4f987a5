"""A table of images."""

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.sources.columns import ColumnsConfig, rename_columns
from clipcovid.data.sources.covidx import read_list, split_of_list
from clipcovid.data.sources.exports import read_export, read_exports
from clipcovid.data.sources.image_lists import explode_image_lists
from clipcovid.data.sources.registry import register_source
from clipcovid.data.sources.root import DatasetRoot
from clipcovid.data.sources.rows import read_rows


@register_source("table")
def table(root: DatasetRoot, columns: ColumnsConfig) -> pd.DataFrame:
    """A CSV, JSON, JSONL or Parquet table, a list of COVIDx, or a folder of Parquet files with the images in them.

    Columns named as in the manifest are taken, others by `--columns.*`.
    """
    rows = rename_columns(_rows(root, columns), columns, root.given, root.notes)
    if "path" not in rows and "file_name" in rows:
        rows = rows.rename(columns={"file_name": "path"})
    if "path" not in rows:
        raise UserError(
            f"{root.given} has no column named path: say which holds the images' paths with --columns.path "
            f"({', '.join(map(str, rows))})."
        )
    return explode_image_lists(rows, root)


def _rows(root: DatasetRoot, columns: ColumnsConfig) -> pd.DataFrame:
    """The table's rows, by what kind of table it is."""
    if not root.file:
        if (rows := read_exports(root, columns)) is None:
            raise UserError(
                f"--root {root.given} is a folder; --source table wants the table's file, or a folder of Parquet files "
                "with images in them."
            )
        return rows
    if root.file.lower().endswith(".txt"):
        return _covidx(root)
    if root.file.lower().endswith((".parquet", ".pq")) and (rows := read_export(root, root.file, columns)) is not None:
        return rows
    return read_rows(root, root.file)


def _covidx(root: DatasetRoot) -> pd.DataFrame:
    """The rows of a list of COVIDx."""
    rows = read_list(root, root.file, root.images_at)
    if rows is None:
        raise UserError(
            f"{root.given}: a .txt table is read as a list of COVIDx, and its first line is not `patient file class "
            "source`. Save other tables as CSV."
        )
    split = split_of_list(root.file)
    root.notes.append(
        f"{root.file} is read as a list of COVIDx"
        + (
            f", and its images are the split {split} alone: --source imagefolder reads the lists of a folder together."
            if split
            else ", whose name says no split."
        )
    )
    return rows
