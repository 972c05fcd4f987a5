"""The page: in one file, nothing from elsewhere, hostile texts shown as what they are, and small."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from clipcovid.data.manifest import read_manifest
from clipcovid.data.packed import PackedImages
from clipcovid.errors import RESEARCH_ONLY, UserError
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report.findings import ExampleSheet, Finding, findings_html, rank_findings
from clipcovid.report.page import (
    CONTENT_SECURITY_POLICY,
    Section,
    code_html,
    facts_html,
    figure_html,
    figure_svg,
    gallery_html,
    image_data_uri,
    image_html,
    list_html,
    render_page,
    table_html,
)

HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>&lt;{{ 7*7 }}"""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Tags with their attributes, and the text; the tags must close in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_page(page):
    """The reader of a page that loads nothing, runs nothing, and whose links lead somewhere."""
    reader = Reader(page)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {tag for tag, _ in reader.tags} & {"script", "iframe", "object", "embed", "link", "base", "form"} == set()
    for _, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "poster"):
            target = attributes.get(name, "#top")
            assert target.startswith("data:image/") or target[1:] in ids, target
        assert all(
            name[1:] in ids for name in re.findall(r"url\(([^)]+)\)", " ".join(filter(None, attributes.values())))
        )
    policies = [attributes["content"] for _, attributes in reader.tags if "http-equiv" in attributes]
    assert policies == [CONTENT_SECURITY_POLICY]
    assert "url(" not in re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert "@import" not in page
    assert reader.text.count(RESEARCH_ONLY) >= 2
    return reader


def drawn(text="macro F1 0.81234567"):
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0, 1 / 3, 1], [0, 2 / 3, 1], label=text)
    axes.imshow(np.eye(4))
    axes.set_title(text)
    axes.legend()
    return figure


def test_a_page_of_every_piece_is_whole_and_shows_hostile_texts_as_they_are():
    table = TextTable(
        title=HOSTILE, caption=HOSTILE, headers=(HOSTILE, "Acc"), sections=[[(HOSTILE, HOSTILE)], []], bold=1
    )
    pixels = np.zeros((20, 30), np.uint8)
    image = image_html(pixels, HOSTILE)
    finding = Finding(check=HOSTILE, severity="high", summary=HOSTILE, advice=HOSTILE, tables=(table,))
    parts = (
        HOSTILE,
        table_html(table),
        figure_html(drawn(HOSTILE), HOSTILE),
        gallery_html([image, image], HOSTILE),
        list_html([HOSTILE]),
        facts_html([(HOSTILE, HOSTILE)]),
        code_html(HOSTILE),
        findings_html([finding]),
    )
    sections = [
        Section(title=HOSTILE, parts=parts, subsections=(Section(title=HOSTILE, parts=(HOSTILE,)),)),
        Section(title="Two", parts=()),
    ]
    page = render_page(HOSTILE, sections, lead=[HOSTILE, Markup("<p>safe</p>")], subtitle=HOSTILE, footer=HOSTILE)
    reader = check_page(page)
    assert reader.text.count(HOSTILE) >= 24  # every place that a text goes to, as a reader sees it
    assert reader.text.count("safe") == 1


def test_contents_lead_to_every_heading_though_titles_repeat():
    below = (Section(title="ROC", parts=()), Section(title="ROC", parts=()), Section(title="é", parts=()))
    sections = [Section(title="ROC", parts=(), subsections=below), Section(title="ROC 2", parts=())]
    reader = check_page(render_page("Report", sections))
    links = [attributes["href"][1:] for tag, attributes in reader.tags if tag == "a" and attributes["href"] != "#top"]
    headings = [attributes["id"] for tag, attributes in reader.tags if tag in ("h2", "h3") and "id" in attributes]
    assert links == headings
    assert len(set(links)) == 5


def test_a_figure_keeps_its_texts_and_shares_no_id_with_another():
    first, second = figure_svg(drawn()), figure_svg(drawn("other"))
    assert figure_svg(drawn()) == first  # nothing of the clock
    assert "macro F1 0.81234567" in first  # digits of a text are not those of a path
    assert not re.search(r'\bd="[^"]*\.\d{3}', first)
    assert "http" not in first
    ids = [set(re.findall(r'\sid="([^"]+)"', svg)) for svg in (first, second)]
    assert min(map(len, ids)) > 5
    assert not ids[0] & ids[1]
    assert "<style" not in first  # it would hold for the whole page


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3)])
def test_an_image_is_webp_of_its_own_pixels(shape):
    pixels = np.linspace(0, 255, np.prod(shape)).reshape(shape).astype(np.uint8)
    content = base64.b64decode(image_data_uri(pixels, quality=95).removeprefix("data:image/webp;base64,"))
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.size) == ("WEBP", (60, 40))
    back = np.asarray(image.convert("L" if len(shape) == 2 else "RGB"))
    assert np.abs(back.astype(int) - pixels).mean() < 3
    small = Image.open(io.BytesIO(base64.b64decode(image_data_uri(pixels, max_side=30).partition(",")[2])))
    assert small.size == (30, 20)


def test_a_hundred_x_rays_are_within_two_megabytes(phantoms):
    packed = PackedImages(phantoms)
    images = packed.images(range(len(packed))).repeat(4, axis=1).repeat(4, axis=2)  # 256 px
    page = render_page("Sheet", [Section(title="All", parts=(gallery_html([image_html(image) for image in images]),))])
    check_page(page)
    assert len(images) == 90
    assert len(page.encode()) < 2_000_000


def test_findings_survive_json_and_show_their_images(phantoms):
    ids = read_manifest(phantoms).table["image_id"][:2].tolist()
    sheet = ExampleSheet(caption="Two of them", images=tuple((str(phantoms), image_id) for image_id in ids))
    table = TextTable(title="Pairs", headers=("a", "b"), sections=[[("x", "1")]])
    found = Finding(
        check="near duplicates",
        severity="low",
        summary="2 pairs.",
        advice="Drop one.",
        numbers={"pairs": 2, "share": 0.5},
        tables=(table,),
        examples=(sheet,),
    )
    back = Finding.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert json.dumps(back.to_json()) == json.dumps(found.to_json())
    shown = findings_html([back])
    assert shown == findings_html([found])
    assert shown.count("data:image/webp") == 2
    assert all(image_id in shown for image_id in ids)


def test_images_that_are_gone_are_said(phantoms, tmp_path):
    for folder, image_id in ((tmp_path, "a"), (phantoms, "no such image")):
        sheet = ExampleSheet(caption="Pairs", images=((str(folder), image_id),))
        finding = Finding(check="c", severity="info", summary="s.", advice="a.", examples=(sheet,))
        assert "can&#39;t be shown" in findings_html([finding]) or "can't be shown" in findings_html([finding])
        assert str(folder) in findings_html([finding])


def test_findings_are_ranked_by_severity_and_what_is_none_is_refused():
    found = [
        Finding(check=str(n), severity=s, summary="", advice="") for n, s in enumerate(("low", "high", "info", "high"))
    ]
    assert [finding.check for finding in rank_findings(found)] == ["1", "3", "0", "2"]
    for content in ({}, found[0].to_json() | {"severity": "dire"}, found[0].to_json() | {"examples": [{}]}):
        with pytest.raises(UserError, match="clipcovid audit"):
            Finding.from_json(content)
