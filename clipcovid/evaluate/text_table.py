"""Tables of texts, which the terminal and Markdown show alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich import box
from rich.markup import escape
from rich.table import Table

Row = Sequence[str]
BORDERS = {"head": box.SIMPLE_HEAD, "plain": box.SIMPLE, "full": box.HEAVY_HEAD}
NARROW_WIDTH = 100  # characters of a terminal below which intervals stand beneath their values
MIN_NAME_WIDTH = 16  # characters that are left for names
MARKDOWN_CHARACTERS = str.maketrans({"\\": r"\\", "|": r"\|", "&": "&amp;", "<": "&lt;"})


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table whose first column names the rows, and whose other columns are numbers, or texts."""

    headers: Row
    sections: Sequence[Sequence[Row]]
    """Rows, in groups that a gap parts."""
    title: str = ""
    caption: str = ""
    border: Literal["head", "plain", "full"] = "head"
    wrap_cells: bool = False
    """Whether names that are too long break anywhere, and are not cut."""
    no_wrap: Literal["none", "names", "numbers"] = "none"
    """Which columns never break."""
    bold: int | None = None
    """The column of the values that matter most."""
    title_left: bool = False
    texts: bool = False
    """Whether the other columns are texts, which begin at the left."""

    def rich(self, width: int) -> Table:
        """The table for a terminal `width` characters wide."""
        compact = self.border != "full"
        table = Table(
            title=escape(self.title) or None,
            caption=escape(self.caption) or None,
            title_justify="left" if self.title_left else "center",
            box=BORDERS[self.border],
            padding=0 if compact else (0, 1),
            pad_edge=not compact,
        )
        table.add_column(
            escape(self.headers[0]), overflow="fold" if self.wrap_cells else "ellipsis", no_wrap=self.no_wrap == "names"
        )
        for head in self.headers[1:]:
            justify: Literal["left", "right"] = "left" if self.texts else "right"
            table.add_column(escape(head), justify=justify, no_wrap=self.no_wrap == "numbers")
        narrow = self.no_wrap == "numbers" and width < NARROW_WIDTH
        bounds_apart = narrow and self._too_wide(width)
        for rows in self.sections:
            for name, *cells in rows:
                if narrow:
                    cells = _wrap_cells(cells, bounds_apart)
                texts = [escape(name), *map(escape, cells)]
                if self.bold is not None:
                    texts[self.bold] = f"[bold]{texts[self.bold]}[/]"
                table.add_row(*texts)
            table.add_section()
        return table

    def _too_wide(self, width: int) -> bool:
        """Whether intervals beneath their values leave the names less than `MIN_NAME_WIDTH` in a terminal `width` wide."""
        rows = [self.headers, *(_wrap_cells(row, False) for rows in self.sections for row in rows)]
        widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*rows, strict=True)]
        return sum(widths[1:]) + len(widths) + min(widths[0], MIN_NAME_WIDTH) > width

    def untitled(self) -> "TextTable":
        """The table for beneath a heading that says what it is."""
        return replace(self, title="")

    def markdown(self) -> list[str]:
        """The table's lines in Markdown, the title as a heading."""
        rows = [
            self.headers,
            ["---", *["---" if self.texts else "---:"] * (len(self.headers) - 1)],
            *(row for rows in self.sections for row in rows),
        ]
        lines = [f"| {' | '.join(map(markdown_text, row))} |" for row in rows]
        return [f"## {markdown_text(self.title)}", "", *lines, ""] if self.title else [*lines, ""]


def score_table(title: str, headers: Row, sections: Sequence[Sequence[Row]], *, caption: str = "") -> TextTable:
    """A table of scores with their intervals, which stand beneath them where a terminal is narrow."""
    return TextTable(
        title=title,
        caption=caption,
        headers=headers,
        sections=sections,
        wrap_cells=True,
        no_wrap="numbers",
        title_left=True,
    )


def _wrap_cells(cells: Row, bounds_apart: bool) -> list[str]:
    """Intervals and deviations beneath their values; `bounds_apart`: also the upper bound beneath the lower."""
    cells = [cell.replace(" (", "\n(").replace(" ± ", "\n± ") for cell in cells]
    return [cell.replace(" to ", "\nto ") for cell in cells] if bounds_apart else cells


def markdown_text(text: str) -> str:
    """A text in one line of Markdown that shows it as it is: no HTML, and no border of a cell."""
    return " ".join(text.split()).translate(MARKDOWN_CHARACTERS)
