"""The rows of a data set's own tables."""

import posixpath
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.sources.root import DatasetRoot
from clipcovid.io import tables


def read_json_lines(root: DatasetRoot, path: str, required: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a line that is no JSON object, or lacks what is needed, is a `UserError`."""
    for number, row in tables.json_lines(tables.decode_text(root.read(path), path), path):
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object.")
        if missing := [key for key in required if key not in row]:
            raise UserError(f"{path}, line {number}: has no {missing[0]}.")
        yield row


def read_rows(root: DatasetRoot, path: str) -> pd.DataFrame:
    """A table file's rows (see `tables.read_table`); what its form made the reader assume goes to the root's notes."""
    return tables.read_table(root.read(path), posixpath.join(root.path, path), root.notes)


def find_table(root: DatasetRoot, pattern: str) -> str:
    """The file below the root whose name matches a pattern in any case, "" where there is none; copies of it are one.

    Several with other content are a `UserError`.
    """
    paths = [path for path in root.files() if re.fullmatch(pattern, posixpath.basename(path), re.IGNORECASE)]
    if len(paths) > 1 and len({root.read(path) for path in paths}) > 1:
        raise UserError(f"{root.given} has {' and '.join(paths)}, which differ: move those that are not meant away.")
    return paths[0] if paths else ""


def read_required_rows(root: DatasetRoot, path: str, needed: set[str]) -> pd.DataFrame:
    """A table file's rows; one without the columns that are needed is a `UserError`."""
    rows = read_rows(root, path)
    if missing := needed - set(rows):
        raise UserError(f"{root.given}/{path} lacks the columns {', '.join(sorted(missing))}.")
    return rows
