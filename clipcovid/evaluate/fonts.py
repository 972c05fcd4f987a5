"""Letters that matplotlib's own font lacks: drawn with a font of the system that has them, and named where none has."""

import re
import sys
import unicodedata
import warnings
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

DEFAULT_FONT = "DejaVu Sans"  # which matplotlib brings
MISSING_GLYPH = re.compile(r"Glyph \d+ .* missing from font")


def save_figure(figure: Figure, path: Path, dpi: int) -> str:
    """Write a figure as PNG with fonts that have its letters; gives the letters that no font has, which are boxes in it.

    Fonts are only looked for where matplotlib's own one is not enough: its texts are known once it is drawn.
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=dpi, format="png")
    for warning in heard:
        if not MISSING_GLYPH.match(str(warning.message)):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if not any(MISSING_GLYPH.match(str(warning.message)) for warning in heard):
        return ""
    texts = figure.findobj(Text)
    letters = {letter for text in texts for letter in text.get_text() if unicodedata.category(letter)[0] not in "CZ"}
    families, missing = find_fonts(frozenset(letters))
    if families:
        for text in texts:
            text.set_fontfamily([DEFAULT_FONT, *families])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=MISSING_GLYPH.pattern)
            figure.savefig(path, dpi=dpi, format="png")
    return missing


@cache
def find_fonts(letters: frozenset[str]) -> tuple[list[str], str]:
    """Families of installed fonts that have what matplotlib's own lacks of `letters`, and the letters that none has."""
    missing = _missing_letters(font_manager.findfont(DEFAULT_FONT), letters)
    families = _covering_fonts(missing)
    if missing:  # maybe a font was installed after matplotlib listed them
        registered = {entry.fname for entry in font_manager.fontManager.ttflist}
        for path in set(font_manager.findSystemFonts()) - registered:
            try:
                font_manager.fontManager.addfont(path)
            except Exception:
                continue
        families += _covering_fonts(missing)
    return families, "".join(sorted(missing))


@cache
def warn_missing_letters(letters: str) -> None:
    """Say, once for the same letters, that no font has them; on stderr, for a job's stdout may be JSON."""
    what = describe_scripts(letters)
    print(f"note: no font of this system has {what}: figures show boxes; install one, e.g. Noto Sans.", file=sys.stderr)


def describe_scripts(letters: str) -> str:
    """The scripts of letters by their Unicode names, with the first few of the letters."""
    scripts = sorted({unicodedata.name(letter, "unnamed").split()[0] for letter in letters})
    return f"{' and '.join(scripts[:3])} letters ({' '.join(letters[:5])}{' …' if len(letters) > 5 else ''})"


def _covering_fonts(missing: set[str]) -> list[str]:
    """Families that have `missing` letters, those with the most first; what they have is taken out of the set."""
    entries = [entry for entry in font_manager.fontManager.ttflist if not entry.name.startswith("Last Resort")]
    lacking = {entry.fname: _missing_letters(entry.fname, missing) for entry in entries} if missing else {}
    families = []
    while missing:
        best = min(
            entries, key=lambda entry: (len(missing & lacking[entry.fname]), entry.style != "normal", entry.name)
        )
        if missing <= lacking[best.fname]:
            break
        families.append(best.name)
        missing &= lacking[best.fname]
    return families


def _missing_letters(path: str, letters: set[str] | frozenset[str]) -> set[str]:
    """The letters that a font's file does not have; all, where it can't be read."""
    try:
        font = FT2Font(path)
    except Exception:  # of FreeType
        return set(letters)
    return {letter for letter in letters if not font.get_char_index(ord(letter))}
