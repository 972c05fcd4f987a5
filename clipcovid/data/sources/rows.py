"""The rows of a data set's own tables."""

import io
import json
import posixpath
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import UserError
from clipcovid.data.sources.root import Root


def json_lines(root: Root, path: str, needed: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a line that is no JSON object, or lacks what is needed, is a `UserError`."""
    for number, line in enumerate(root.read_text(path).split("\n"), start=1):  # splitlines splits at U+2028, too
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error}).") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object.")
        if missing := [key for key in needed if key not in row]:
            raise UserError(f"{path}, line {number}: has no {missing[0]}.")
        yield row


def read_rows(root: Root, path: str) -> pd.DataFrame:
    """A table file's rows, text or as it holds them; its ending says its format."""
    ending = posixpath.splitext(path)[1].lower()
    try:
        if ending in (".csv", ".tsv"):
            separator = "\t" if ending == ".tsv" else ","
            text = io.StringIO(
                root.read_text(path)
            )  # without index_col, a comma at each row's end would shift the columns
            rows = pd.read_csv(text, dtype=str, keep_default_na=False, sep=separator, index_col=False)
        elif ending == ".jsonl":
            rows = pd.DataFrame(list(json_lines(root, path)), dtype=object)  # as floats, long numbers would lose digits
        elif ending == ".json":
            content = json.loads(root.read_text(path))
            rows = pd.DataFrame(content if isinstance(content, list) else list(content.values()), dtype=object)
        elif ending in (".parquet", ".pq"):
            rows = pq.read_table(pa.BufferReader(root.read(path))).to_pandas(integer_object_nulls=True)
        else:
            raise UserError(
                f"{root.given}: a table must be .csv, .tsv, .json, .jsonl or .parquet, not {ending or 'without ending'}."
            )
    except UserError:
        raise
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{root.given}: {path} can't be read as a {ending} table ({error}).") from None
    return rows.rename(columns=lambda name: str(name).strip())


def needed_rows(root: Root, path: str, needed: set[str]) -> pd.DataFrame:
    """A table file's rows; one without the columns that are needed is a `UserError`."""
    rows = read_rows(root, path)
    if missing := needed - set(rows):
        raise UserError(f"{root.given}/{path} lacks the columns {', '.join(sorted(missing))}.")
    return rows
