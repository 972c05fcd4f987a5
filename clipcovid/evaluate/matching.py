"""Which rows of two tables are about the same image: by a column that both have, never by position unless asked."""

import re
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import pandas as pd

from clipcovid.config import UserError
from clipcovid.io.tables import cell_text

ID_NAMES = (
    ("imageid", "id", "image", "filename", "file", "path", "imagepath", "filepath", "imageindex", "imagename", "img",
     "imgid", "dicomid", "sopinstanceuid", "studyid", "uid", "key", "name")
)  # fmt: skip
"""What columns of ids are called, in small letters and without signs."""
POSITION = "position"


class JoinTable(NamedTuple):
    """One of the two tables."""

    table: pd.DataFrame
    name: str
    """Its file, for messages."""
    reserved: Collection[str]
    """Columns that are no ids: labels and predictions."""

    def ids(self, column: str) -> pd.Series:
        """A column as text, "" for missing; whole floats lose their `.0`."""
        return self.table[column].map(cell_text)

    def id_columns(self) -> list[str]:
        """The columns that are called as ids are, in the order of `ID_NAMES`."""
        columns = [column for column in map(str, self.table) if column not in self.reserved]
        plain = {column: re.sub(r"[\W_]", "", column.lower()) for column in columns}
        return sorted((c for c in plain if plain[c] in ID_NAMES), key=lambda c: ID_NAMES.index(plain[c]))


def match_rows(
    predictions: JoinTable, truth: JoinTable, match_column: str = "", missing: Literal["error", "drop"] = "error"
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Both tables with the same images in the same order (the truth's), indexed by id, and notes.

    `match_column`: a column of both; "position", for equally long tables in the same order; "" finds a column that both have,
    whose values are unique and the same: one that is called as ids are, else any. Rows that only one table has are left
    out (`missing` "drop") or refused. No such column, several that contradict each other, an id twice: `UserError`.
    """
    if match_column == POSITION:
        return _by_position(predictions, truth)
    ours, theirs = (match_column, match_column) if match_column else _columns(predictions, truth)
    notes = []
    if ours != theirs:
        notes.append(f"Rows were matched by {ours} of {predictions.name} and {theirs} of {truth.name}.")
    elif not match_column and ours not in truth.id_columns():
        notes.append(f"Rows were matched by {ours}.")
    ids = [_index(side, column) for side, column in ((predictions, ours), (truth, theirs))]
    if not match_column and len(ids[0]) > 1 and all(map(_is_row_count, ids)):
        notes.append(f"{ours} only counts the rows of both files: are they in the same order?")
    unpredicted = ids[1].difference(ids[0], sort=False)
    unlabelled = ids[0].difference(ids[1], sort=False)
    shared = ids[1].intersection(ids[0], sort=False)
    if shared.empty:
        raise UserError(
            f"{predictions.name} and {truth.name} have no image in common: the first {ours} is {ids[0][0]!r} in the one, "
            f"the first {theirs} {ids[1][0]!r} in the other."
        )
    for lacking, where, lacks in (
        (unpredicted, truth.name, predictions.name),
        (unlabelled, predictions.name, truth.name),
    ):
        if len(lacking) and missing == "error":
            raise UserError(
                f"{len(lacking)} of the images in {where} are not in {lacks}: {', '.join(map(repr, lacking[:3]))}"
                f"{' …' if len(lacking) > 3 else ''}; --missing drop scores only those in both."
            )
    if len(unpredicted) or len(unlabelled):
        notes.append(
            f"Left out: {len(unpredicted)} images without a prediction, {len(unlabelled)} without a ground truth."
        )
    return predictions.table.set_axis(ids[0]).loc[shared], truth.table.set_axis(ids[1]).loc[shared], notes


def _by_position(predictions: JoinTable, truth: JoinTable) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    if len(predictions.table) != len(truth.table):
        raise UserError(
            f"{predictions.name} has {len(predictions.table)} rows and {truth.name} {len(truth.table)}: to be matched by "
            "position they must be equally many."
        )
    notes = ["Rows were matched by position, as asked."]
    for column in [column for column in predictions.id_columns() if column in truth.id_columns()]:
        if differ := int((predictions.ids(column).to_numpy() != truth.ids(column).to_numpy()).sum()):
            notes.append(f"{column} differs in {differ} of the {len(truth.table)} rows that were matched.")
    index = pd.RangeIndex(len(truth.table), name="image_id")
    return predictions.table.set_axis(index), truth.table.set_axis(index), notes


def _columns(predictions: JoinTable, truth: JoinTable) -> tuple[str, str]:
    """The columns of the one and of the other that hold the same ids."""
    id_columns = [column for column in predictions.id_columns() if column in truth.id_columns()]
    shared = [
        c
        for c in predictions.table
        if c in truth.table and c not in {*id_columns, *predictions.reserved, *truth.reserved}
    ]
    if pair := _matching_columns(predictions, truth, [(column, column) for column in id_columns], partly=True):
        return pair
    if pair := _matching_columns(predictions, truth, [(str(column), str(column)) for column in shared], partly=False):
        return pair
    pairs = [(ours, theirs) for ours in predictions.id_columns() for theirs in truth.id_columns() if ours != theirs]
    if pair := _matching_columns(predictions, truth, pairs, partly=True):
        return pair
    if id_columns or pairs:
        return (id_columns[0], id_columns[0]) if id_columns else pairs[0]  # what is wrong with them will be said
    raise UserError(
        f"{predictions.name} and {truth.name} have no column in common that tells their images apart: give both an image_id "
        "(or a file name), say which column it is with --match, or, where their rows are in the same order, "
        f"--match {POSITION}."
    )


def _matching_columns(
    predictions: JoinTable, truth: JoinTable, pairs: Sequence[tuple[str, str]], *, partly: bool
) -> tuple[str, str] | None:
    """The first pair of columns that tell the rows apart and have the same values (`partly`: some of them).

    Pairs that would match other rows with each other are a `UserError`.
    """
    fits: dict[tuple[str, str], pd.Series] = {}
    for pair in pairs:
        ours, theirs = predictions.ids(pair[0]), truth.ids(pair[1])
        unique = ours.is_unique and theirs.is_unique and not (ours == "").any() and not (theirs == "").any()
        counting = (
            _is_row_count(ours)
            and _is_row_count(theirs)
            and (pair[0] not in predictions.id_columns() or pair[1] not in truth.id_columns())
        )
        if not unique or counting:
            continue
        rows = ours.map(pd.Series(theirs.index, index=theirs))
        if rows.notna().any() and (partly or rows.notna().sum() == len(theirs) == len(ours)):
            fits[pair] = rows
    best = sorted(fits, key=lambda pair: -int(fits[pair].notna().sum()))  # stable: of equal ones the first
    for pair in best[1:]:
        both = fits[best[0]].notna() & fits[pair].notna()
        if (fits[best[0]][both] != fits[pair][both]).any():
            raise UserError(
                f"{predictions.name} and {truth.name} match different images by "
                f"{' and '.join(dict.fromkeys(best[0]))} than by "
                f"{' and '.join(dict.fromkeys(pair))}: say which column names the image with --match."
            )
    return best[0] if best else None


def _index(side: JoinTable, column: str) -> pd.Index:
    """The ids of a table's rows, all known and none twice."""
    if column not in side.table:
        raise UserError(f"--match {column}: {side.name} has no such column; it has {', '.join(map(str, side.table))}.")
    ids = side.ids(column)
    if unknown := int((ids == "").sum()):
        raise UserError(f"{unknown} rows of {side.name} have no {column}.")
    if (twice := ids[ids.duplicated()].unique()).size:
        raise UserError(
            f"{len(twice)} ids stand twice in the column {column} of {side.name}, the first is {twice[0]!r}; an image is "
            "scored once."
        )
    return pd.Index(ids, name="image_id")


def _is_row_count(ids: pd.Series | pd.Index) -> bool:
    """Whether these only count the rows, from 0 or 1."""
    text = ids.tolist()
    return text[0] in ("0", "1") and text == [str(number + int(text[0])) for number in range(len(text))]
