"""The columns of a table whose names differ from the manifest's."""

import dataclasses

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import COLUMNS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Columns of a table whose names differ from the manifest's."""

    path: str = ""
    """Column of the image's path, relative to the table, absolute, or a URI."""
    image_id: str = ""
    """Column of the image's id. Default: its path."""
    label: str = ""
    """Column of the class."""
    patient_id: str = ""
    """Column of the patient, who is kept within one split."""
    split: str = ""
    """Column of the split: train, val or test (dev, valid, training and the like are understood)."""
    source: str = ""
    """Column of the origin (hospital, collection)."""
    view: str = ""
    """Column of the view (PA, AP, lateral)."""
    caption: str = ""
    """Column of the free text."""
    lung_mask: str = ""
    """Column of the lung mask's path."""
    infection_mask: str = ""
    """Column of the infection mask's path."""
    boxes: str = ""
    """Column of the boxes, as JSON text."""


def rename(rows: pd.DataFrame, columns: ColumnsConfig, table: str) -> pd.DataFrame:
    """The rows of a table with the columns that `--columns.*` names under the manifest's names."""
    named = {column: name for column, name in dataclasses.asdict(columns).items() if name}
    if missing := [name for name in named.values() if name not in rows]:
        raise UserError(f"{table} has no column {missing[0]!r}; it has: {', '.join(map(str, rows))}.")
    taken = {column: rows[name] for column, name in named.items()}
    gone = [name for name in rows if name in named or (name in named.values() and name not in COLUMNS)]
    return rows.drop(columns=gone).assign(**taken)
