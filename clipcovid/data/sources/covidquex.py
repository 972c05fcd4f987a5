"""COVID-QU-Ex: its layout, and how the rows of its parts become one."""

import posixpath
from collections import defaultdict

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import MASK_COLUMNS, SPLIT_ALIASES
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.matching import strip_image_endings
from clipcovid.data.sources.registry import PART_COLUMN, register_source
from clipcovid.data.sources.root import DatasetRoot
from clipcovid.data.splits import strictest_split
from clipcovid.prompts import CLASSES


@register_source("covidquex")
def covidquex(root: DatasetRoot, columns: ColumnsConfig) -> pd.DataFrame:
    """COVID-QU-Ex (Tahir et al. 2021): `[part/[part/]]<Split>/<Class>/{images,lung masks,infection masks}/name.png`."""
    files = root.require_folder().images()
    paths_by_stem: dict[str, list[str]] = defaultdict(list)
    for path in files:
        paths_by_stem[strip_image_endings(path)].append(path)
    class_names = {name.lower(): name for name in CLASSES}
    rows = []
    for path in files:
        parts = path.split("/")
        if len(parts) < 4 or parts[-2].lower() != "images" or parts[-4].lower() not in SPLIT_ALIASES:
            continue
        row = {
            "path": path,
            "label": class_names.get(parts[-3].lower(), parts[-3]),
            "split": parts[-4],
            PART_COLUMN: "/".join(parts[:-4]),
        }
        for kind in MASK_COLUMNS:
            beside = "/".join([*parts[:-2], kind.replace("_", " ") + "s", parts[-1]])
            fitting = paths_by_stem.get(strip_image_endings(beside), [])
            if len(fitting) > 1:
                raise UserError(f"{root.given}: {' and '.join(fitting)} are both the {kind} of {path}: move one away.")
            row[kind] = "".join(fitting)
        rows.append(row)
    if not rows:
        raise UserError(
            f"{root.given} is not laid out as COVID-QU-Ex (<Split>/<Class>/images/…, with masks in `lung masks` and "
            f"`infection masks` beside images). {_suggestion(root, files)}"
        )
    table = pd.DataFrame(rows)
    if apart := sorted(set(files) - set(table[["path", *MASK_COLUMNS]].to_numpy().ravel())):
        root.notes.append(
            f"Images left out, which are neither in <Split>/<Class>/images nor masks of such: {len(apart)}, e.g. {apart[0]}."
        )
    return table


def _suggestion(root: DatasetRoot, files: list[str]) -> str:
    """Where the layout may be, or which source reads this one."""
    folder = posixpath.basename(root.path)
    if any(path.lower().split("/")[1:2] == ["images"] for path in files) and folder.lower() in SPLIT_ALIASES:
        return f"{folder} is one of its splits: give the folder that {folder} is in."
    return "A folder per class, with or without masks beside the images, is --source imagefolder."


def merge_parts(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Make one row of the rows of different parts that show the same pixels (`sha256`) under the same label.

    The first part's row stays, takes the masks that it lacks from the others, and the strictest of their splits.
    Returns the table and counts: `merged` rows that went into another, `moved` images whose rows had different splits.
    """
    hashed = table[table["sha256"] != ""]
    nth = hashed.groupby(["sha256", "label", PART_COLUMN]).cumcount()  # a part's own duplicates stay apart
    key = hashed.groupby([hashed["sha256"], hashed["label"], nth]).ngroup().reindex(table.index)
    key = key.fillna(pd.Series(-1.0 - np.arange(len(table)), index=table.index))
    moved = int((table.groupby(key)["split"].nunique() > 1).sum())
    masks = {kind: table[kind].where(table[kind] != "") for kind in MASK_COLUMNS}  # "first" passes over missing ones
    merged = table.assign(**masks).groupby(key, sort=False).agg("first").fillna(dict.fromkeys(MASK_COLUMNS, ""))
    merged["split"] = strictest_split(table["split"], key)
    return merged.reset_index(drop=True), {"merged": len(table) - len(merged), "moved": moved}
