"""Tables: CSV, TSV, JSON, JSON lines and Parquet as people write them, read into one shape or refused in a sentence.

Every table that a user names is read here: a source's, captions, predictions, the truth. Cells are what the file says:
text in CSV, numbers of JSON with all their digits; nothing is taken for missing (`is_missing` says what would be).
"""

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import UserError, first_line

MISSING_WORDS = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null")
)  # fmt: skip
"""The words for a missing value: those that pandas knows."""
KEY = "image_id"
"""The column for the keys of a JSON object, and for an index of text without a name."""
VALUE = "value"
"""The column for what stands alone: in a JSON list, or behind a key."""
ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
COLUMN_NAMES = frozenset(
    ("boxes", "caption", "class", "diagnosis", "file", "filename", "filepath", "finding", "findings", "groundtruth",
     "id", "image", "imageid", "imageindex", "imagename", "imagepath", "index", "label", "labels", "name", "path",
     "patient", "patientid", "pred", "predicted", "prediction", "predictions", "probabilities", "ranking", "report",
     "score", "similarities", "source", "split", "studyid", "subjectid", "target", "text", "true", "uid", "view",
     "ypred", "ytrue")
)  # fmt: skip
"""What columns are called, in small letters and without signs: they tell columns from keys where JSON's form does not."""
_UNPACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
_BINARY = {
    b"PK\x03\x04": "a ZIP or Excel file: save the sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an old Excel file: save the sheet as CSV (UTF-8)",
    b"\x1f\x8b": "packed by gzip: let its name end in .gz",
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"\xff\xfe": "UTF-16, not UTF-8 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8 text: save it as UTF-8",
}
_SPLIT = re.compile(r"(train|val|test|dev|eval)[a-z]*", re.IGNORECASE)


def is_missing(value: object) -> bool:
    """Whether a cell says that nothing is known: a missing value of pandas or Python, or one of `MISSING_WORDS`."""
    if isinstance(value, str):
        return value.strip() in MISSING_WORDS
    nothing = value is None or value is pd.NA or value is pd.NaT
    return nothing or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def read_table_file(path: str | Path, notes: list[str] | None = None) -> pd.DataFrame:
    """`read_table` of a local file; one that can't be opened is a `UserError`."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}).") from None
    return read_table(data, str(path), notes)


def read_table(data: bytes, name: str, notes: list[str] | None = None) -> pd.DataFrame:
    """The rows of a table file, whose `name`'s ending says its format, as an object table of named columns.

    CSV: the delimiter is the one of `DELIMITERS` that divides the rows evenly; all cells are text; rows without any
    content are no rows. Where tabs divide, quotes are text. JSON: a list of rows or of values (column `VALUE`), the
    forms that pandas writes, {key: row or value} (keys in the column `KEY`), or {split: list of rows} (column split).
    JSON lines: a row or a value a line. Parquet: lists, structs and maps become lists and dicts, a named index columns.
    `.gz`, `.bz2` and `.xz` behind the ending are unpacked. A sentence for each assumption is appended to `notes`.

    `UserError` with the file's name (and the line's number): what can't be parsed, is no UTF-8, has a row of more or
    fewer fields than the header, a quote that is not closed, a column or a key twice, or is of another format.
    """
    notes = [] if notes is None else notes
    path = PurePosixPath(name.lower())
    if path.suffix in _UNPACKERS:
        try:
            data = _UNPACKERS[path.suffix](data)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise UserError(f"{name} can't be unpacked ({first_line(error)}): is it whole?") from None
        path = path.with_suffix("")
    if path.suffix not in ENDINGS:
        raise UserError(f"{name}: a table must be {', '.join(ENDINGS)}, or one of these with .gz behind.")
    if path.suffix in (".parquet", ".pq"):
        return _parquet(data, name)
    text = decode_text(data, name)
    if path.suffix in (".csv", ".tsv"):
        return _csv(text, name, notes, tabs=path.suffix == ".tsv")
    if path.suffix == ".json":
        return _json(parse_json(text, name), name, notes)
    return _json_records([value for _, value in json_lines(text, name)], name)


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 text, without its byte order mark; anything else is a `UserError` that says what the file is."""
    for start, what in _BINARY.items():
        if data.startswith(start):
            raise UserError(f"{name} is {what}.")
    if b"\0" in data:
        raise UserError(f"{name} is a binary file, not a text table.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name} is not UTF-8 text (line {line}): save it as UTF-8.") from None


def json_lines(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not empty; one that is no JSON is a `UserError`."""
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines splits at U+2028, too
        if line.strip():
            yield number, parse_json(line, f"{name}, line {number}")


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
        raise UserError(f"{where}: not valid JSON ({first_line(error)}).") from None


# CSV


def _csv(text: str, name: str, notes: list[str], *, tabs: bool) -> pd.DataFrame:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    text, delimiter = _delimiter(text, tabs=tabs)
    if delimiter != ("\t" if tabs else ","):
        notes.append(f"{name} is divided by {DELIMITERS[delimiter]}.")
    records = _tab_records(text, name, notes) if delimiter == "\t" else _csv_records(text, name, delimiter)
    header, rows = _header_and_rows(list(records), name, notes, delimiter)
    return _frame([column.strip() for column in header], rows, name)


def _delimiter(text: str, *, tabs: bool) -> tuple[str, str]:
    """The text without Excel's `sep=` line, and its delimiter: the one that the first rows agree on."""
    if said := re.match(r'"?sep=([,;|\t])"?\r?\n', text):
        return text[said.end() :], said[1]

    def fit(delimiter: str) -> tuple[bool, int]:
        """Whether the rows have equally many fields, more than one, and how many the header has."""
        quotechar = None if delimiter == "\t" else '"'
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quotechar=quotechar)
        counts = [len(row) for row in itertools.islice(reader, 100) if any(map(str.strip, row))] or [1]
        return counts[0] > 1 and len(set(counts)) == 1, counts[0]

    order = sorted(DELIMITERS, key=lambda delimiter: delimiter != "\t") if tabs else DELIMITERS
    return text, max(order, key=fit)  # of equal ones the first


def _csv_records(text: str, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line's number and fields of each record that has any content."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        what = "a quote that opens here is not closed" if "end of data" in str(error) else first_line(error)
        raise UserError(f"{name}, line {line}: {what}; a quote within a quoted text is written twice.") from None


def _tab_records(text: str, name: str, notes: list[str]) -> Iterator[tuple[int, list[str]]]:
    """As `_csv_records`, divided by tabs: quotes are text, but for those around a whole cell, as pandas writes them.

    Only where that leaves rows of unequal length, and quoting does not, quoted cells may hold tabs and line ends.
    """
    lines = [(number, line.split("\t")) for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1) if line.strip()]
    if '"' in text and len({len(fields) for _, fields in lines}) > 1:
        with contextlib.suppress(UserError):  # then the lines tell what is wrong
            quoted = list(_csv_records(text, name, "\t"))
            if len({len(fields) for _, fields in quoted}) == 1:
                notes.append(f"{name} has quoted cells with tabs or line ends in them.")
                lines = quoted
    whole_cell = re.compile(r'"(?:[^"]|"")*"')
    for number, fields in lines:
        yield number, [cell[1:-1].replace('""', '"') if whole_cell.fullmatch(cell) else cell for cell in fields]


def _header_and_rows(
    records: list[tuple[int, list[str]]], name: str, notes: list[str], delimiter: str
) -> tuple[list[str], list[list[str]]]:
    """The first record and the others, which must be of its length, or all end in empty fields beyond it."""
    if not records:
        raise UserError(f"{name} is empty.")
    header, rows = records[0][1], [row for _, row in records[1:]]
    width, lengths = len(header), {len(row) for row in rows}
    if len(lengths) == 1 and min(lengths) > width and not any(any(row[width:]) for row in rows):
        notes.append(f"Each row of {name} ends in an empty field that the header has not; it is left out.")
        return header, [row[:width] for row in rows]
    if lengths - {width}:
        ragged = [(line, len(row)) for line, row in records if len(row) != width]
        others = f" (and {len(ragged) - 1} more rows like it)" if len(ragged) > 1 else ""
        quotes = "" if delimiter == "\t" else f": put quotes around texts that hold {DELIMITERS[delimiter]}"
        raise UserError(
            f"{name}, line {ragged[0][0]}: {ragged[0][1]} fields{others}, where the header has {width} "
            f"({', '.join(header)}){quotes}."
        )
    return header, rows


def _frame(names: Sequence[str], rows: Sequence[Sequence[Any]], name: str) -> pd.DataFrame:
    """Rows under their columns' names. Columns without a name: left out where empty or row numbers, else Unnamed: i."""
    columns = dict(enumerate(names))
    for at in [at for at, column in columns.items() if not column]:
        cells = [row[at] for row in rows]
        if not any(cells) or (at == 0 and cells == [str(number) for number in range(len(cells))]):
            del columns[at]
        else:
            columns[at] = f"Unnamed: {at}"
    table = pd.DataFrame(rows, columns=range(len(names)), dtype=object)[list(columns)]
    return _unique(table.set_axis(list(columns.values()), axis=1), name)


def _unique(table: pd.DataFrame, name: str) -> pd.DataFrame:
    table = table.set_axis([str(column).strip() for column in table], axis=1)
    if (twice := table.columns[table.columns.duplicated()]).size:
        raise UserError(f"{name} has the column {twice[0]!r} twice: rename or remove one.")
    return table


# JSON


def _json(content: Any, name: str, notes: list[str]) -> pd.DataFrame:
    if isinstance(content, list):
        return _json_records(content, name)
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
        table = _json_records(content["data"], name)
        return table.drop(columns="index") if "index" in table and _counts(table["index"]) else table
    lists_of_rows = all(isinstance(value, list) and all(isinstance(row, dict) for row in value) for value in values)
    if lists_of_rows and any(values) and (rows := _named_lists(content, name, notes)) is not None:
        return rows
    if values and all(isinstance(value, list | dict) for value in values) and _holds_columns(content, name):
        return _columns_orient(content, name)
    return _keyed(content, name)


def _json_records(content: Any, name: str) -> pd.DataFrame:
    """A list of rows, or of values."""
    if not isinstance(content, list):
        raise UserError(f"{name}: a list of rows was expected.")
    rows = [isinstance(row, dict) for row in content]
    if any(rows) and not all(rows):
        raise UserError(f"{name}: some entries are objects and others, as entry {rows.index(False) + 1}, are not.")
    if not any(rows):
        return pd.DataFrame({VALUE: pd.Series(content, dtype=object)})
    return _unique(pd.DataFrame(content, dtype=object), name)


def _named_lists(content: dict[str, Any], name: str, notes: list[str]) -> pd.DataFrame | None:
    """The rows of {split: rows}, with the column split, or of {any name: rows}; None where the lists are values."""
    if all(_SPLIT.fullmatch(key) for key in content):
        for split, rows in content.items():
            if other := [row["split"] for row in rows if str(row.get("split", split)).lower() != split.lower()]:
                raise UserError(f"{name}: a row under {split!r} says that its split is {other[0]!r}: mend one of them.")
        return _json_records([row | {"split": split} for split, rows in content.items() for row in rows], name)
    if len(content) == 1 and not _pipeline(next(iter(content.values()))):
        key, rows = next(iter(content.items()))
        notes.append(f"The rows of {name} are those under {key!r}.")
        return _json_records(rows, name)
    return None


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
    return _with_keys(_unique(table, name), list(first) if isinstance(first, dict) else [])


def _split_orient(content: dict[str, Any], name: str) -> pd.DataFrame:
    columns, data = content["columns"], content["data"]
    lists = isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data)
    if not lists or any(len(row) != len(columns) for row in data):
        raise UserError(f"{name}: the rows of its data must be lists with a cell for each of its columns.")
    return _with_keys(_unique(pd.DataFrame(data, columns=columns, dtype=object), name), content.get("index", []))


def _keyed(content: dict[str, Any], name: str) -> pd.DataFrame:
    """{key: row} or {key: value}."""
    rows = [isinstance(value, dict) for value in content.values()]
    table = _json_records(list(content.values()), name)
    if rows and all(rows):
        return _with_keys(table, list(content), numbers=not _counts(list(content)))
    table.insert(0, KEY, pd.Series(list(content), dtype=object))
    return table


def _with_keys(table: pd.DataFrame, keys: Sequence[Any], *, numbers: bool = False) -> pd.DataFrame:
    """The table with its rows' keys as the column `KEY`, unless it has one; `numbers`: those too that count."""
    text = [str(key) for key in keys]
    if KEY in table or not text or (not numbers and all(map(str.isdecimal, text))):
        return table
    table.insert(0, KEY, pd.Series(text, dtype=object))
    return table


def _counts(keys: Sequence[Any] | pd.Series) -> bool:
    """Whether these are the numbers of the rows, from 0."""
    return [str(key) for key in keys] == [str(number) for number in range(len(keys))]


# Parquet


def _parquet(data: bytes, name: str) -> pd.DataFrame:
    try:
        arrow = pq.read_table(pa.BufferReader(data))
        columns = [
            column.to_pylist(maps_as_pydicts="strict")
            if pa.types.is_nested(column.type)
            else column.to_pandas(integer_object_nulls=True)
            for column in arrow.columns
        ]
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"{name} can't be read as Parquet ({first_line(error)}).") from None
    cells = {at: pd.Series(column, dtype=object) for at, column in enumerate(columns)}
    table = pd.DataFrame(cells).set_axis(arrow.column_names, axis=1)
    for column in filter(re.compile(r"__index_level_\d+__").fullmatch, arrow.column_names):
        keys = table.pop(column)
        table = _with_keys(table, list(keys))
    return _unique(table, name)
