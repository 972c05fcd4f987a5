"""Files that appear whole or not at all, and Parquet tables that say in their metadata what they are."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import UserError

METADATA_KEY = b"clipcovid"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write to that becomes `path` at the end, and vanishes where writing fails. Makes the folder."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror or error}); make room or give another --out."
        ) from error


def plain(value: Any) -> Any:
    """What JSON has no form for, in one that it has: NumPy numbers and arrays by value, paths as text; else TypeError."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no form in JSON")


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented; NaN, which is no JSON, raises ValueError, and what `plain` does not know TypeError."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=plain) + "\n")


def write_parquet(path: Path, table: pd.DataFrame, about: dict[str, Any], row_group_size: int | None = None) -> None:
    """Write a table with `about` as JSON in its schema metadata."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata(
        {**(arrow.schema.metadata or {}), METADATA_KEY: json.dumps(about, default=plain)}
    )
    with whole(path) as partial:
        pq.write_table(arrow, partial, row_group_size=row_group_size)


def read_parquet(path: Path | str) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    """A table and what `write_parquet` was told about it, None for a table of another make."""
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}.")
    try:
        arrow = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}).") from None
    about = (arrow.schema.metadata or {}).get(METADATA_KEY)
    return arrow.to_pandas(), None if about is None else json.loads(about)
