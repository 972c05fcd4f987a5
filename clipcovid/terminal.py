"""Output on the terminal: lines that fit its width, the progress of long work, and when it will end."""

import shutil
import textwrap
import time
from collections.abc import Sequence

_columns = 0  # of the driver's terminal, where this process has none of its own


def terminal_width() -> int:
    """Columns of the terminal: those of `set_terminal_width`, else of COLUMNS, else the terminal's own, else 80."""
    return _columns or shutil.get_terminal_size().columns


def set_terminal_width(columns: int) -> None:
    """Fit lines to the driver's terminal: in a worker, whose lines are printed there."""
    global _columns
    _columns = columns


def wrap_text(text: str, width: int) -> str:
    """`text` with its paragraphs wrapped at `width`; indented lines are commands, continued behind a backslash."""
    paragraphs = []
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.split("\n")
        if all(line.startswith(" ") for line in lines):
            paragraphs.append("\n".join(_wrapped_command(line, width) for line in lines))
        else:
            paragraphs.append(textwrap.fill(" ".join(lines), width))
    return "\n\n".join(paragraphs)


def _wrapped_command(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return " \\\n".join(
        textwrap.wrap(
            line.strip(),
            width - 2,
            initial_indent=indent,
            subsequent_indent=2 * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def fitted_line(parts: Sequence[str], optional: Sequence[str] = (), *, last: Sequence[str] = ()) -> str:
    """`parts`, then as many of `optional`, in their order, as the terminal is wide enough for, then `last`; · between."""
    width = terminal_width() - len(" · ".join([*parts, *last]))
    shown = []
    for part in optional:
        if (length := len(part) + len(" · ")) <= width:
            width -= length
            shown.append(part)
    return " · ".join([*parts, *shown, *last])


def format_duration(seconds: float) -> str:
    """`h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Countdown:
    """Progress through a known number of equal pieces of work, and the time that the rest takes at the speed so far."""

    def __init__(self, unit: str, total: int) -> None:
        """`unit`: the piece of work in the singular, as it is printed."""
        self.unit, self.total = unit, total
        self._start = time.monotonic()

    def line(self, done: int, *facts: str, before: int = 0) -> str:
        """The line when `done` pieces are, `before` of them by an earlier start: `trial 3 of 20 · facts · 0:04:10 left`."""
        seconds = (time.monotonic() - self._start) / max(1, done - before)
        left = [f"{format_duration(seconds * (self.total - done))} left"] if done < self.total else []
        return fitted_line([f"{self.unit} {done} of {self.total}"], facts, last=left)
