"""Letters beyond matplotlib's own font: drawn where the system has them, named where it has not."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from clipcovid.evaluate import plots
from clipcovid.evaluate.fonts import DEFAULT_FONT, describe_scripts, find_fonts, save_figure, warn_missing_letters

CLASSES = ("新冠肺炎", "正常", "肺炎 $x$")


def square():
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


def make_font(path, family, letters):
    """A font whose letters are all black squares."""
    names = {ord(letter): f"g{at}" for at, letter in enumerate(letters)}
    order = [".notdef", *names.values()]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf({name: square() for name in order})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def system(monkeypatch, tmp_path):
    """What adds fonts to a system that has matplotlib's alone."""
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in str(entry.fname)]
    installed = []
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *args, **more: installed)
    find_fonts.cache_clear()
    warn_missing_letters.cache_clear()
    yield lambda family, letters: installed.append(make_font(tmp_path / f"{family}.ttf", family, letters))
    find_fonts.cache_clear()


def figure_of(text):
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().set(title=text, xticks=[0, 1])
    figure.axes[0].set_xticks([0, 1], [text, "b"])
    return figure


def test_letters_are_drawn_with_the_fonts_that_have_them(system, tmp_path):
    system("Han", "新冠肺炎正常")
    system("Hangul", "폐렴")
    families, missing = find_fonts(frozenset("a肺炎폐ก"))
    assert (set(families), missing) == ({"Han", "Hangul"}, "ก")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert save_figure(figure_of("肺炎 a"), tmp_path / "a.png", 100) == ""
        save_figure(figure_of("   a"), tmp_path / "b.png", 100)
    dark = [(np.asarray(Image.open(tmp_path / name).convert("L")) < 100).sum() for name in ("a.png", "b.png")]
    assert dark[0] > dark[1] + 4 * 50  # four squares, twice two letters


def test_missing_letters_are_named_once_and_other_warnings_stay(system, tmp_path, capsys):
    labels, numbers = ["新冠肺炎", "正常", "肺炎 $x$"] * 9, np.eye(3)[[0, 1, 2] * 9]
    figures = plots.classification_figures(labels, numbers, CLASSES, split="test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for folder in ("a", "b"):
            plots.save_figures(figures, tmp_path / folder)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "note: no font of this system has CJK letters (冠 常 新 正 炎 …): figures show boxes; install one, e.g. Noto Sans.\n"
    )
    tiny = Figure(figsize=(0.2, 0.2), layout="constrained")
    tiny.add_subplot().set_title("a")
    with pytest.warns(UserWarning, match="constrained_layout not applied"):
        save_figure(tiny, tmp_path / "c.png", 100)


def test_no_font_is_looked_for_where_the_own_one_is_enough(monkeypatch, tmp_path):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *args, **more: pytest.fail("looked for fonts"))
    assert save_figure(figure_of("Größe αβγ №"), tmp_path / "a.png", 100) == ""
    assert find_fonts(frozenset("abc")) == ([], "")
    assert DEFAULT_FONT == "DejaVu Sans"


def test_scripts_are_named():
    assert describe_scripts("폐") == "HANGUL letters (폐)"
    assert describe_scripts("กぁ肺") == "CJK and HIRAGANA and THAI letters (ก ぁ 肺)"
