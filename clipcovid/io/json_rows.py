"""The rows in JSON of the forms that people and programs write."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from clipcovid.config import UserError, summarize_error
from clipcovid.io.cells import KEY_COLUMN, VALUE_COLUMN, unique_columns, with_keys

COLUMN_NAMES = frozenset(
    ("boxes", "caption", "class", "diagnosis", "file", "filename", "filepath", "finding", "findings", "groundtruth",
     "id", "image", "imageid", "imageindex", "imagename", "imagepath", "index", "label", "labels", "name", "path",
     "patient", "patientid", "pred", "predicted", "prediction", "predictions", "probabilities", "ranking", "report",
     "score", "similarities", "source", "split", "studyid", "subjectid", "target", "text", "true", "uid", "view",
     "ypred", "ytrue")
)  # fmt: skip
"""What columns are called, in small letters and without signs: they tell columns from keys where JSON's form does not."""
_SPLIT = re.compile(r"(train|val|test|dev|eval)[a-z]*", re.IGNORECASE)


def json_lines(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not empty; one that is no JSON is a `UserError`."""
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines splits at U+2028, too
        if line.strip():
            yield number, parse_json(line, f"{name}, line {number}")


def is_json_lines(text: str) -> bool:
    """Whether the first line of several is a JSON value by itself, as where `datasets` and pandas write lines as .json."""
    first, _, rest = text.strip().partition("\n")
    with contextlib.suppress(ValueError, RecursionError):
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    return False


def parse_json(text: str, where: str) -> Any:
    """The value in JSON text; what is no JSON, or has a key twice in one object, is a `UserError` that says `where`."""

    def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise UserError(
                f"{where}: the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object."
            )
        return found

    try:
        return json.loads(text, object_pairs_hook=no_key_twice)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({summarize_error(error)}).") from None


def json_rows(content: Any, name: str, notes: list[str]) -> pd.DataFrame:
    """The rows of a file, see `tables.read_table`."""
    if isinstance(content, list):
        return json_records(content, name)
    if not isinstance(content, dict):
        raise UserError(f"{name}: a list or an object of rows was expected, not {str(content)[:40]!r}.")
    if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        raise UserError(
            f"{name} is a COCO annotation file, not a table: write a table with a row an image (its file_name, and its "
            "label or caption)."
        )
    values = list(content.values())
    if {"columns", "data"} <= set(content) <= {"columns", "data", "index"}:  # orient="split"
        return _split_orient(content, name)
    if set(content) == {"schema", "data"}:  # orient="table"
        table = json_records(content["data"], name)
        return table.drop(columns="index") if "index" in table and _is_row_count(table["index"]) else table
    if any(values) and all(map(_is_list_of_rows, values)) and all(map(_SPLIT.fullmatch, content)):
        return _split_lists(content, name)
    if key := _rows_key(content):
        others = ", ".join(repr(other) for other in content if other != key)
        notes.append(f"The rows of {name} are those under {key!r}{f'; not read: {others}' if others else ''}.")
        return json_records(content[key], name)
    if values and all(isinstance(value, list | dict) for value in values) and _holds_columns(content, name):
        return _columns_orient(content, name)
    return _keyed_table(content, name)


def json_records(content: Any, name: str) -> pd.DataFrame:
    """A list of rows, or of values."""
    if not isinstance(content, list):
        raise UserError(f"{name}: a list of rows was expected.")
    rows = [isinstance(row, dict) for row in content]
    if any(rows) and not all(rows):
        raise UserError(f"{name}: some entries are objects and others, as entry {rows.index(False) + 1}, are not.")
    if not any(rows):
        return pd.DataFrame({VALUE_COLUMN: pd.Series(content, dtype=object)})
    return unique_columns(pd.DataFrame(content, dtype=object), name)


def _split_lists(content: dict[str, Any], name: str) -> pd.DataFrame:
    """The rows of {split: rows}, with the column split."""
    for split, rows in content.items():
        if other := [row["split"] for row in rows if str(row.get("split", split)).lower() != split.lower()]:
            raise UserError(f"{name}: a row under {split!r} says that its split is {other[0]!r}: mend one of them.")
    return json_records([row | {"split": split} for split, rows in content.items() for row in rows], name)


def _rows_key(content: dict[str, Any]) -> str:
    """The key of the only list, which is of rows, beside what describes it; "" where the values are cells or rows."""
    keys = [key for key, value in content.items() if isinstance(value, list) and value]
    only = keys[0] if len(keys) == 1 else ""
    return only if only and _is_list_of_rows(content[only]) and not _pipeline(content[only]) else ""


def _is_list_of_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _pipeline(rows: list[dict[str, Any]]) -> bool:
    """Whether these are the scores that a Hugging Face pipeline gives of one image."""
    return all(set(row) == {"label", "score"} for row in rows)


def _holds_columns(content: dict[str, Any], name: str) -> bool:
    """Whether an object of objects or lists is {column: cells}; else it is {key: row or value}."""
    values = list(content.values())
    named = any(map(_is_column_name, content))
    if all(isinstance(value, list) for value in values):
        return named and len({len(value) for value in values}) == 1
    inner = [list(value) if isinstance(value, dict) else [] for value in values]
    if any(keys != inner[0] for keys in inner) or not inner[0]:
        return False
    if named != any(map(_is_column_name, inner[0])):
        return named
    outer_numbers, inner_numbers = (all(key.isdecimal() for key in keys) for keys in (content, inner[0]))
    if outer_numbers and inner_numbers:
        raise UserError(
            f"{name}: its keys do not say what are rows and what columns: write a list of rows (orient='records')."
        )
    return inner_numbers


def _is_column_name(key: str) -> bool:
    plain = re.sub(r"[\W_]", "", key.lower())
    return plain in COLUMN_NAMES or key.startswith(("prob_", "sim_"))


def _columns_orient(content: dict[str, Any], name: str) -> pd.DataFrame:
    columns = {key: list(v.values()) if isinstance(v, dict) else v for key, v in content.items()}
    table = pd.DataFrame({key: pd.Series(cells, dtype=object) for key, cells in columns.items()})
    first = next(iter(content.values()))
    return with_keys(unique_columns(table, name), list(first) if isinstance(first, dict) else [])


def _split_orient(content: dict[str, Any], name: str) -> pd.DataFrame:
    columns, data = content["columns"], content["data"]
    lists = isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data)
    if not lists or any(len(row) != len(columns) for row in data):
        raise UserError(f"{name}: the rows of its data must be lists with a cell for each of its columns.")
    return with_keys(unique_columns(pd.DataFrame(data, columns=columns, dtype=object), name), content.get("index", []))


def _keyed_table(content: dict[str, Any], name: str) -> pd.DataFrame:
    """{key: row} or {key: value}."""
    rows = [isinstance(value, dict) for value in content.values()]
    table = json_records(list(content.values()), name)
    if rows and all(rows):
        return with_keys(table, list(content), numbers=not _is_row_count(list(content)))
    table.insert(0, KEY_COLUMN, pd.Series(list(content), dtype=object))
    return table


def _is_row_count(keys: Sequence[Any] | pd.Series) -> bool:
    """Whether these are the numbers of the rows, from 0."""
    return [str(key) for key in keys] == [str(number) for number in range(len(keys))]
