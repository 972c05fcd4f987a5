"""Rows of a table that name several images, as those of R2Gen's `annotation.json` name the views of a study."""

import pandas as pd

from clipcovid.data.sources.root import DatasetRoot
from clipcovid.io.tables import cell_text


def explode_image_lists(rows: pd.DataFrame, root: DatasetRoot) -> pd.DataFrame:
    """The rows with a path each: of a list of paths a row each, whose images are one patient's where none is known."""
    lists = rows["path"].map(lambda cell: isinstance(cell, list))
    if not lists.any():
        return rows
    several = lists & (rows["path"].map(lambda cell: len(cell) if isinstance(cell, list) else 1) > 1)
    names = next((rows[name].map(cell_text) for name in ("image_id", "id") if name in rows), None)
    names = rows.index.map(lambda row: f"row {row + 1}").to_series(rows.index) if names is None else names
    patients = rows["patient_id"].map(cell_text) if "patient_id" in rows else pd.Series("", index=rows.index)
    rows = rows.assign(patient_id=patients.where((patients != "") | ~several, names))
    if "image_id" in rows:
        rows["image_id"] = rows["image_id"].where(~several, "")  # the row's, not an image's
    if several.any():
        root.notes.append(
            f"{int(several.sum())} rows of {root.file} name several images: each image has a row of its own, and those of "
            "a row are one patient's."
        )
    return rows.explode("path", ignore_index=True)
