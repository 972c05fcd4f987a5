"""Which file a path means that names none to the letter: other folders before it, another case, another ending or none.

A file is taken only where it is the only one that fits, and no other path means it; everything else is left for a report.
"""

import difflib
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from clipcovid.data.sources.root import IMAGE_ENDINGS

MAX_FUZZY_FILES = 5000  # files among which the most similar name is looked for
Matches = dict[str, list[str]]
"""The files that fit each path: one where it is clear, several where it is not, none where there is none."""


def match_paths(paths: Iterable[str], files: Sequence[str]) -> Matches:
    """The files that match each path: the equal one; else those with extra leading folders on either side; else the same
    in any case; else in any case and with any image ending. Time and memory grow with the number of paths and files."""
    file_set, paths = set(files), list(dict.fromkeys(paths))
    matches: Matches = {path: [path] if path in file_set else [] for path in paths}
    for spelling in (str, casefold_path, strip_image_endings):
        missing = [path for path in paths if not matches[path]]
        if missing:
            matches |= _suffix_matches(missing, files, spelling)
    taken = Counter(fitting[0] for fitting in matches.values() if len(fitting) == 1)
    for path, fitting in matches.items():
        if len(fitting) == 1 and path not in file_set and taken[fitting[0]] > 1:
            matches[path] = []  # other paths mean this file
    return matches


def _suffix_matches(paths: Sequence[str], files: Sequence[str], spelling: Callable[[str], str]) -> Matches:
    """The files whose spelling ends as each path's, or with which it ends; of the latter the longest."""
    depths = {path.count("/") + 1 for path in paths}
    by_name, by_end = defaultdict(list), defaultdict(list)
    for file in files:
        spelled = spelling(file)
        by_name[spelled].append(file)
        parts = spelled.split("/")
        for depth in depths:
            if depth < len(parts):
                by_end["/".join(parts[-depth:])].append(file)
    matches = {}
    for path in paths:
        spelled = spelling(path)
        parts = spelled.split("/")
        shorter = ("/".join(parts[at:]) for at in range(1, len(parts)))
        exact = by_name.get(spelled) or by_end.get(spelled)
        matches[path] = exact or next((by_name[name] for name in shorter if name in by_name), [])
    return matches


def casefold_path(path: str) -> str:
    """A path in one case, and with one way to write letters with accents."""
    return unicodedata.normalize("NFC", path).casefold()


def strip_image_endings(path: str) -> str:
    """A path as `casefold_path` gives it, without image endings."""
    path = casefold_path(path)
    while (parts := posixpath.splitext(path))[1] in IMAGE_ENDINGS:
        path = parts[0]
    return path


def nearest_path(path: str, files: Sequence[str]) -> str:
    """The file that is most like a path: of its name, with the most folders in common from the end; else of a similar
    name; "" where there are no files."""
    parts = strip_image_endings(path).split("/")
    named = [file for file in files if strip_image_endings(posixpath.basename(file)) == parts[-1]]
    if named:
        return max(
            named,
            key=lambda file: len(posixpath.commonprefix([strip_image_endings(file).split("/")[::-1], parts[::-1]])),
        )
    names = {posixpath.basename(file): file for file in reversed(files[:MAX_FUZZY_FILES])}
    close = difflib.get_close_matches(posixpath.basename(path), names, n=1, cutoff=0)
    return names[close[0]] if close else ""
