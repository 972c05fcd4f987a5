"""NIH ChestX-ray14."""

from typing import Any

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.locating import locate_names
from clipcovid.data.sources.registry import register_source
from clipcovid.data.sources.root import DatasetRoot
from clipcovid.data.sources.rows import find_table, read_required_rows

NIH_LABELS = {"No Finding": "Normal"}


@register_source("nih14")
def nih14(root: DatasetRoot, columns: ColumnsConfig) -> pd.DataFrame:
    """NIH ChestX-ray14 (Wang et al. 2017): `Data_Entry_2017*.csv`, `BBox_List_2017.csv`, `test_list.txt`, images anywhere.

    The rule from its findings to our classes: `No Finding` alone is Normal, `Pneumonia` with whatever else is Non-COVID,
    and all others have no label; `findings` keeps them as they are. Images of `test_list.txt` are test, the others are
    split by patient. Only what is on disk is listed: the archive comes in twelve parts.
    """
    entries = find_table(root.require_folder(), r"Data_Entry_2017.*\.csv")
    if not entries:
        raise UserError(f"{root.given} has no Data_Entry_2017.csv: is it the folder of NIH ChestX-ray14?")
    rows = read_required_rows(root, entries, {"Image Index", "Finding Labels", "Patient ID", "View Position"})
    paths = locate_names(root, rows["Image Index"], entries)
    rows = rows[rows["Image Index"].isin(list(paths))]
    tests = find_table(root, r"test_list\.txt")
    tested = set(root.read_text(tests).split()) if tests else set()
    if not tests:
        root.notes.append("There is no test_list.txt: the official test split is not used.")
    boxes = _boxes(root)
    findings = rows["Finding Labels"].str.split("|")
    labels = findings.map(lambda names: "Non-COVID" if "Pneumonia" in names else NIH_LABELS.get("|".join(names), ""))
    counts = labels.value_counts()
    root.notes.append(
        f"Findings are read as classes: No Finding alone as Normal ({counts.get('Normal', 0):,} images), Pneumonia with "
        f"whatever else as Non-COVID ({counts.get('Non-COVID', 0):,}); {counts.get('', 0):,} images with other findings "
        "have no label."
    )
    return pd.DataFrame(
        {
            "path": rows["Image Index"].map(paths),
            "label": labels,
            "patient_id": rows["Patient ID"],
            "split": ["test" if image in tested else "" for image in rows["Image Index"]],
            "view": rows["View Position"],
            "boxes": [boxes.get(image, "") for image in rows["Image Index"]],
            "findings": rows["Finding Labels"],
            "age": rows.get("Patient Age", ""),
            "sex": rows.get("Patient Gender", rows.get("Patient Sex", "")),
        },
        dtype=object,
    )


def _boxes(root: DatasetRoot) -> dict[str, list[dict[str, Any]]]:
    """The boxes of each image; none where the table of boxes is not there."""
    boxes: dict[str, list[dict[str, Any]]] = {}
    if table := find_table(root, r"BBox_List_2017\.csv"):
        columns = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
        for image, finding, *sides in read_required_rows(root, table, set(columns))[columns].to_numpy():
            x, y, width, height = map(float, sides)
            boxes.setdefault(image, []).append({"label": finding, "x": x, "y": y, "width": width, "height": height})
    return boxes
