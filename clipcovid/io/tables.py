"""Tables: CSV, TSV, JSON, JSON lines and Parquet as people write them, read into one shape or refused in a sentence.

Every table that a user names is read here: a source's, captions, predictions, the truth. Cells are what the file says:
text in CSV, numbers of JSON with all their digits; nothing is taken for missing (`is_missing` says what would be).
"""

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import UserError, summarize_error
from clipcovid.io.cells import KEY_COLUMN as KEY_COLUMN
from clipcovid.io.cells import MISSING_WORDS as MISSING_WORDS
from clipcovid.io.cells import VALUE_COLUMN as VALUE_COLUMN
from clipcovid.io.cells import cell_text as cell_text
from clipcovid.io.cells import is_missing as is_missing
from clipcovid.io.cells import unique_columns, with_keys
from clipcovid.io.csv_rows import read_csv
from clipcovid.io.json_rows import is_json_lines, json_lines, json_records, json_rows, parse_json

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
_UNPACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
_OTHER_FILES = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull",
    b"<!doctype html": "a web page, not a table: download the file itself",
    b"<html": "a web page, not a table: download the file itself",
    b"pk\x03\x04": "a ZIP or Excel file: save the sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an old Excel file: save the sheet as CSV (UTF-8)",
    b"\x1f\x8b": "packed by gzip: let its name end in .gz",
    b"par1": "a Parquet file: let its name end in .parquet",
    b"\xff\xfe": "UTF-16, not UTF-8 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8 text: save it as UTF-8",
}
"""What a file is that begins so (in small letters), and the way out."""


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

    CSV: the delimiter (comma, semicolon, tab or bar) is the one that divides the rows evenly; all cells are text; rows
    without any content are no rows. Where tabs divide, quotes are text. JSON: a list of rows or of values (column
    `VALUE_COLUMN`), the forms that pandas writes, {key: row or value} (keys in `KEY_COLUMN`), or {split: list of rows}
    (column split), or the only list of rows in an object. JSON lines: a row or a value a line. Parquet: lists, structs
    and maps become lists and dicts, a named index columns. `.gz`, `.bz2` and `.xz` behind the ending are unpacked. A
    sentence for each assumption is appended to `notes`.

    `UserError` with the file's name (and the line's number): what can't be parsed, is no UTF-8, has a row of more or
    fewer fields than the header, a quote that is not closed, a column or a key twice, or is of another format.
    """
    notes = [] if notes is None else notes
    path = PurePosixPath(name.lower())
    if path.suffix in _UNPACKERS:
        try:
            data = _UNPACKERS[path.suffix](data)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise UserError(f"{name} can't be unpacked ({summarize_error(error)}): is it whole?") from None
        path = path.with_suffix("")
    if path.suffix not in ENDINGS:
        raise UserError(f"{name}: a table must be {', '.join(ENDINGS)}, or one of these with .gz behind.")
    if path.suffix in (".parquet", ".pq"):
        if not data.startswith(b"PAR1"):
            _refuse_other_files(data, name)
        return _parquet(data, name)
    text = decode_text(data, name)
    if path.suffix in (".csv", ".tsv"):
        return read_csv(text, name, notes, tab_separated=path.suffix == ".tsv")
    if path.suffix == ".json":
        if is_json_lines(text):
            notes.append(f"{name} holds JSON lines.")
            return json_records([value for _, value in json_lines(text, name)], name)
        return json_rows(parse_json(text, name), name, notes)
    return json_records([value for _, value in json_lines(text, name)], name)


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 text, without its byte order mark; anything else is a `UserError` that says what the file is."""
    _refuse_other_files(data, name)
    if b"\0" in data:
        raise UserError(f"{name} is a binary file, not text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name} is not UTF-8 text (line {line}): save it as UTF-8.") from None


def _refuse_other_files(data: bytes, name: str) -> None:
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for signature, what in _OTHER_FILES.items():
        if start.startswith(signature):
            raise UserError(f"{name} is {what}.")


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
        raise UserError(f"{name} can't be read as Parquet ({summarize_error(error)}).") from None
    cells = {at: pd.Series(column, dtype=object) for at, column in enumerate(columns)}
    table = pd.DataFrame(cells).set_axis(arrow.column_names, axis=1)
    for column in filter(re.compile(r"__index_level_\d+__").fullmatch, arrow.column_names):
        keys = table.pop(column)
        table = with_keys(table, list(keys))
    return unique_columns(table, name)
