"""A table of images."""

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.sources.columns import ColumnsConfig, rename
from clipcovid.data.sources.registry import source
from clipcovid.data.sources.root import Root
from clipcovid.data.sources.rows import read_rows


@source("table")
def table(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """A CSV, JSON, JSONL or Parquet table: columns named as in the manifest are taken, others by `--columns.*`."""
    if not root.file:
        raise UserError(f"--root {root.given} is a folder; --source table wants the table's file.")
    rows = rename(read_rows(root, root.file), columns, root.given)
    if "path" not in rows and "file_name" in rows:
        rows = rows.rename(columns={"file_name": "path"})
    if "path" not in rows:
        raise UserError(
            f"{root.given} has no column named path: say which holds the images' paths with --columns.path "
            f"({', '.join(map(str, rows))})."
        )
    return rows
