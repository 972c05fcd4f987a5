"""Masks among images, by their names: folders such as `lung masks` or `masks`, files such as `x_mask.png` beside `x.png`.

A mask is never an image: it goes to the image that it is of, or the data set is refused with the way out.
"""

import functools
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from clipcovid.config import UserError
from clipcovid.data.sources.matching import strip_image_endings
from clipcovid.data.sources.root import DatasetRoot

IMAGE_FOLDER = re.compile(r"(images?|imgs?)", re.IGNORECASE)
"""Folders that say nothing but that images are in them."""
MASK_WORDS = ("mask", "masks", "seg", "segs", "segmentation", "segmentations", "annotation", "annotations", "gt")
NOT_SEGMENTATION_WORDS = (
    "with",
    "without",
    "no",
    "not",
    "face",
    "wearing",
    "worn",
    "weared",
)  # of photographs of people
MASK_FILE = re.compile(
    r"(?P<base>.+?)[ _.-]+(?:(?P<region>lungs?|infections?|lesions?)[ _.-]*)?masks?|masks?[ _.-]+(?P<rest>.+)",
    re.IGNORECASE,
)
REGIONS = {"lung": "lung_mask", "infection": "infection_mask", "lesion": "infection_mask"}
RADIOGRAPHY_DATABASE_CLASSES = {"covid", "covid-19", "lung_opacity", "normal", "viral pneumonia"}
"""The classes of the COVID-19 Radiography Database, whose masks are of the lungs."""
RENAME_HINT = "call their folder `lung masks` or `infection masks`, give them in a table, or move them away"
Parts = tuple[str, ...]


def separate_masks(root: DatasetRoot, files: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The files that are no masks, and the masks of each by region (`lung_mask`, `infection_mask`).

    Masks without an image are left out, with a note. `UserError` where it is not clear which image a mask is of, or what
    it outlines; and where files beside `images/` have its files' names without being called masks.
    """
    homes = {file: home for file in files if (home := _image_candidates(file))}
    images = [file for file in files if file not in homes]
    _refuse_equal_names(root, images)
    if not homes:
        return images, {}
    index = _index_images(images, {parent for parent, _ in homes.values()})
    masks: dict[str, dict[str, str]] = defaultdict(dict)
    alone = []
    for file, (parent, names) in homes.items():
        fitting = sorted({image for name in names for image in index.get((parent, name), ())})
        inside = [image for image in fitting if any(map(IMAGE_FOLDER.fullmatch, image.split("/")[len(parent) : -1]))]
        fitting = inside if len(fitting) > 1 and inside else fitting
        if len(fitting) > 1:
            raise UserError(f"{root.given}: {file} may be the mask of {fitting[0]} or of {fitting[1]}: {RENAME_HINT}.")
        if not fitting:
            alone.append(file)
            continue
        region = _region(root, file, fitting[0], parent)
        if other := masks[fitting[0]].get(region):
            raise UserError(f"{root.given}: {other} and {file} are both a {region} of {fitting[0]}: move one away.")
        masks[fitting[0]][region] = file
    if not masks:
        raise UserError(
            f"{root.given}: {alone[0]} is called a mask, and is beside no image of its name: {RENAME_HINT}."
        )
    example = next(file for file in homes if file not in alone)
    root.notes.append(f"Files read as masks, by their names: {len(homes) - len(alone)}, e.g. {example}.")
    if alone:
        root.notes.append(
            f"Masks left out, since they are beside no image of their name: {len(alone)}, e.g. {alone[0]}."
        )
    return images, masks


def _image_candidates(file: str) -> tuple[Parts, list[Parts]] | None:
    """The folder below which a mask's image stands, and what it may be called there; None where it is no mask."""
    *folders, name = file.split("/")
    spelled = strip_image_endings(name)
    match = MASK_FILE.fullmatch(spelled)
    bases = [spelled, *([match["base"] or match["rest"]] if match else [])]
    for at in reversed(range(len(folders))):
        if _is_mask_folder(folders[at]):
            below = tuple(
                strip_image_endings(part) for part in folders[at + 1 :] if part.lower().rstrip("s") not in REGIONS
            )
            return tuple(folders[:at]), [(*below, base) for base in bases]
    return (tuple(folders), [(base,) for base in bases[1:]]) if match else None


def _words(name: str) -> list[str]:
    """The words of a name in small letters: of `leftMask` and `left_mask` left and mask."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


@functools.cache
def _is_mask_folder(name: str) -> bool:
    words = _words(name)
    return (
        bool(words)
        and (words[-1] in MASK_WORDS or words[-1] in ("lungmask", "lungmasks", "infectionmasks"))
        and not (set(words) & set(NOT_SEGMENTATION_WORDS))
    )


def _index_images(images: Iterable[str], parents: set[Parts]) -> dict[tuple[Parts, Parts], set[str]]:
    """Images by (a folder of `parents`, their path below it, with or without the first folder)."""
    index = defaultdict(set)
    for image in images:
        folders = tuple(image.split("/")[:-1])
        name = strip_image_endings(posixpath.basename(image))
        for at in range(len(folders) + 1):
            if folders[:at] in parents:
                below = (*map(strip_image_endings, folders[at:]), name)
                index[folders[:at], below].add(image)
                if at < len(folders):
                    index[folders[:at], below[1:]].add(image)
    return index


def _region(root: DatasetRoot, file: str, image: str, parent: Parts) -> str:
    """What a mask outlines, by its folder's or its own name, or as the COVID-19 Radiography Database has it."""
    *folders, name = file.split("/")[len(parent) :]
    match = MASK_FILE.fullmatch(strip_image_endings(name))
    for text in (" ".join(folders), (match["region"] or "") if match else ""):
        regions = {region for start, region in REGIONS.items() if any(word.startswith(start) for word in _words(text))}
        if len(regions) == 1:
            return regions.pop()
    beside_images = IMAGE_FOLDER.fullmatch(image.split("/")[len(parent)]) and folders == ["masks"]
    if beside_images and parent and parent[-1].lower() in RADIOGRAPHY_DATABASE_CLASSES:
        note = "Masks beside the images are read as masks of the lungs, as the COVID-19 Radiography Database has them."
        root.notes.extend([note] if note not in root.notes else [])
        return "lung_mask"
    raise UserError(
        f"{root.given}: {file} is a mask of {image}, but is it of lungs or infections? For all: {RENAME_HINT}."
    )


def _refuse_equal_names(root: DatasetRoot, images: Sequence[str]) -> None:
    """Refuse folders beside `images/` that have files of the same names: masks by another name, or another rendering."""
    split = [tuple(image.split("/")) for image in images]
    parents = {parts[:at] for parts in split for at, name in enumerate(parts[:-1]) if IMAGE_FOLDER.fullmatch(name)}
    folders: dict[Parts, dict[str, set[Parts]]] = defaultdict(lambda: defaultdict(set))
    for parts in split if parents else ():
        for at in range(len(parts) - 1):
            if parts[:at] in parents:
                folders[parts[:at]][parts[at]].add((*parts[at + 1 : -1], strip_image_endings(parts[-1])))
    for parent, inside in folders.items():
        for name in filter(IMAGE_FOLDER.fullmatch, inside):
            for other in inside.keys() - {name}:
                if 2 * len(inside[other] & inside[name]) >= len(inside[other]):
                    folder = "/".join((*parent, other))
                    raise UserError(
                        f"{root.given}: {folder} has files of the same names as {'/'.join((*parent, name))}. If they are "
                        f"masks, {RENAME_HINT}; if not, move one of the folders away."
                    )
