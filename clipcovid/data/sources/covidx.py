"""The lists of COVIDx (Wang et al. 2020): text files with a line an image, `patient file class [source]`."""

import posixpath
import re

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import SPLIT_ALIASES
from clipcovid.data.sources.root import IMAGE_ENDINGS, DatasetRoot

LIST_NAME = re.compile(rf"({'|'.join(SPLIT_ALIASES)})(?![a-z]).*\.txt", re.IGNORECASE)  # train_COVIDx9A.txt, test.txt
LIST_LINE = re.compile(
    rf"(?P<patient_id>\S+)\s+(?P<path>\S.*?(?:{'|'.join(map(re.escape, sorted(IMAGE_ENDINGS)))}))"
    r"\s+(?P<label>\S+)(?:\s+(?P<source>\S+))?",
    re.IGNORECASE,
)


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
