"""What all kinds of tables have in common: cells, missing values, and the names of columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from clipcovid.config import UserError

MISSING_WORDS = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null", "-", "?")
)  # fmt: skip
"""The words for a missing value: those that pandas knows, and signs in their place."""
KEY_COLUMN = "image_id"
"""The column for the keys of a JSON object, and for an index of text without a name."""
VALUE_COLUMN = "value"
"""The column for what stands alone: in a JSON list, or behind a key."""


def is_missing(value: object) -> bool:
    """Whether a cell says that nothing is known: a missing value of pandas or Python, or one of `MISSING_WORDS`."""
    if isinstance(value, str):
        return value.strip() in MISSING_WORDS
    nothing = value is None or value is pd.NA or value is pd.NaT
    return nothing or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def cell_text(value: object) -> str:
    """A cell as text, "" for a missing value; a whole number that pandas read as a float (12.0) has no `.0`."""
    if is_missing(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def unique_columns(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table with its columns' names as text, without spaces around them; one that stands twice is a `UserError`."""
    table = table.set_axis([str(column).strip() for column in table], axis=1)
    if (twice := table.columns[table.columns.duplicated()]).size:
        raise UserError(f"{name} has the column {twice[0]!r} twice: rename or remove one.")
    return table


def with_keys(table: pd.DataFrame, keys: Sequence[Any], *, numbers: bool = False) -> pd.DataFrame:
    """The table with its rows' keys as the column `KEY_COLUMN`, unless it has one; `numbers`: those too that count."""
    text = [str(key) for key in keys]
    if KEY_COLUMN in table or not text or (not numbers and all(map(str.isdecimal, text))):
        return table
    table.insert(0, KEY_COLUMN, pd.Series(text, dtype=object))
    return table
