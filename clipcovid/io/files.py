"""Files that appear whole or not at all, Parquet tables that say in their metadata what they are, and the only deletions.

A job deletes what it wrote itself and nothing else: it says which paths those are, and `remove_job_files` removes no others.
"""

import atexit
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import UserError, summarize_error

METADATA_KEY = b"clipcovid"
DISK_ERRORS = r"No space left|Disk quota|\(os error \d+\)|inline_container|PytorchStreamWriter"
LOCK_FILE = ".clipcovid.lock"  # in a folder, while a process writes to it
_locks: dict[Path, TextIO] = {}  # that this process holds


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place to write to that becomes `path` at the end, and vanishes where writing fails. Makes the folder."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            if partial.is_file():
                os.truncate(partial, 0)  # what failed may still have it open, and would keep its room on a full disk
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror or error}); make room or give another --out."
        ) from error
    except UserError:
        raise
    except Exception as error:  # torch and safetensors have errors of their own for a full disk
        if not re.search(DISK_ERRORS, str(error)):
            raise
        raise UserError(
            f"{path} can't be written ({summarize_error(error)}); make room or give another --out."
        ) from error


def is_writable(folder: Path) -> bool:
    """Whether files can be written into a folder, or the folder can be made; leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return True
    except OSError:
        return False


def _existing(folder: Path) -> Path:
    """A folder, or the nearest of those above it that exists."""
    return next(place for place in (folder, *folder.resolve().parents) if place.exists())


def to_json_value(value: Any) -> Any:
    """What JSON has no form for, in one that it has: NumPy numbers and arrays by value, paths as text; else TypeError."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no form in JSON")


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented; NaN raises ValueError, and a value that `to_json_value` does not know TypeError."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=to_json_value) + "\n")


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file, or it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def refuse_full_disk(folder: Path, needed: int, way_out: str) -> None:
    """Raise `UserError` if the disk of `folder`, which need not exist yet, has fewer than `needed` bytes free."""
    free = shutil.disk_usage(_existing(folder)).free
    if needed > free:
        raise UserError(
            f"{folder} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there: make room, choose another --out, "
            f"or {way_out}."
        )


def write_parquet(path: Path, table: pd.DataFrame, metadata: dict[str, Any], row_group_size: int | None = None) -> None:
    """Write a table as Parquet, with `metadata` as JSON in its schema metadata."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata(
        {**(arrow.schema.metadata or {}), METADATA_KEY: json.dumps(metadata, default=to_json_value)}
    )
    with atomic_write(path) as partial:
        pq.write_table(arrow, partial, row_group_size=row_group_size)


def read_parquet(path: Path | str) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    """A table and what `write_parquet` was told about it, None for a table of another make."""
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}.")
    try:
        arrow = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}).") from None
    metadata = (arrow.schema.metadata or {}).get(METADATA_KEY)
    return arrow.to_pandas(), None if metadata is None else json.loads(metadata)


def lock_folder(folder: Path) -> None:
    """Lock a folder, which is made, for this process: until `unlock_folder`, or until it ends, however it does.

    A folder that another process holds is a `UserError` that says which. What this process holds already it goes on holding.
    """
    path = folder.resolve() / LOCK_FILE
    while path not in _locks:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder} can't be written ({error.strerror}); give another --out.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            writer = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{folder} is being written by {writer}: wait until it has ended, or choose another --name or --out."
            ) from None
        except OSError as error:
            print(f"note: {folder} can't be locked ({error.strerror}): run the same command once at a time.")
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.close()  # released by another process in between
            continue
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        atexit.register(unlock_folder, path.parent)
        _locks[path] = file


def unlock_folder(folder: Path) -> None:
    """Let go of a folder that this process holds."""
    path = folder.resolve() / LOCK_FILE
    if path in _locks:
        path.unlink(missing_ok=True)
        _locks.pop(path).close()


def unknown_file(folder: Path, pattern: str = "") -> Path | None:
    """The first file below `folder` whose relative path does not match the regular expression `pattern` in full.

    Links count as foreign, and are not followed; hidden files (.DS_Store, .gitkeep) do not count. None where there is none.
    """
    for where, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name not in links and not name.startswith("."))
        for name in sorted([*names, *links]):
            path = Path(where) / name
            is_own = not path.is_symlink() and re.fullmatch(pattern, path.relative_to(folder).as_posix())
            if not name.startswith(".") and not is_own:
                return path
    return None


def refuse_unknown_files(folder: Path, pattern: str, flag: str = "--out") -> None:
    """A file below `folder` that does not match `pattern` (see `unknown_file`) is a `UserError` that names it."""
    if path := unknown_file(folder, pattern):
        raise UserError(
            f"{flag} {folder} holds {path.relative_to(folder)}, which was not written by this job: choose another {flag}."
        )


def remove_job_files(folder: Path, pattern: str) -> None:
    """Delete the files below `folder` whose relative paths match `pattern` in full, those at the top first, and nothing else.

    What `atomic_write` left of them unfinished goes too, and so do the folders that are empty then. Links to folders are
    not followed.
    """
    files, folders = [], []
    for where, _, names in os.walk(folder):
        folders.append(Path(where))
        files += [Path(where) / name for name in names]
    emptied = set()
    for path in sorted(files, key=lambda path: (len(path.parts), path)):
        finished = path.with_name(re.sub(r"^\.(.+)\.\d+$", r"\1", path.name))
        if re.fullmatch(pattern, finished.relative_to(folder).as_posix()):
            path.unlink()
            emptied |= set(path.parents)
    for path in reversed(folders):
        was_own = path in emptied or re.fullmatch(pattern, path.relative_to(folder).as_posix())
        if path != folder and was_own and not any(path.iterdir()):
            path.rmdir()


def refuse_overlap(out: Path, flag: str, source: Path) -> None:
    """An output folder that is the folder `source` of `flag`, holds it, or stands in it, is a `UserError`."""
    out_path, source_path = out.resolve(), source.resolve()
    for overlaps, relation in (
        (out_path == source_path, "is"),
        (out_path in source_path.parents, "holds"),
        (source_path in out_path.parents, "is inside of"),
    ):
        if overlaps:
            raise UserError(f"--out {out} {relation} {flag} {source}: choose a folder of its own for --out.")
