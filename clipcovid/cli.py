"""The command line of a job: made from its config, checked, and ended with an exit status that says what happened."""

import dataclasses
import errno
import io
import re
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from clipcovid import environment
from clipcovid.config import ConfigT, check_encodable_names, flatten_resolved
from clipcovid.errors import UserError
from clipcovid.terminal import terminal_width, wrap_text

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)  # of a disk or a quota


def from_cli(
    config_type: type[ConfigT], description: str, args: Sequence[str] | None = None, prog: str | None = None
) -> ConfigT:
    """Parse `args` (default: the command line) into `config_type`; a bad flag ends the process with status 2.

    Where there are subcommands, flags that are not theirs may stand before or behind them. `prog`: the command's name, for
    its help and errors. Default: the script's.
    """
    cascading = (tyro.conf.CascadeSubcommandArgs,)
    # tyro joins lines that begin with a letter, and wraps none: those with a space before them stay as they are.
    description = textwrap.indent(wrap_text(description, terminal_width() - 1), " ")
    return tyro.cli(config_type, description=description, args=args, prog=prog, config=cascading)


def run_job(
    config_type: type[ConfigT],
    main: Callable[[ConfigT], None],
    description: str | None,
    args: Sequence[str] | None = None,
    prog: str | None = None,
) -> None:
    """Run `main` with the config that `args` give, by default the command line's; `prog`: see `from_cli`.

    Exit status: 0 when done, 2 for a user's mistake, 1 for a failure, 130 and 143 where SIGINT or SIGTERM stopped it.
    """
    args = sys.argv[1:] if args is None else args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a caption's odd character must not end a job on an ASCII terminal
    config = from_cli(config_type, description or "", args, prog)
    environment.set_home()
    signal.signal(signal.SIGTERM, _stop)
    try:
        check_encodable_names(args, "The argument")
        check_seeds(config)
        check_paths(config)
        main(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        print(f"error: {error.filename or 'A file'} can't be written ({error.strerror}): make room.", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("Interrupted: run the same command again to go on where it stopped.", file=sys.stderr)
        raise SystemExit(130) from None


def check_seeds(config: Any) -> None:
    """Refuse seeds below 0 or from 2**32, which not every library's generator takes."""
    for key, value in flatten_resolved(config).items():
        if key.rpartition(".")[2] == "seed" and isinstance(value, int) and not 0 <= value < 2**32:
            raise UserError(f"--{key} {value} is not a whole number from 0 to {2**32 - 1}.")


def check_paths(config: Any) -> None:
    """Refuse folders that this machine can't write to, or that would be lost, before any work is done.

    Files and folders that jobs read and write are local paths, or on a shared file system: URIs are refused. So is an --out
    that is a file, below one, or not writable, and relative --out and --data in a submitted job, which Ray runs in a copy
    of the working directory.
    """
    for name, path in _paths(config):
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
            uri = str(path) if "://" in str(path) else str(path).replace(":/", "://", 1)
            raise UserError(f"--{name} {uri} is a URI: give a folder that this machine, and each node, sees as a path.")
        if name in ("out", "data") and not path.is_absolute() and _in_ray_copy(Path.cwd()):
            raise UserError(
                f"--{name} {path} would be in Ray's copy of the working directory, which Ray deletes: give an absolute path "
                "that every node sees."
            )
        if name == "out":
            check_writable(path)


def check_writable(folder: Path) -> None:
    """A folder that is a file, is below one, or can't be written to or made, is a `UserError`."""
    parents = (folder, *folder.absolute().parents)
    nearest = next(parent for parent in parents if parent.exists() or parent.is_symlink())
    if not nearest.is_dir():
        raise UserError(f"--out {folder} can't be a folder: {nearest} is a file; give another --out.")
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise UserError(f"--out {folder} can't be written ({nearest}: {error.strerror}); give another --out.") from None


def _paths(config: Any) -> Iterator[tuple[str, Path]]:
    """The last part of a field's key, and its value, of all fields of a nested config that hold paths."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _paths(value)
        elif field.name == "out" and isinstance(value, str):
            yield field.name, Path(value)
        else:
            values = value if isinstance(value, tuple) else (value,)
            yield from ((field.name, path) for path in values if isinstance(path, Path))


def _in_ray_copy(folder: Path) -> bool:
    return "working_dir_files" in folder.parts and "runtime_resources" in folder.parts


def _stop(number: int, frame: Any) -> None:
    """End the job in order: what it has half written is cleared, and its records say that it was stopped."""
    print("Stopped: run the same command again to go on where it was.", file=sys.stderr)
    raise SystemExit(128 + number)
