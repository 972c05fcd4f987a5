"""The rows of delimited text."""

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from clipcovid.config import UserError, summarize_error
from clipcovid.io.cells import unique_columns

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_csv(text: str, name: str, notes: list[str], *, tab_separated: bool) -> pd.DataFrame:
    """The rows of a file, see `tables.read_table`. `tab_separated`: whether its ending says that they divide it."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    text, delimiter = _delimiter(text, tabs=tab_separated)
    if delimiter != ("\t" if tab_separated else ","):
        notes.append(f"{name} is divided by {DELIMITERS[delimiter]}.")
    records = list(_tab_records(text, name, notes) if delimiter == "\t" else _csv_records(text, name, delimiter))
    header, rows = _header_and_rows(records, name, notes, delimiter)
    if lines := [line for line, row in records[1:] if any(_holds_rows(cell, delimiter, len(header)) for cell in row)]:
        notes.append(f"{name}, line {lines[0]}: a quoted text has lines that look like rows of their own: is it meant?")
    return _frame([column.strip() for column in header], rows, name)


def _delimiter(text: str, *, tabs: bool) -> tuple[str, str]:
    """The text without Excel's `sep=` line, and its delimiter: the one that the first rows agree on."""
    if declaration := re.match(r'"?sep=([,;|\t])"?\r?\n', text):
        return f"\n{text[declaration.end() :]}", declaration[1]

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
        what = "a quote that opens here is not closed" if "end of data" in str(error) else summarize_error(error)
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
                yield from quoted
                return
    whole_cell = re.compile(r'"(?:[^"]|"")*"')
    for number, fields in lines:
        yield number, [cell[1:-1].replace('""', '"') if whole_cell.fullmatch(cell) else cell for cell in fields]


def _holds_rows(cell: str, delimiter: str, width: int) -> bool:
    """Whether every line of a text but its first has as many delimiters as a row: a quote may have swallowed rows."""
    lines = cell.split("\n")[1:] if "\n" in cell else []
    return width > 1 and bool(lines) and all(line.count(delimiter) == width - 1 for line in lines)


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
        line, count = ragged[0]
        others = f" (and {len(ragged) - 1} more such rows)" if len(ragged) > 1 else ""
        way = "a field is missing" if count < width else "there is a delimiter too many"
        if count > width and delimiter != "\t":
            way = f"put quotes around texts that hold {DELIMITERS[delimiter]}"
        raise UserError(
            f"{name}, line {line}: {count} field{'s' * (count != 1)}{others}, where the header has {width} "
            f"({', '.join(header)}): {way}."
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
    return unique_columns(table.set_axis(list(columns.values()), axis=1), name)
