"""Predictions and ground truth that other programs wrote: JSON, JSON lines, CSV or Parquet, recognised by shape."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import UserError
from clipcovid.evaluate.predictions import PROBABILITY, SIMILARITY

IDS = ("image_id", "id", "image", "file_name", "path")
LABELS = ("label", "class", "true", "ground_truth", "target")
PREDICTED = ("prediction", "predicted", "pred", "label")
LISTS = ("probabilities", "similarities", "ranking")
VALUE = "value"
"""The column for what stands alone: in a list, or behind an id."""


class Foreign(NamedTuple):
    """What two foreign files say together."""

    table: pd.DataFrame
    """As `predictions.score` takes it, a row for each image that is scored, in the order of the ground truth."""
    classes: list[str]
    notes: list[str]


def read_foreign(
    predictions: str | Path,
    truth: str | Path,
    classes: Sequence[str] = (),
    missing: Literal["error", "drop"] = "error",
) -> Foreign:
    """Read both files, match their rows and bring them to one shape.

    Rows match by the first column of `IDS` that both have, else by position. Ground truth: one of `LABELS`, and
    patient_id where known. Predictions: prob_<class> columns or probabilities ({class: p}, or a list with `classes`),
    sim_<class> or similarities (the same way), ranking (a list), or one of `PREDICTED`. A label may be an index into
    `classes`. `missing` "drop" scores the images that both have; "error" refuses. All that does not fit: `UserError`.
    """
    given, true = read_table(predictions), read_table(truth)
    given, true, notes = _match(given, true, str(predictions), str(truth), missing)
    column = _first(true, (*LABELS, VALUE))
    if column is None:
        raise UserError(f"{truth} has no label column ({', '.join(LABELS)}); it has {', '.join(map(str, true))}.")
    table, names = _predicted(given, list(classes), str(predictions))
    labels = _class_names(true[column], classes, str(truth))
    if not names:
        named = table["predicted"] if "predicted" in table else (c for ranking in table["ranking"] for c in ranking)
        names = sorted({*labels, *named})
        notes.append(f"The classes are those that the files name ({', '.join(names)}); --classes sets all, in order.")
    table.insert(0, "image_id", table.index.map(str))
    table.insert(1, "label", labels)
    if "patient_id" in true:
        table["patient_id"] = ["" if _blank(value) else str(value) for value in true["patient_id"]]
    return Foreign(table.reset_index(drop=True), names, notes)


def read_table(path: str | Path) -> pd.DataFrame:
    """The rows of a file as an object table; what stands alone or behind an id in JSON becomes the column `VALUE`.

    JSON: a list of rows or of values, an object {id: value or row}, or an object of columns. JSON lines: a row or a
    value a line. CSV: all cells are text; those that start with [ or { are read as JSON. An id or key that stands
    twice, a ragged row, a file that cannot be parsed or has no rows: `UserError`.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".json": lambda path: _json_rows(_json(path.read_text("utf-8-sig"))),
        ".jsonl": lambda path: _json_rows(
            [_json(line) for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
        ),
        ".csv": lambda path: _csv_rows(path.read_text("utf-8-sig")),
        ".parquet": lambda path: pd.DataFrame(pq.read_table(path).to_pylist(maps_as_pydicts="strict"), dtype=object),
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is none of {', '.join(readers)}; the file's ending says how it is read.")
    try:
        table = readers[path.suffix.lower()](path)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (ValueError, OSError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from None
    if table.empty:
        raise UserError(f"{path} has no rows.")
    return table


def _json(text: str) -> Any:
    def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object.")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=no_key_twice)


def _json_rows(data: Any) -> pd.DataFrame:
    if isinstance(data, dict) and all(isinstance(value, list | dict) for value in data.values()) and _is_row(data):
        return pd.DataFrame(data, dtype=object)
    if isinstance(data, dict):
        rows = [{**(value if _is_row(value) else {VALUE: value}), IDS[0]: key} for key, value in data.items()]
    elif isinstance(data, list):
        rows = [value if _is_row(value) else {VALUE: value} for value in data]
    else:
        raise ValueError("a list or an object was expected.")
    return pd.DataFrame(rows, dtype=object)


def _is_row(value: Any) -> bool:
    known = {*IDS, *LABELS, *PREDICTED, *LISTS}
    return isinstance(value, dict) and any(key in known or key.startswith((PROBABILITY, SIMILARITY)) for key in value)


def _csv_rows(text: str) -> pd.DataFrame:
    rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number} has {len(row)} fields, the header has {len(rows[0])}.")
    cells = [[_cell(cell) for cell in row] for row in rows[1:]]
    return pd.DataFrame(cells, columns=rows[0] if rows else None, dtype=object)


def _cell(cell: str) -> Any:
    """A list or an object, where it is one: a caption may begin with a bracket too."""
    try:
        return json.loads(cell) if cell.startswith(("[", "{")) else cell
    except ValueError:
        return cell


def _match(
    given: pd.DataFrame, true: pd.DataFrame, given_name: str, true_name: str, missing: str
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Both tables with the same images in the same order, indexed by id (or by position), and notes."""
    ours, theirs = ([name for name in IDS if name in table] for table in (given, true))
    if not ours or not theirs:
        if len(given) != len(true):
            raise UserError(
                f"{given_name} has {len(given)} rows and {true_name} {len(true)}; without an id column "
                f"({', '.join(IDS)}) in both they are matched by position and must be equally long."
            )
        return given, true, ["Without an id in both files, rows were matched by position."]
    both = next((name for name in theirs if name in ours), None)
    given, true = _by_id(given, both or ours[0], given_name), _by_id(true, both or theirs[0], true_name)
    unpredicted, unlabelled = (
        true.index.difference(given.index, sort=False),
        given.index.difference(true.index, sort=False),
    )
    for ids, where, lacks in ((unpredicted, true_name, given_name), (unlabelled, given_name, true_name)):
        if len(ids) and missing == "error":
            raise UserError(
                f"{len(ids)} of the images in {where} are not in {lacks}: {', '.join(map(repr, ids[:3]))}"
                f"{' …' if len(ids) > 3 else ''}; --missing drop scores only those in both."
            )
    shared = true.index.intersection(given.index, sort=False)
    if shared.empty:
        raise UserError(f"{given_name} and {true_name} have no image in common; compare their ids.")
    notes = [f"Left out: {len(unpredicted)} images without a prediction, {len(unlabelled)} without a ground truth."]
    return given.loc[shared], true.loc[shared], notes if len(unpredicted) or len(unlabelled) else []


def _by_id(table: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
    if blank := sum(map(_blank, table[column])):
        raise UserError(f"{blank} rows of {name} have no {column}.")
    table = table.set_index(table[column].map(str).rename("image_id"))
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()].unique()
        raise UserError(f"{len(twice)} ids stand twice in {name}, the first is {twice[0]!r}; an image is scored once.")
    return table


def _predicted(given: pd.DataFrame, classes: list[str], name: str) -> tuple[pd.DataFrame, list[str]]:
    """prob_<class> and sim_<class> columns, or ranking, or predicted; and the classes, where they say them."""
    if VALUE in given:
        example = given[VALUE].iloc[0]
        words = isinstance(example, list) and any(isinstance(item, str) for item in example)
        kind = "ranking" if words else "probabilities" if isinstance(example, dict | list) else "predicted"
        given = given.rename(columns={VALUE: kind})
    table = pd.DataFrame(index=given.index)
    for prefix, column in ((PROBABILITY, "probabilities"), (SIMILARITY, "similarities")):
        cells = _score_cells(given, prefix, column)
        if cells:
            classes = classes or _named(cells[0], name, column)
            table[[prefix + c for c in classes]] = _score_matrix(cells, classes, name, column)
    if not table.empty:
        return table, classes
    if "ranking" in given:
        cells = [_class_names(cell if isinstance(cell, list) else [cell], classes, name) for cell in given["ranking"]]
        return table.assign(ranking=pd.Series(cells, index=table.index, dtype=object)), classes
    hard = _first(given, PREDICTED)
    if hard is None:
        raise UserError(
            f"{name} has no predictions: give {PROBABILITY}<class> or {SIMILARITY}<class> columns, or one of "
            f"{', '.join((*LISTS, *PREDICTED))}; it has {', '.join(map(str, given))}."
        )
    return table.assign(predicted=_class_names(given[hard], classes, name)), classes


def _score_cells(given: pd.DataFrame, prefix: str, column: str) -> list[Any]:
    wide = [name for name in map(str, given.columns) if name.startswith(prefix)]
    if wide:
        names = [name.removeprefix(prefix) for name in wide]
        return [dict(zip(names, row, strict=True)) for row in given[wide].to_numpy()]
    return given[column].tolist() if column in given else []


def _named(cell: Any, name: str, column: str) -> list[str]:
    if isinstance(cell, dict):
        return list(cell)
    raise UserError(f"The {column} in {name} do not name their classes; give --classes in their order.")


def _score_matrix(cells: list[Any], classes: list[str], name: str, column: str) -> np.ndarray:
    """(n, k) float64 from objects {class: number} or lists; probabilities must be such."""
    rows = []
    for number, cell in enumerate(cells, 1):
        keys = cell if isinstance(cell, dict) else classes
        if not isinstance(cell, dict | list) or len(cell) != len(classes) or set(keys) != set(classes):
            got = f"of {', '.join(cell)}" if isinstance(cell, dict) else repr(cell)
            raise UserError(f"Row {number} of {name}: {column} of {', '.join(classes)} were expected, not {got}.")
        rows.append([cell[c] for c in classes] if isinstance(cell, dict) else cell)
    try:
        matrix = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"The {column} in {name} are not all numbers.") from None
    if column == "probabilities" and not np.isnan(matrix).any():
        wrong = (matrix < 0).any(axis=1) | (np.abs(matrix.sum(axis=1) - 1) > 1e-3)
        if wrong.any():
            first = int(wrong.argmax())
            raise UserError(
                f"{int(wrong.sum())} of {len(matrix)} rows of {name} are no probabilities: row {first + 1} sums to "
                f"{matrix[first].sum():.4g} with a lowest of {matrix[first].min():.4g}, where 1 and no negative were "
                f"expected; scores that are no probabilities go in {SIMILARITY}<class> columns."
            )
    return matrix


def _class_names(values: Sequence[Any] | pd.Series, classes: Sequence[str], name: str) -> list[str]:
    """Names, and with `classes` whole numbers that are no name as indices into them."""
    names = []
    for value in values:
        if _blank(value):
            raise UserError(f"A row of {name} has no class; give every image one or leave it out.")
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if classes and text not in classes and text.isdecimal() and int(text) < len(classes):
            text = classes[int(text)]
        names.append(text)
    return names


def _first(table: pd.DataFrame, columns: Sequence[str]) -> str | None:
    return next((name for name in columns if name in table), None)


def _blank(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)
