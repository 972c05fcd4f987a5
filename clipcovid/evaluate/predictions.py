"""The predictions table: what every method writes, and all that is needed to score it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.io.files import read_parquet, write_parquet

TRAINED_ON = "trained_on"
"""The column, of a table that has such images, which marks those that the model learned from (bool)."""


def write_predictions(
    path: str | Path,
    table: pd.DataFrame,
    *,
    method: str,
    task: str,
    identity: dict[str, Any],
    manifest_hash: str,
    split_hash: str,
    split: str,
    classes: Sequence[str],
) -> None:
    """Write `table` as Parquet with what it is in the schema's metadata; the file appears whole or not at all.

    `task`: the name of its kind (`kinds.registry`), whose columns it must have; what the kind refuses is a `UserError`.
    """
    get_kind(task).check_table(table, classes, path)
    metadata = {"method": method, "task": task, "identity": identity, "manifest_hash": manifest_hash}
    metadata |= {"split_hash": split_hash, "split": split, "classes": list(classes)}
    write_parquet(Path(path), table, metadata)


def read_predictions(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and the metadata that `write_predictions` was given; a file of another make is a `UserError`."""
    table, metadata = read_parquet(path)
    if metadata is None:
        raise UserError(f"{path} is no predictions table of clipcovid; score other tables with clipcovid evaluate.")
    return table, metadata
