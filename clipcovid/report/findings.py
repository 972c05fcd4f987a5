"""Findings: what a check of the data found, how bad it is, what to do, and images that show it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from markupsafe import Markup

from clipcovid.data.packed import PackedImages
from clipcovid.errors import UserError
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report.page import gallery_html, image_data_uri, table_html

Severity = Literal["high", "medium", "low", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the worst down."""
EXAMPLE_SIDE = 160  # pixels of an image's longer side in a sheet of examples


@dataclass(frozen=True, kw_only=True)
class ExampleSheet:
    """A sheet of images that show a finding."""

    caption: str
    images: tuple[tuple[str, str], ...]
    """(prepared folder, image_id), drawn side by side."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    """The check's name."""
    severity: Severity
    summary: str
    """One sentence with its numbers."""
    advice: str
    """What to do, one sentence."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """The numbers, as JSON has them."""
    tables: tuple[TextTable, ...] = ()
    examples: tuple[ExampleSheet, ...] = ()

    def __post_init__(self) -> None:
        assert self.severity in SEVERITIES, self.severity

    def to_json(self) -> dict[str, Any]:
        """An entry of audit.json; values of `numbers` that JSON lacks are refused when it is written."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Finding":
        """The finding that `to_json` gave; what is none is a `UserError`."""
        try:
            tables = tuple(TextTable(**table) for table in content.get("tables", ()))
            examples = tuple(
                ExampleSheet(
                    caption=sheet["caption"], images=tuple((folder, image_id) for folder, image_id in sheet["images"])
                )
                for sheet in content.get("examples", ())
            )
            if content["severity"] not in SEVERITIES:
                raise ValueError(f"its severity is {content['severity']!r}")
            names = ("check", "severity", "summary", "advice", "numbers")
            return cls(**{name: content[name] for name in names}, tables=tables, examples=examples)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"This is no finding of an audit ({error!r}): run `clipcovid audit` again.") from None


def rank_findings(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; those of one severity in the order in which they came."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def findings_table(findings: Sequence[Finding]) -> TextTable:
    """The findings in a table: severity, check, what was found, what to do."""
    rows = [[finding.severity, finding.check, finding.summary, finding.advice] for finding in findings]
    return TextTable(headers=("severity", "check", "found", "what to do"), sections=[rows], texts=True)


def findings_html(findings: Sequence[Finding]) -> Markup:
    """Findings in the order given, each with its advice, its tables, and its images.

    The prepared folders of the examples are opened as they are needed; one that is gone is said in place of its images.
    """
    read_image = _image_reader()
    return Markup("").join(_finding_html(finding, read_image) for finding in findings)


def _finding_html(finding: Finding, read_image: Callable[[str, str], np.ndarray]) -> Markup:
    head = Markup(
        '<p><span class="severity">{}</span> <strong>{}</strong></p><p>{}</p><p class="soft">What to do: {}</p>'
    ).format(finding.severity, finding.check, finding.summary, finding.advice)
    tables = Markup("").join(map(table_html, finding.tables))
    sheets = Markup("").join(_sheet_html(sheet, read_image) for sheet in finding.examples)
    return Markup('<div class="finding {}">{}</div>').format(finding.severity, head + tables + sheets)


def _sheet_html(sheet: ExampleSheet, read_image: Callable[[str, str], np.ndarray]) -> Markup:
    figures = []
    for folder, image_id in sheet.images:
        try:
            uri = image_data_uri(read_image(folder, image_id), max_side=EXAMPLE_SIDE)
        except UserError as error:
            return Markup('<p class="title">{}</p><p class="soft">Its images can\'t be shown: {}</p>').format(
                sheet.caption, error
            )
        figures.append(
            Markup('<figure><img src="{}" alt="{}"><figcaption>{}<br>{}</figcaption></figure>').format(
                uri, image_id, image_id, Path(folder).name
            )
        )
    return gallery_html(figures, sheet.caption)


def _image_reader() -> Callable[[str, str], np.ndarray]:
    """Images (prepared folder, image_id) as pixels uint8 (h, w) or (h, w, 3); each folder is opened once."""
    opened: dict[str, PackedImages] = {}

    def read(folder: str, image_id: str) -> np.ndarray:
        if folder not in opened:
            opened[folder] = PackedImages(folder)
        packed = opened[folder]
        try:
            position = packed.manifest.positions(pd.Series([image_id]))
        except KeyError:
            raise UserError(f"{folder} has no image {image_id!r}: was it prepared again since?") from None
        return packed.images(position)[0]

    return read
