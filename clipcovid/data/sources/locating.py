"""Where the images and masks that a table names are: at their paths, or at the only files that these can mean."""

import posixpath
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import MASK_COLUMNS
from clipcovid.data.sources.matching import Matches, casefold_path, match_paths, nearest_path, strip_image_endings
from clipcovid.data.sources.root import DatasetRoot, posix_path


def resolve_image_paths(root: DatasetRoot, rows: pd.DataFrame) -> pd.DataFrame:
    """A table's rows with `path` and masks resolved to existing files; `root.notes` list each path that had to be corrected.

    The folder of the images is listed only where paths name no file. A table of which no image is there is a `UserError`.
    """
    images = root.images_at
    columns = ["path", *MASK_COLUMNS]
    names = pd.unique(rows[columns].to_numpy().ravel())
    tidied = {path: posix_path(path) for path in names if path}
    present = images.existing_files(tidied.values())
    missing = {path: name for path, name in tidied.items() if name not in present and name.split("/")[0] != ".."}
    if not missing:
        return rows
    matches = _matches(images, tidied, present, missing)
    corrections = {path: fitting[0] for path, fitting in matches.items() if len(fitting) == 1}
    if corrections:
        example = next(iter(corrections))
        root.notes.append(
            f"{len(corrections)} of the {len(tidied)} paths in {root.file} name no file to the letter and are read as the "
            f"only file that fits ({_differences(corrections)}): {example} as {corrections[example]}."
        )
    lost = [path for path in matches if path not in corrections]
    lost_images = rows["path"].isin(lost)
    if lost:
        where = f"{len(lost)} of the {len(tidied)} files that {root.file} names are not there"
        sentence = _describe_missing(images, lost[0], missing[lost[0]], matches[lost[0]])
        if lost_images.all():
            raise UserError(f"{where}: {sentence} Say with --images which folder the paths are relative to.")
        root.notes.append(f"{where}: {sentence}")
    return rows.assign(**{column: rows[column].map(lambda path: corrections.get(path, path)) for column in columns})


def locate_names(root: DatasetRoot, names: Iterable[str], table: str) -> dict[str, str]:
    """The image that each name in a table means, wherever it is below the root; names of no image are not in it.

    Of several files of a name and of one size the first is taken, with a note; of other sizes: `UserError`.
    """
    names, files = list(dict.fromkeys(names)), root.images()
    matches = {name: fitting for name, fitting in match_paths(names, files).items() if fitting}
    repeated = [fitting for fitting in matches.values() if len(fitting) > 1]
    for fitting in repeated:
        if len({root.file_index[file].get("size") for file in fitting}) > 1:
            raise UserError(
                f"{root.given}: {fitting[0]} and {fitting[1]} may both be the image named in {table}: move one of their "
                "folders away, or give --root a folder with one of them."
            )
    if repeated:
        root.notes.append(
            f"Images that are there more than once, of which the first is read: {len(repeated)}, e.g. {repeated[0][0]} and "
            f"not {repeated[0][1]}."
        )
    if not matches:
        near = nearest_path(names[0], files) if names else ""
        instead = f": {names[0]} is not there, the most similar file is {near}" if near else ""
        raise UserError(f"{root.given} has none of the {len(names)} images named in {table}{instead}.")
    if len(matches) < len(names):
        lost = next(name for name in names if name not in matches)
        root.notes.append(
            f"Images named in {table} that are not there: {len(names) - len(matches)} of {len(names)}, e.g. {lost}."
        )
    paths = {name: fitting[0] for name, fitting in matches.items()}
    if other := [name for name, file in paths.items() if not posixpath.basename(file).startswith(name)]:
        root.notes.append(
            f"Names in {table} that their files spell in another way: {len(other)}, e.g. {other[0]} is read as "
            f"{paths[other[0]]}."
        )
    return paths


def _matches(images: DatasetRoot, tidied: dict[str, str], present: set[str], missing: dict[str, str]) -> Matches:
    """The files that may be meant by each missing path; those that other paths name to the letter are not."""
    homes = {path: [home] for path, name in missing.items() if (home := _expand_home(name))}
    looked_for = {path: name.lstrip("/") for path, name in missing.items() if path not in homes}
    if not looked_for:
        return homes
    inside = [name.removeprefix(f"{images.path}/") for name in present]
    matches = match_paths(
        [*(name for name in inside if name in images.file_index), *looked_for.values()], images.files()
    )
    return homes | {path: matches[name] for path, name in looked_for.items()}


def _expand_home(path: str) -> str:
    """The file that a path with `~` means; "" where there is none."""
    home = Path(path).expanduser() if path.startswith("~/") else Path(path)
    return str(home) if path.startswith("~/") and home.is_file() else ""


def _differences(corrections: dict[str, str]) -> str:
    """In what the paths differ from the files that they are read as."""
    differences = set()
    for path, file in corrections.items():
        name, other = (posixpath.basename(posix_path(text)) for text in (path, file))
        if name != other:
            differences.add(
                "case"
                if casefold_path(name) == casefold_path(other)
                else "ending"
                if strip_image_endings(name) == strip_image_endings(other)
                else "name"
            )
        if posixpath.dirname(posix_path(path)) != posixpath.dirname(file):
            differences.add("folders")
    return ", ".join(sorted(differences))


def _describe_missing(images: DatasetRoot, path: str, name: str, fitting: list[str]) -> str:
    """What was looked for, and what there is instead."""
    expected = images.resolve(name)
    if len(fitting) > 1:
        return f"{path} may be {fitting[0]} or {fitting[1]} below {images.path}."
    pictures = [file for file in images.files() if strip_image_endings(file) != casefold_path(file)]
    near = nearest_path(name, pictures)
    instead = f"the most similar file is {images.resolve(near)}" if near else f"there are no images below {images.path}"
    return f"the first was looked for at {expected}, {instead}."
