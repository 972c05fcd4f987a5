"""NIH ChestX-ray14."""

import posixpath
import re
from typing import Any

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.registry import source
from clipcovid.data.sources.root import Root
from clipcovid.data.sources.rows import needed_rows

NIH_LABELS = {"No Finding": "Normal"}


@source("nih14")
def nih14(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """NIH ChestX-ray14 (Wang et al. 2017): `Data_Entry_2017*.csv`, `BBox_List_2017.csv`, `test_list.txt`, images anywhere.

    The rule from its findings to our classes: `No Finding` alone is Normal, `Pneumonia` with whatever else is Non-COVID,
    and all others have no label; `findings` keeps them as they are. Images of `test_list.txt` are test, the others are
    split by patient. Only what is on disk is listed: the archive comes in twelve parts.
    """
    places = {posixpath.basename(path): path for path in root.folder().images()}
    tables = {posixpath.basename(path): path for path in root.files()}
    entries = [path for name, path in tables.items() if re.fullmatch(r"Data_Entry_2017.*\.csv", name)]
    if not entries:
        raise UserError(f"{root.given} has no Data_Entry_2017.csv: is it the folder of NIH ChestX-ray14?")
    rows = needed_rows(root, entries[0], {"Image Index", "Finding Labels", "Patient ID", "View Position"})
    rows = rows[rows["Image Index"].isin(list(places))]
    tested = set(root.read_text(tables["test_list.txt"]).split()) if "test_list.txt" in tables else set()
    boxes: dict[str, list[dict[str, Any]]] = {}
    if "BBox_List_2017.csv" in tables:
        listed = needed_rows(
            root, tables["BBox_List_2017.csv"], {"Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"}
        )
        for image, finding, *sides in listed[["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]].to_numpy():
            x, y, width, height = map(float, sides)
            boxes.setdefault(image, []).append({"label": finding, "x": x, "y": y, "width": width, "height": height})
    found = rows["Finding Labels"].str.split("|")
    return pd.DataFrame(
        {
            "path": rows["Image Index"].map(places),
            "label": found.map(
                lambda names: "Non-COVID" if "Pneumonia" in names else NIH_LABELS.get("|".join(names), "")
            ),
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
