"""Images in a column of a Parquet file, as Hugging Face's `datasets` exports them: bytes, or a struct with `bytes`.

Such an image's path in a manifest is `parquet+<URI of the file>#<column>/<row>`.
"""

import functools
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

SCHEME = "parquet+"


def cell_uri(uri: str, column: str, row: int) -> str:
    """The path of the image in a row (from 0) of a column of the Parquet file at a URI."""
    return f"{SCHEME}{uri}#{column}/{row}"


def binary_columns(file: pq.ParquetFile) -> Iterator[tuple[str, bool]]:
    """Each column of bytes, and whether they are in a struct."""
    for field in file.schema_arrow:
        if pa.types.is_struct(field.type):
            at = field.type.get_field_index("bytes")
            if at >= 0 and _is_binary(field.type.field(at).type):
                yield field.name, True
        elif _is_binary(field.type):
            yield field.name, False


def read_parquet_image(path: str) -> bytes:
    """The bytes of the image at a `cell_uri`; no bytes for an empty cell. Rows that are read in order are read once."""
    uri, _, cell = path.removeprefix(SCHEME).rpartition("#")
    column, _, row = cell.rpartition("/")
    at = int(row)
    for group, size in enumerate(_group_sizes(uri)):
        if at < size:
            value = _group(uri, column, group)[at].as_py()
            return (value.get("bytes") if isinstance(value, dict) else value) or b""
        at -= size
    raise FileNotFoundError(f"{uri} has no row {row}")


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@functools.lru_cache(maxsize=8)
def _group_sizes(uri: str) -> list[int]:
    with fsspec.open(uri, "rb") as stream:
        metadata = pq.ParquetFile(stream).metadata
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@functools.lru_cache(maxsize=2)  # an image and its mask
def _group(uri: str, column: str, group: int) -> pa.ChunkedArray:
    with fsspec.open(uri, "rb") as stream:
        return pq.ParquetFile(stream).read_row_group(group, columns=[column]).column(0)
