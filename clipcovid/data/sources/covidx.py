"""COVIDx (Wang et al. 2020), and its lists: text files with a line an image, `patient file class [source]`."""

import posixpath
import re
from collections import defaultdict

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import SPLIT_ALIASES
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.matching import match_paths
from clipcovid.data.sources.registry import register_source
from clipcovid.data.sources.root import IMAGE_ENDINGS, DatasetRoot

LIST_NAME = re.compile(rf"({'|'.join(SPLIT_ALIASES)})(?![a-z]).*\.txt", re.IGNORECASE)  # train_COVIDx9A.txt, test.txt
LIST_LINE = re.compile(
    rf"(?P<patient_id>\S+)\s+(?P<path>\S.*?(?:{'|'.join(map(re.escape, sorted(IMAGE_ENDINGS)))}))"
    r"\s+(?P<label>\S+)(?:\s+(?P<source>\S+))?",
    re.IGNORECASE,
)
UNNAMED_VERSION = "plain"  # what the version of train.txt and test.txt is called
CLASS_NAMES = {  # a list's class → that of COVID-QU-Ex
    "normal": "Normal",
    **dict.fromkeys(("pneumonia", "bacteria", "viral"), "Non-COVID"),
}
SOURCE_TYPOS = {"rnsa": "rsna"}  # in the test lists of version 9
PLACEHOLDER_PATIENT = "COVID"  # of all images of SIRM, in the lists up to version 8
Lists = dict[str, pd.DataFrame]
"""The path of each list of one version, and its rows."""


@register_source("covidx")
def covidx(root: DatasetRoot, columns: ColumnsConfig) -> pd.DataFrame:
    """COVIDx in any version: the lists `train_COVIDx9A.txt`, `test…`, `val…` anywhere, images in `train/`, `test/`, `val/`.

    Of several versions `--version` chooses one. The classes are the lists' own: positive and negative; normal, pneumonia and
    COVID-19; or normal, bacteria, viral and COVID-19.
    """
    version, lists = _choose_version(root, _find_lists(root.require_folder()))
    root.notes.append(f"The lists {', '.join(lists)} of COVIDx are read, version {version}.")
    return _tidy(root, pd.concat([_locate_images(root, path, rows) for path, rows in lists.items()], ignore_index=True))


def _find_lists(root: DatasetRoot) -> dict[str, Lists]:
    """The lists of each version below a folder, of copies the first; two of a split that differ are a `UserError`."""
    versions: dict[str, Lists] = defaultdict(dict)
    for path in sorted(root.files(), key=lambda path: (path.count("/"), path)):
        if not split_of_list(path) or (rows := read_list(root, path, root)) is None:
            continue
        lists = versions[_version_of_list(path)]
        other = next((name for name in lists if split_of_list(name) == split_of_list(path)), "")
        if other and root.read(other) != root.read(path):
            raise UserError(
                f"{root.given} has {other} and {path}, two lists of the split {split_of_list(path)} that differ: move one "
                "away."
            )
        lists |= {} if other else {path: rows}
    return versions


def _version_of_list(path: str) -> str:
    """The version that a list's name says: 9A of train_COVIDx9A.txt, CXR-3A of test_COVIDx_CXR-3A.txt."""
    stem = posixpath.splitext(posixpath.basename(path))[0]
    version = re.sub(rf"^({'|'.join(SPLIT_ALIASES)})[_-]*", "", stem, flags=re.IGNORECASE)
    return re.sub(r"^COVIDx[_-]*(?=.)", "", version, flags=re.IGNORECASE) or UNNAMED_VERSION


def _choose_version(root: DatasetRoot, versions: dict[str, Lists]) -> tuple[str, Lists]:
    """The only version, or the one that `--version` names, with its lists; else `UserError`."""
    if not versions:
        raise UserError(
            f"{root.given} has no list of COVIDx (train_COVIDx9A.txt, train.txt and the like, with lines of `patient file "
            "class source`): they come with the images, or in the folder labels of github.com/lindawangg/COVID-Net."
        )
    names = {f"{prefix}{version}".lower(): version for prefix in ("", "covidx") for version in versions}
    wanted = root.version.lower()
    if wanted in names or (not wanted and len(versions) == 1):
        version = names.get(wanted, next(iter(versions)))
        return version, versions[version]
    listed = "; ".join(
        f"{version} ({', '.join(sorted(set(pd.concat(lists.values())['label'])))})"
        for version, lists in sorted(versions.items())
    )
    way = f"--version {root.version} is none of them" if wanted else "say which with --version"
    raise UserError(f"{root.given} has lists of the versions {listed}: {way}.")


def _locate_images(root: DatasetRoot, path: str, rows: pd.DataFrame) -> pd.DataFrame:
    """A list's rows with the paths of the files that it means, which may be deeper; what is not there keeps its name."""
    missing = [name for name in rows["path"] if name not in root.file_index]
    if not missing:
        return rows
    split = split_of_list(path)
    named = {file: {SPLIT_ALIASES.get(part.lower(), split) for part in file.split("/")[:-1]} for file in root.images()}
    matches = match_paths(missing, [file for file, splits in named.items() if splits <= {split}])
    found = {name: fitting[0] for name, fitting in matches.items() if len(fitting) == 1}
    lost = [name for name in missing if name not in found]
    if len(lost) == len(rows):
        raise UserError(
            f"{root.given} has none of the {len(rows):,} images that {path} names, the first of them {lost[0]}: they belong "
            f"into a folder {split}."
        )
    if lost:
        root.notes.append(f"{len(lost):,} of {len(rows):,} images that {path} names are not there, e.g. {lost[0]}.")
    return rows.assign(path=rows["path"].map(lambda name: found.get(name, name)))


def _tidy(root: DatasetRoot, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with known faults of the lists put right; a note on each, and on what the classes mean."""
    for typo, source in SOURCE_TYPOS.items():
        if (wrong := rows["source"] == typo).any():
            rows["source"] = rows["source"].mask(wrong, source)
            root.notes.append(f"The source {typo} of {wrong.sum():,} images is read as {source}.")
    if (nobody := rows["patient_id"] == PLACEHOLDER_PATIENT).any():
        rows["patient_id"] = rows["patient_id"].mask(nobody, "")
        root.notes.append(f"The patient of {nobody.sum():,} images is given as {PLACEHOLDER_PATIENT} alone: not known.")
    labels = set(rows["label"])
    if "negative" in labels:
        root.notes.append("The class negative is all that is not COVID-19: normal lungs and other pneumonia together.")
    if renames := [f"{name}={CLASS_NAMES[name]}" for name in sorted(labels & set(CLASS_NAMES))]:
        root.notes.append(
            f"Classes are called as in the lists: --rename {' '.join(renames)} calls them as COVID-QU-Ex does."
        )
    return rows


def split_of_list(path: str) -> str:
    """The split that a list is of, by its name; "" where its name is not a list's."""
    name = LIST_NAME.fullmatch(posixpath.basename(path))
    return SPLIT_ALIASES[name[1].lower()] if name else ""


def read_list(root: DatasetRoot, path: str, images: DatasetRoot) -> pd.DataFrame | None:
    """A list's rows: path (in the split's folder where `images` has it there), patient_id, label, source and split.

    None where the file's first line is not a list's; another line that isn't is a `UserError`.
    """
    lines = [(number, line.strip()) for number, line in enumerate(root.read_text(path).splitlines(), 1) if line.strip()]
    if not lines or not LIST_LINE.fullmatch(lines[0][1]):
        return None
    split, rows = split_of_list(path), []
    folders = {name.split("/")[0] for name in images.files() if "/" in name}
    folder = next((name for name in sorted(folders) if SPLIT_ALIASES.get(name.lower()) == split), "")
    for number, line in lines:
        if not (match := LIST_LINE.fullmatch(line)):
            raise UserError(f"{path}, line {number}: not `patient file class source`, as the lines before it are.")
        row = {key: value or "" for key, value in match.groupdict().items()}
        inside = posixpath.join(folder, row["path"])
        rows.append(row | {"split": split, "path": inside if inside in images.file_index else row["path"]})
    return pd.DataFrame(rows, dtype=object)
