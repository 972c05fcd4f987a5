"""The columns of a table whose names differ from the manifest's."""

import dataclasses
import re

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import COLUMNS
from clipcovid.io.tables import cell_text

COLUMN_ALIASES = {
    "label": ("class", "labels", "target", "finding", "findings", "findinglabels", "diagnosis", "category"),
    "patient_id": ("patient", "subjectid", "subject", "pid", "personid"),
    "split": ("set", "subset", "partition", "fold"),
    "caption": ("report", "text", "impression", "description"),
}
"""What else columns are called that may be the manifest's, in small letters and without signs."""

INDICATOR_VALUES = ("0", "1", "0.0", "1.0", "")  # of a column that says whether an image has a class


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


def rename_columns(
    rows: pd.DataFrame, columns: ColumnsConfig, table: str, notes: list[str] | None = None
) -> pd.DataFrame:
    """The rows of a table with the columns that `--columns.*` names under the manifest's names.

    A column that differs from a manifest's in case, spaces and signs alone is taken for it, and `notes` say so; they name
    those, too, that may be a manifest's column that the table lacks.
    """
    named = {column: name for column, name in dataclasses.asdict(columns).items() if name}
    if missing := [name for name in named.values() if name not in rows]:
        raise UserError(f"{table} has no column {missing[0]!r}; it has: {', '.join(map(str, rows))}.")
    alike = _similar_columns(rows, set(named))
    if alike and notes is not None:
        notes.append(
            f"Columns of {table}: {', '.join(f'{name} is read as {column}' for column, name in alike.items())}."
        )
    named |= alike
    taken = {column: rows[name] for column, name in named.items()}
    gone = [name for name in rows if name in named or (name in named.values() and name not in COLUMNS)]
    result = rows.drop(columns=gone).assign(**taken)
    if notes is not None:
        notes += _hints(result, table)
    return result


def _normalize_name(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _similar_columns(rows: pd.DataFrame, named: set[str]) -> dict[str, str]:
    """Manifest's columns that the table has under names that differ in case, spaces and signs alone."""
    alike = {}
    for column in ("path", "image_id", "label", "patient_id", "view", "caption"):
        names = [name for name in map(str, rows) if _normalize_name(name) == _normalize_name(column)]
        if column not in rows and column not in named and len(names) == 1:
            alike[column] = names[0]
    return alike


def _hints(rows: pd.DataFrame, table: str) -> list[str]:
    """A sentence for each manifest's column that is not there, while others may hold it."""
    sentences = []
    for column, called in COLUMN_ALIASES.items():
        names = [name for name in map(str, rows) if _normalize_name(name) in called]
        if column not in rows and names:
            sentences.append(
                f"{table} has no column {column}: is it {' or '.join(names)}? --columns.{column.replace('_', '-')} says so."
            )
    if "label" not in rows and len(names := _indicator_columns(rows)) > 1:
        shown = ", ".join([*names[:4], *[f"and {len(names) - 4} more"] * (len(names) > 4)])
        sentences.append(
            f"{table} has no column label, and {shown} hold 0 and 1 alone: if they are the classes, write the name of each "
            "image's one into a column label."
        )
    return sentences


def _indicator_columns(rows: pd.DataFrame) -> list[str]:
    """The further columns in which 0 and 1, and nothing else, stand."""
    names = [name for name in map(str, rows) if name not in COLUMNS]
    names = [name for name in names if all(cell_text(cell) in INDICATOR_VALUES for cell in rows[name])]
    return [name for name in names if {cell_text(cell)[:1] for cell in rows[name]} >= {"0", "1"}]
