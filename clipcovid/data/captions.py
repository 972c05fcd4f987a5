"""The text that goes with an image: from a table's fields by a template, free text, both, or a table of its own."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import Manifest
from clipcovid.io.tables import VALUE_COLUMN, cell_text, read_table_file

TEMPLATE = "a[ {plane} plane][ {modality}] scan[ of {location}][ on a[ {age} year old][ {sex}]][ depicting {diagnosis}]"
PLACEHOLDER = re.compile(r"\s*(?:replace this\b.*|n/?a|none|nan|null|tbd|unknown|-+)?\s*", re.IGNORECASE | re.DOTALL)
TEMPLATE_ALIASES = {"plane": "view", "text": "caption"}  # what templates may call the manifest's columns
CAPTION_SOURCES = ("template", "dataset", "both")
_FIELD = re.compile(r"\{(\w+)\}")
_Part = str | list["_Part"]


def with_captions(manifest: Manifest, kind: str, template: str, *, strict: bool = True) -> Manifest:
    """The manifest with these captions for its own, "" where there is none.

    `strict`: a template's field that is no column, or a table that is not there or names none of the images, is a
    `UserError`; else no image has a caption then.
    """
    if kind == "dataset":
        return manifest
    if not strict and (_empty_fields(manifest.table, template) if kind in CAPTION_SOURCES else not Path(kind).exists()):
        return manifest.with_columns(caption="")
    return manifest.with_columns(caption=make_captions(manifest.table, kind, template, strict=strict))


def make_captions(rows: pd.DataFrame, kind: str, template: str, *, strict: bool = True) -> pd.Series:
    """The caption of each row, "" where there is none.

    `kind`: template fills the template in, dataset is the column `caption`, both puts the one before the other, and
    anything else is a table with image_id and caption (or {image_id: caption}), which need not name all images.
    `rows` are a whole data set's; `strict`: a table that names none of its images is a `UserError`.
    """
    if kind == "dataset":
        return rows["caption"]
    if kind in CAPTION_SOURCES:
        filled = fill_template(rows, template)
        if kind == "template":
            return filled
        free = rows["caption"]
        return filled.where(free == "", filled.where(filled == "", filled + ". ") + free)
    by_id = read_captions(kind).set_index("image_id")["caption"]
    unknown = int((~by_id.index.isin(rows["image_id"])).sum())
    if strict and 0 < unknown < len(by_id):
        _print_note(f"{unknown} of the {len(by_id)} rows of --captions {kind} name no image of the data set.")
    if strict and unknown == len(by_id):
        raise UserError(
            f"--captions {kind} names none of the data set's images: its first image_id is "
            f"{next(iter(by_id.index), '')!r}, and the data set's is {next(iter(rows['image_id']), '')!r}."
        )
    return rows["image_id"].map(by_id).fillna("")


def read_captions(path: str) -> pd.DataFrame:
    """image_id and caption ("" for a placeholder), text, of a table that has them, or of {image_id: caption}.

    One that lacks either, has a row without an id, or an image twice, is a `UserError`.
    """
    notes: list[str] = []
    table = read_table_file(path, notes)
    for note in notes:
        _print_note(note)
    if "caption" not in table and VALUE_COLUMN in table:
        table = table.rename(columns={VALUE_COLUMN: "caption"})
    if missing := {"image_id", "caption"} - set(table):
        raise UserError(
            f"--captions {path} lacks the columns {', '.join(sorted(missing))}; it has: {', '.join(map(str, table))}."
        )
    ids = table["image_id"].map(cell_text)
    if unknown := int((ids == "").sum()):
        raise UserError(f"{unknown} rows of --captions {path} have no image_id.")
    if (twice := ids[ids.duplicated()]).size:
        raise UserError(f"--captions {path} has {twice.iloc[0]} twice: give each image one caption.")
    return pd.DataFrame({"image_id": ids, "caption": table["caption"].map(known_text)})


@functools.cache
def _print_note(note: str) -> None:
    """Print a note, the same one once a process."""
    print(f"note: {note}")


def known_text(caption: object) -> str:
    """A caption's text, "" for a placeholder or a missing value."""
    text = cell_text(caption)
    return "" if PLACEHOLDER.fullmatch(text) else text


def fill_template(rows: pd.DataFrame, template: str) -> pd.Series:
    """A caption a row: `{name}` stands for the row's column of that name.

    What stands in `[…]` is left out where a field in it is unknown, or, if its fields all stand in further brackets, where
    none of them is known. An unknown field outside of brackets leaves nothing. A row of which no field is known gets "". A
    field that is no column, and brackets that do not close, are a `UserError`.
    """
    names = sorted(set(_FIELD.findall(template)))
    if absent := _empty_fields(rows, template):
        raise UserError(
            f"--caption-template has the field {{{absent[0]}}}, and this data set has no such column; it has: "
            f"{', '.join(map(str, rows.columns))}."
        )
    if not names:
        raise UserError(f"--caption-template {template!r} has no {{field}}: all images would get the same caption.")
    parts = _parse(template)
    values = {name: rows[_column(rows, name)].map(_cell_text) for name in names}
    table = (dict(zip(names, row, strict=True)) for row in zip(*(values[name] for name in names), strict=True))
    return pd.Series([_render(parts, fields) for fields in table], index=rows.index, dtype=object)


def _empty_fields(rows: pd.DataFrame, template: str) -> list[str]:
    return sorted(name for name in set(_FIELD.findall(template)) if _column(rows, name) not in rows)


def _column(rows: pd.DataFrame, name: str) -> str:
    return name if name in rows else TEMPLATE_ALIASES.get(name, name)


def _cell_text(value: object) -> str:
    text = " ".join(cell_text(value).split())
    return "" if PLACEHOLDER.fullmatch(text) else text


def _parse(template: str) -> list[_Part]:
    stack: list[list[_Part]] = [[]]
    for piece in re.split(r"([\[\]])", template):
        if piece == "[":
            stack.append([])
        elif piece == "]" and len(stack) > 1:
            inner = stack.pop()
            stack[-1].append(inner)
        elif piece == "]":
            stack = []
            break
        elif piece:
            stack[-1].append(piece)
    if len(stack) != 1:
        raise UserError(f"--caption-template {template!r} has a bracket that is not closed, or closed twice.")
    return stack[0]


def _render(parts: list[_Part], fields: Mapping[str, str]) -> str:
    text, known_fields, _ = _render_part(parts, fields)
    return re.sub(r"\s+([,.;:])", r"\1", " ".join(text.split())) if known_fields else ""


def _render_part(parts: list[_Part], fields: Mapping[str, str]) -> tuple[str, int, bool]:
    """The text, how many of its fields are known, and whether one outside of inner brackets is not."""
    text, known_fields, lacking = "", 0, False
    for part in parts:
        if isinstance(part, str):
            values = [fields[name] for name in _FIELD.findall(part)]
            known_fields += sum(value != "" for value in values)
            lacking |= "" in values
            text += _FIELD.sub(lambda match: fields[match[1]], part)
            continue
        inner, inner_fields, incomplete = _render_part(part, fields)
        if inner_fields and not incomplete:
            text, known_fields = text + inner, known_fields + inner_fields
    return text, known_fields, lacking
