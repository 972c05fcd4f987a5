"""A report's texts and tables as Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from clipcovid.errors import RESEARCH_ONLY
from clipcovid.evaluate.text_table import TextTable, markdown_text
from clipcovid.report.page import DualMarkup, Part, Section

LATEX_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # which begins an option behind the end of a row
    "*": "{*}",  # likewise
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "κ": r"$\kappa$",
    "…": r"\ldots{}",
}
LATEX_HEAD = """% {title}. {purpose}
% Needs \\usepackage[T1]{{fontenc}}, \\usepackage{{booktabs}} and \\usepackage{{longtable}}.
"""


def to_markdown(title: str, lead: Sequence[Part], sections: Sequence[Section]) -> str:
    """The texts and tables of a report; figures and images are in the page alone."""
    lines = [f"# {markdown_text(title)}", "", f"**{RESEARCH_ONLY}**", "", *_markdown_parts(lead)]
    for section in sections:
        body = _markdown_parts(section.parts)
        for below in section.subsections:
            inner = _markdown_parts(below.parts)
            body += [f"### {markdown_text(below.title)}", "", *inner] if inner else []
        lines += [f"## {markdown_text(section.title)}", "", *body] if body else []
    return "\n".join(lines).rstrip() + "\n"


def _markdown_parts(parts: Sequence[Part]) -> list[str]:
    lines: list[str] = []
    for part in parts:
        if isinstance(part, TextTable):
            title = [f"**{markdown_text(part.title)}**", ""] if part.title else []
            caption = [markdown_text(part.caption), ""] if part.caption else []
            lines += [*title, *part.untitled().markdown(), *caption]
        elif isinstance(part, DualMarkup):
            lines += part.markdown
        elif not isinstance(part, Markup):
            lines += [markdown_text(part), ""]
    return lines


def to_latex(title: str, lead: Sequence[Part], sections: Sequence[Section]) -> str:
    """The tables of a report, with booktabs' rules; those of texts are long tables, which break over pages."""
    head = LATEX_HEAD.format(title=title.replace("\n", " "), purpose=RESEARCH_ONLY)
    return head + "".join(f"\n{_latex_table(name, table)}\n" for name, table in report_tables(lead, sections))


def _latex_table(name: str, table: TextTable) -> str:
    columns = len(table.headers)
    head = " & ".join(_latex_head(text) for text in table.headers) + r" \\"
    groups = [[" & ".join(map(latex_text, row)) + r" \\" for row in rows] for rows in table.sections if rows]
    body = "\n\\midrule\n".join("\n".join(rows) for rows in groups)
    caption = latex_text(table.title or name)
    if table.texts:
        width = rf"p{{{0.94 / columns:.2f}\linewidth}}"
        return "\n".join(
            [
                rf"\begin{{longtable}}{{{width * columns}}}",
                rf"\caption{{{caption}}} \\",
                r"\toprule",
                head,
                r"\midrule",
                r"\endhead",
                body,
                r"\bottomrule",
                r"\end{longtable}",
            ]
        )
    note = [rf"\par\smallskip{{\footnotesize {latex_text(table.caption)}}}"] if table.caption else []
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            body,
            r"\bottomrule",
            r"\end{tabular}",
            *note,
            r"\end{table}",
        ]
    )


def _latex_head(text: str) -> str:
    lines = r" \\ ".join(latex_text(line) for line in text.split("\n"))
    return rf"\shortstack{{{lines}}}" if "\n" in text else lines


def latex_text(text: str) -> str:
    """A text as LaTeX prints it: what means something to LaTeX is escaped, and a line break is a space."""
    return "".join(LATEX_CHARACTERS.get(letter, letter) for letter in re.sub(r"\s+", " ", text))


def to_csv(lead: Sequence[Part], sections: Sequence[Section]) -> str:
    """The tables of a report, a line a cell: table, group of rows, row, column, value."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "group", "row", "column", "value"])
    for name, table in report_tables(lead, sections):
        heads = [_one_line(head) for head in table.headers]
        for group, rows in enumerate(table.sections, 1):
            for row in rows:
                for head, cell in zip(heads[1:], row[1:], strict=True):
                    writer.writerow([name, group, _one_line(row[0]), head, _one_line(cell)])
    return buffer.getvalue()


def _one_line(text: str) -> str:
    """A text in a line, which a spreadsheet does not take for a formula."""
    line = re.sub(r"\s+", " ", text)
    return f"'{line}" if re.match(r"[=@\t]|[+-](?![\d.])", line) else line


def report_tables(lead: Sequence[Part], sections: Sequence[Section]) -> Iterator[tuple[str, TextTable]]:
    """The tables of a report with their names: where they stand, and their titles."""
    places = [("", tuple(lead))]
    for section in sections:
        places.append((section.title, section.parts))
        places += [(f"{section.title}: {below.title}", below.parts) for below in section.subsections]
    for place, parts in places:
        for part in parts:
            if isinstance(part, TextTable):
                yield " – ".join(filter(None, (place, part.title))), part
