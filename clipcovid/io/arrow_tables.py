"""Uncompressed Arrow files, memory-mapped: of a table that many processes read, a machine holds the touched pages, once."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from clipcovid.config import UserError
from clipcovid.io.files import METADATA_KEY, atomic_write, to_json_value


@dataclasses.dataclass(frozen=True)
class MappedTable:
    """A table in an Arrow file. Small to pickle: each process maps the file when it first reads the table."""

    path: Path
    """The Arrow file, absolute."""
    key: str
    """The `key` in the file's metadata: what it was when the table was first opened."""

    def open(self) -> pa.Table:
        """The table, of which nothing is read yet; a file that is missing or another by now is a `UserError`."""
        try:
            table, metadata = map_table(self.path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path} can't be read here ({error}): every node must see this folder.") from None
        if metadata.get("key") != self.key:
            raise UserError(f"{self.path} was changed while it was in use: run the same command again.")
        return table


def write_table(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write a table as one Arrow record batch, with `metadata` as JSON in its schema; texts get 64-bit offsets."""
    fields = [
        pa.field(field.name, pa.large_string() if field.type in (pa.string(), pa.null()) else field.type)
        for field in table.schema
    ]
    schema = pa.schema(fields, {METADATA_KEY: json.dumps(metadata, default=to_json_value)})
    table = table.cast(pa.schema(fields)).replace_schema_metadata(schema.metadata).combine_chunks()
    with atomic_write(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)


def map_table(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """A memory-mapped table of `write_table`, and its metadata; OSError or ArrowException where there is none."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return table, json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A pandas frame on the table's own memory, as far as pandas can: texts and numbers are not copied."""
    return table.replace_schema_metadata(None).to_pandas(split_blocks=True)


def positions_in(values: Any, distinct: Any) -> np.ndarray:
    """Positions (n,) int64 of texts among distinct texts; -1 for a text that is not there."""
    positions = pc.index_in(_texts(values), value_set=_texts(distinct)).fill_null(-1).to_numpy().astype(np.int64)
    pa.default_memory_pool().release_unused()  # the hash table, some 100 bytes a text
    return positions


def _texts(values: Any) -> pa.Array:
    array = pa.array(values, pa.large_string()) if not isinstance(values, pa.ChunkedArray) else values
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
