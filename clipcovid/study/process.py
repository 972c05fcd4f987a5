"""The process of a step: its output in a log file, and ended with the study, however that ends."""

import ctypes
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

PROGRAM = (sys.executable, "-m", "clipcovid")
PR_SET_PDEATHSIG = 1  # of prctl(2)
TAIL_BYTES = 4096  # of a log that are read for its last line


class StepProcess:
    """A running command, in a session of its own: Ctrl-C reaches it through the study alone."""

    def __init__(self, words: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> None:
        """`log`: from `open_log`."""
        self.log = log
        self.began = time.monotonic()
        log.write(f"$ clipcovid {shlex.join(words)}\n".encode())
        log.flush()
        self.process = subprocess.Popen(
            [*PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def poll(self) -> int | None:
        """Its exit status, negative where a signal ended it; None while it runs."""
        status = self.process.poll()
        if status is not None:
            self.log.close()
        return status

    def send_signal(self, number: int) -> None:
        """Pass a signal on, unless it has ended."""
        self.process.send_signal(number)

    def wait(self) -> None:
        """Wait until it has ended in order."""
        self.process.wait()
        self.log.close()


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM to this new process when the study's dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def open_log(path: Path) -> IO[bytes] | None:
    """A step's log, to be written at its end; None while the process of an earlier start still writes to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by all processes that the file is handed to
    except BlockingIOError:
        log.close()
        return None
    return log


def last_line(log: Path, pattern: str = r".*\w") -> str:
    """The last line of a log that begins with `pattern`; "" for none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if re.match(pattern, line.strip())]
    return lines[-1] if lines else ""


def exit_reason(status: int, log: Path) -> str:
    """Why a command ended: what its log says of an error, or the signal."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    said = last_line(log, "error: ").removeprefix("error: ") or last_line(log)
    return f"exit status {status}: {said}"


def last_output(log: Path) -> str:
    """What the last start of a step has written to its log, without the command line."""
    return log.read_text(encoding="utf-8", errors="replace").rpartition("\n$ clipcovid ")[2].partition("\n")[2]
