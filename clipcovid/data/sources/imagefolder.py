"""A folder per class."""

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import SPLIT_NAMES
from clipcovid.data.sources.columns import ColumnsConfig, rename
from clipcovid.data.sources.registry import source
from clipcovid.data.sources.root import Root, tidy
from clipcovid.data.sources.rows import read_rows


@source("imagefolder")
def imagefolder(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """A folder per class (`<Class>/…` or `<Split>/<Class>/…`); a `metadata.csv` with `file_name` in the root is joined."""
    files = root.folder().images()
    tops = {path.split("/")[0] for path in files if "/" in path}
    by_split = bool(tops) and all(top.lower() in SPLIT_NAMES for top in tops)
    at = 1 if by_split else 0
    rows = []
    for path in files:
        folders = [*path.split("/")[:-1], "", ""]  # an image outside of the class folders has no label
        rows.append({"path": path, "label": folders[at], "split": folders[0] if by_split else ""})
    if not any(row["label"] for row in rows):
        raise UserError(f"{root.given} has no class folders with images in them (<Class>/image.png).")
    table = pd.DataFrame(rows)
    if "metadata.csv" not in root.files():
        return table
    joined = rename(read_rows(root, "metadata.csv"), columns, f"{root.given}/metadata.csv")
    if not columns.path and "file_name" in joined:
        joined = joined.drop(columns="path", errors="ignore").rename(columns={"file_name": "path"})
    elif not columns.path:
        raise UserError(
            f"{root.given}/metadata.csv has no column file_name to join the images by: say which it is with "
            f"--columns.path ({', '.join(map(str, joined))})."
        )
    joined = joined.assign(path=joined["path"].map(tidy)).drop_duplicates()
    if (again := joined["path"].duplicated()).any():
        raise UserError(
            f"{root.given}/metadata.csv says different things of {joined.loc[again, 'path'].iloc[0]}: leave it one row."
        )
    both = table.merge(
        joined, on="path", how="outer", suffixes=("", " joined")
    )  # named there, not on disk: quarantined
    for column in ("label", "split"):
        if f"{column} joined" in both:
            said = both.pop(f"{column} joined")
            both[column] = said.where(said.notna() & (said != ""), both[column])
    return both
