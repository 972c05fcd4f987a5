"""One self-contained HTML page: everything is in the file, nothing runs, and nothing is loaded from anywhere.

Pieces are `Markup`, which is safe HTML; any other text is escaped by jinja2 where it is put in.
"""

import base64
import functools
import hashlib
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from clipcovid.errors import RESEARCH_ONLY
from clipcovid.evaluate.text_table import TextTable, markdown_text

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

CONTENT_SECURITY_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
WEBP_QUALITY = 80  # of 100
Part = Markup | str | TextTable
"""`Markup` stands in a page as it is, a text as a paragraph, a table as `table_html` gives it."""


class DualMarkup(Markup):
    """HTML of which Markdown has a form, too."""

    markdown: list[str]
    """Its lines there."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page, with a heading that the contents lead to."""

    title: str
    parts: tuple["Part", ...]
    """What stands in it, in order."""
    subsections: tuple["Section", ...] = ()


def render_page(
    title: str, sections: Sequence[Section], *, lead: Sequence[Part] = (), subtitle: str = "", footer: str = ""
) -> str:
    """The page as HTML.

    `lead`: what stands above the contents. `subtitle`: a line below the title, such as the data set's
    name; `footer`: a line at the end, such as what made the page. That it is for research stands at the top and the end.
    """
    names = [section.title for top in sections for section in (top, *top.subsections)]
    anchors = iter(_anchors(names))
    numbered = [
        {"section": top, "anchor": next(anchors), "below": [(next(anchors), below) for below in top.subsections]}
        for top in sections
    ]
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            subtitle=subtitle,
            lead=[_part_html(part) for part in lead],
            sections=numbered,
            footer=footer,
            part_html=_part_html,
            policy=CONTENT_SECURITY_POLICY,
            research_only=RESEARCH_ONLY,
        )
    )


def table_html(table: TextTable) -> Markup:
    """A table, its title above and its caption below. It scrolls by itself where a screen is too narrow."""
    return _fragment("table", table=table)


def list_html(items: Sequence[Markup | str]) -> DualMarkup:
    """A list with a point for each item; nothing for none."""
    lines = [f"- {_markdown(item)}" for item in items]
    return _told(_fragment("bullets", items=items) if items else Markup(""), lines)


def facts_html(facts: Sequence[tuple[str, Markup | str]]) -> DualMarkup:
    """Names with their values, one beneath the other; nothing for none."""
    lines = [f"- {markdown_text(name)}: {_markdown(value)}" for name, value in facts]
    return _told(_fragment("facts", facts=facts) if facts else Markup(""), lines)


def code_html(text: str) -> DualMarkup:
    """Commands or file contents, as they are typed."""
    return _told(Markup("<pre><code>{}</code></pre>").format(text), ["```", *text.split("\n"), "```"])


def _told(html: Markup, lines: list[str]) -> DualMarkup:
    told = DualMarkup(html)
    told.markdown = [*lines, ""] if lines else []
    return told


def _markdown(text: Markup | str) -> str:
    return markdown_text(text.striptags() if isinstance(text, Markup) else text)


def figure_html(figure: "Figure", caption: str = "") -> Markup:
    """A matplotlib figure as an inline SVG, with a caption; what it shows is also its name for who can't see it."""
    drawn = Markup('<div class="drawing">{}</div>').format(figure_svg(figure, caption))
    return _fragment("figure", content=drawn, caption=caption)


def figure_svg(figure: "Figure", name: str = "") -> Markup:
    """A matplotlib figure as an `<svg>` element, whose texts are texts; `name`: what it is for who can't see it.

    Its ids are its own, so that several figures can stand in one page, and equal figures give equal elements.
    """
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    settings = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "clipcovid"})
    with settings, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")  # the browser has its own fonts
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<style\b.*?</style>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    prefix = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}-"
    text = re.sub(r"<[^>]+>", lambda tag: _inline_tag(tag[0], prefix), text)
    label = Markup('<svg class="drawn" role="img" aria-label="{}"').format(name or "figure")
    return label + Markup(text[len("<svg") :])


def _inline_tag(tag: str, prefix: str) -> str:
    """A tag of an SVG file as it stands in a page: its ids begin with `prefix`, and coordinates have two decimals."""
    tag = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag)  # HTML knows what an <svg> is
    tag = re.sub(r'(?<=\sd=")[^"]*', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), tag)
    return re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{prefix}", tag)


def image_data_uri(pixels: np.ndarray, *, max_side: int = 0, quality: int = WEBP_QUALITY) -> str:
    """An image as a `data:` URI, WebP.

    `pixels`: uint8, (h, w) or (h, w, 3). `max_side`: the pixels that its longer side is made smaller to, 0: left as it is.
    `quality`: 1–100.
    """
    from PIL import Image

    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3), pixels.shape
    image = Image.fromarray(pixels)
    if max_side and max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_html(pixels: np.ndarray, caption: Markup | str = "", *, max_side: int = 0) -> Markup:
    """An image as in `image_data_uri`, with its caption beneath."""
    uri = image_data_uri(pixels, max_side=max_side)
    name = Markup(caption).striptags()
    image = Markup('<img src="{}" alt="{}">').format(uri, name)
    return _fragment("figure", content=image, caption=caption)


def gallery_html(figures: Sequence[Markup], caption: Markup | str = "") -> Markup:
    """Images (`image_html`) side by side, as many as there is room for, beneath a caption."""
    return _fragment("gallery", figures=figures, caption=caption)


def _part_html(part: Part) -> Markup:
    if isinstance(part, TextTable):
        return table_html(part)
    return part if isinstance(part, Markup) else Markup("<p>{}</p>").format(part)


def _anchors(titles: Sequence[str]) -> list[str]:
    """An id for each title, which differ."""
    anchors: list[str] = []
    for title in titles:
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        anchor, number = stem, 1
        while anchor in anchors:
            anchor, number = f"{stem}-{number + 1}", number + 1
        anchors.append(anchor)
    return anchors


@functools.cache
def _environment() -> "jinja2.Environment":
    import jinja2

    loader = jinja2.PackageLoader("clipcovid.report")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _fragment(name: str, **values: object) -> Markup:
    """What the macro `name` of the fragments gives."""
    module = _environment().get_template("fragments.html").module
    macro = getattr(module, name)
    return Markup(macro(**values))
