"""Parquet files with the images in them, as Hugging Face's `datasets` exports them."""

import json
import posixpath
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import UserError, summarize_error
from clipcovid.data.images import is_image
from clipcovid.data.parquet_images import binary_columns, cell_uri
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.layout import split_of
from clipcovid.data.sources.root import SNIFFED_BYTES, DatasetRoot
from clipcovid.io.tables import read_table


def read_export(root: DatasetRoot, path: str, columns: ColumnsConfig) -> pd.DataFrame | None:
    """The rows of a Parquet file, each column of images as paths (`parquet_images.cell_uri`); None where it has no images.

    The only such column is `path`, unless `columns` name another; numbers of classes become their names, where the file
    has them.
    """
    try:
        with root.open(path) as stream:
            file = pq.ParquetFile(stream)
            structs = {name: is_struct for name, is_struct in binary_columns(file) if _holds_images(file, name)}
            if not structs:
                return None
            inside = [f"{name}.path" for name, is_struct in structs.items() if is_struct]
            arrow = file.read(columns=[*(name for name in file.schema_arrow.names if name not in structs), *inside])
            count, meta = file.metadata.num_rows, file.schema_arrow.metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{root.given}: {path} can't be read as Parquet ({summarize_error(error)}).") from None
    names = {name: _file_names(arrow, name, count) for name in structs}
    sink = pa.BufferOutputStream()
    pq.write_table(arrow.drop_columns([name for name in structs if name in arrow.column_names]), sink)
    rows = read_table(sink.getvalue().to_pybytes(), path, root.notes).reindex(range(count))
    uri = root.resolve(path)
    uri = uri if "://" in uri else f"file://{uri}"
    for name in structs:
        rows[name] = [cell_uri(uri, name, row) for row in range(count)]
    main = columns.path or _image_column(root, path, list(structs), rows)
    if "image_id" not in rows and not columns.image_id and main in structs:
        rows["image_id"] = names[main]
    root.holding.add(path)
    root.notes.append(f"The images are those in the column {main}.")
    return _class_names(root, rows, meta).rename(columns={} if columns.path else {main: "path"})


def read_exports(root: DatasetRoot, columns: ColumnsConfig) -> pd.DataFrame | None:
    """The rows of all Parquet files with images below a folder, the splits by the files' names; None where there are none."""
    parts: list[pd.DataFrame] = []
    for path in [path for path in root.files() if path.lower().endswith(".parquet")]:
        if (rows := read_export(root, path, columns)) is None:
            return None
        split = split_of(posixpath.basename(path).split("-")[0].removesuffix(".parquet")) or split_of(
            path.split("/")[0]
        )
        if "split" not in rows and not columns.split:
            rows["split"] = split
        if "image_id" in rows:
            rows["image_id"] = [f"{posixpath.splitext(path)[0]}/{name}" for name in rows["image_id"]]
        parts.append(rows)
    return pd.concat(parts, ignore_index=True) if parts else None


def _holds_images(file: pq.ParquetFile, column: str) -> bool:
    """Whether the first cell of a column with any bytes in it holds an image; no if there is none."""
    for batch in file.iter_batches(batch_size=16, columns=[column]):
        for cell in batch.column(0).to_pylist():
            if data := cell.get("bytes") if isinstance(cell, dict) else cell:
                return is_image(data[:SNIFFED_BYTES])
    return False


def _image_column(root: DatasetRoot, path: str, structs: list[str], rows: pd.DataFrame) -> str:
    """The column of the images where none was named: the only one."""
    if len(structs) > 1 or "path" in rows:
        candidates = ", ".join([*structs, *["path"] * ("path" in rows)])
        raise UserError(
            f"{root.given}: which column of {path} has the images? Say it with --columns.path ({candidates})."
        )
    return structs[0]


def _file_names(arrow: pa.Table, column: str, count: int) -> list[str]:
    """The files' names in a column of structs; the row's number where there is none."""
    cells: list[Any] = arrow.column(column).to_pylist() if column in arrow.column_names else [None] * count
    return [(cell or {}).get("path") or f"{row:06}" for row, cell in enumerate(cells)]


def _class_names(root: DatasetRoot, rows: pd.DataFrame, meta: dict[bytes, bytes]) -> pd.DataFrame:
    """The rows with names for the numbers of classes, as `datasets` keeps them in the file's metadata."""
    try:
        features = json.loads(meta.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except ValueError:
        return rows
    for name, feature in features.items():
        if name in rows and isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            classes = dict(enumerate(feature.get("names", [])))
            rows[name] = rows[name].map(lambda cell, classes=classes: classes.get(cell, cell))
            root.notes.append(f"The numbers in {name} are read as the classes {', '.join(map(str, classes.values()))}.")
    return rows
