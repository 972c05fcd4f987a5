"""What the folders of a folder of images say: classes and splits, or the way out where that is not clear."""

import posixpath
import re
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from clipcovid.data.manifest import SPLIT_ALIASES
from clipcovid.data.sources.masks import IMAGE_FOLDER, Parts
from clipcovid.data.sources.root import DatasetRoot
from clipcovid.errors import UserError, first_names

_GENERIC_WORDS = r"(?:data|dataset|images?|imgs?|sets?|splits?|files|folder|\d+)"
SPLIT_FOLDER = re.compile(
    rf"(?:{_GENERIC_WORDS}[\W_]*)?({'|'.join(SPLIT_ALIASES)})(?:[\W_]*{_GENERIC_WORDS})*", re.IGNORECASE
)
EXECUTABLE_ENDINGS = (".exe", ".dll", ".jar")
METADATA_HINT = "a metadata.csv (file_name,label,split)"


def split_of(folder: str) -> str:
    """The split that a folder's name says (`Train`, `test_images`, `training-set`); "" where it says none."""
    name = SPLIT_FOLDER.fullmatch(folder.strip())
    return SPLIT_ALIASES[name[1].lower()] if name else ""


def folder_parts(file: str) -> Parts:
    """The folders that a file is in, without those called `images`."""
    return tuple(part for part in file.split("/")[:-1] if not IMAGE_FOLDER.fullmatch(part))


def read_layout(root: DatasetRoot, files: Sequence[str], *, classes: bool, splits: bool) -> pd.DataFrame:
    """`path, label, split` of each file: `<Class>/…`, `<Split>/<Class>/…` or `<Class>/<Split>/…`, "" where none is said.

    Folders called `images` count for nothing. `classes`, `splits`: which of the two the folders are asked for; what is
    asked for and is not clear is a `UserError`.
    """
    folders = [folder_parts(file) for file in files]
    inside = [parts for parts in folders if parts]
    split_at = _split_layer(root, inside, classes=classes) if splits or classes else None
    class_at = 1 if split_at == 0 else 0
    if classes:
        _check_classes(root, inside, class_at, split_at)

    def part(parts: Parts, at: int | None) -> str:
        return parts[at] if at is not None and at < len(parts) else ""

    labels = [part(parts, class_at) if classes else "" for parts in folders]
    split_names = [split_of(part(parts, split_at)) if splits else "" for parts in folders]
    renamed = sorted({parts[split_at] for parts in inside if split_at is not None and split_at < len(parts)})
    for name in renamed if splits else ():
        if name.lower() not in SPLIT_ALIASES:
            root.notes.append(f"The folder {name} is read as the split {split_of(name)}.")
    return pd.DataFrame({"path": files, "label": labels, "split": split_names}, dtype=object)


def _split_layer(root: DatasetRoot, inside: Sequence[Parts], *, classes: bool) -> int | None:
    """Which layer of folders is the splits, if any; a layer of which only some are splits is a `UserError`."""
    tops = sorted({parts[0] for parts in inside})
    if named := [top for top in tops if split_of(top)]:
        if others := [top for top in tops if not split_of(top)]:
            _refuse_partial_splits(root, inside, named, others)
        return 0
    for parts in inside:
        if classes and (deep := [at for at, part in enumerate(parts) if at > 1 and split_of(part)]):
            raise UserError(
                f"{root.given} has splits deep below it ({'/'.join(parts[: deep[0] + 1])}): give the folder that they are "
                f"in, --root {'/'.join((root.given.rstrip('/'), *parts[: deep[0]]))}, or say what is what in {METADATA_HINT}."
            )
    if not (named := sorted({parts[1] for parts in inside if len(parts) > 1 and split_of(parts[1])})):
        return None
    if others := sorted({"/".join(parts[:2]) for parts in inside if len(parts) < 2 or not split_of(parts[1])}):
        raise UserError(
            f"{root.given}: some class folders have splits in them ({', '.join(named)}), and {others[0]} is none: put all "
            f"images into splits, or say what is what in {METADATA_HINT}."
        )
    if classes and (deeper := [parts for parts in inside if len(parts) > 2]):
        way_out = (
            f"give --root {root.given.rstrip('/')}/{tops[0]}"
            if len(tops) == 1
            else f"say which it is in {METADATA_HINT}"
        )
        raise UserError(
            f"{root.given} has splits between two layers of folders ({'/'.join(deeper[0][:3])}), of which either may be "
            f"the classes: {way_out}."
        )
    return 1


def _refuse_partial_splits(
    root: DatasetRoot, inside: Sequence[Parts], named: Sequence[str], others: Sequence[str]
) -> None:
    nested = [top for top in others if all(len(p) > 1 and split_of(p[1]) for p in inside if p[0] == top)]
    way_out = f"give --root {root.given.rstrip('/')}/{nested[0]}, which has splits itself, or " if nested else ""
    raise UserError(
        f"{root.given} has folders called as splits ({', '.join(named)}) beside others that are not "
        f"({', '.join(others)}): {way_out}move the others away, or say what is what in {METADATA_HINT}."
    )


def _check_classes(root: DatasetRoot, inside: Sequence[Parts], class_at: int, split_at: int | None) -> None:
    """Refuse folders that can't be classes, and note what is unlikely."""
    if "DICOMDIR" in map(str.upper, root.files()):
        raise UserError(
            f"{root.given} is a DICOM disc (it has a DICOMDIR), whose folders are no classes: put each disc's content into "
            f"a folder of its class, or say the classes in {METADATA_HINT}."
        )
    for folder in sorted(
        {posixpath.dirname(file) for file in root.files() if file.lower().endswith(EXECUTABLE_ENDINGS)} - {""}
    ):
        root.notes.append(f"{folder} has programs in it: if its pictures are a viewer's, move it away.")
    below = [parts[class_at:] for parts in inside if len(parts) > class_at]
    labels = sorted({parts[0] for parts in below})
    if len(labels) == 1:
        common = labels if split_at == 1 else posixpath.commonpath(["/".join(parts) for parts in below]).split("/")
        further = sorted({parts[len(common)] for parts in below if len(parts) > len(common)})
        if split_at is None and len(further) > 1 and all(len(parts) > len(common) for parts in below):
            names = first_names(further)
            raise UserError(
                f"{root.given} has one class folder, {labels[0]}, with further folders in it ({names}): if they are the "
                f"classes, give --root {'/'.join((root.given.rstrip('/'), *common))}; if {labels[0]} is the class of all, "
                f"say so in {METADATA_HINT}."
            )
        root.notes.append(f"All images are of one class, {labels[0]}.")
        return
    if split_at != 1:
        _refuse_repeated_folders(root, below)
    if len(labels) > max(10, len(below) / 5):
        root.notes.append(
            f"{len(labels)} class folders for {len(below)} images: if they are patients, say the classes in {METADATA_HINT}."
        )


def _refuse_repeated_folders(root: DatasetRoot, below: Sequence[Parts]) -> None:
    """Refuse class folders of which (nearly) all have the same folders in them, which may be the classes themselves."""
    outer = sorted({parts[0] for parts in below})
    counts = Counter(name for _, name in {parts[:2] for parts in below if len(parts) > 1})
    inner = sorted(name for name, count in counts.items() if count >= max(2, 2 / 3 * len(outer)))
    if len(inner) < max(2, len(counts) / 2):
        return
    outer_names, inner_names = map(first_names, (outer, inner))
    raise UserError(
        f"{root.given} has the same folders ({inner_names}) in its folders {outer_names}, so either may be the classes: if "
        f"{inner_names} are, move them a level up, {inner[0]}/{outer[0]}; if {outer_names} are, move the images up into "
        f"them; or say what is what in {METADATA_HINT}."
    )
