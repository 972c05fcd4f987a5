"""MedPix 2.0."""

import json
import posixpath
import re
from typing import Any

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.locating import locate_names
from clipcovid.data.sources.registry import register_source
from clipcovid.data.sources.root import DatasetRoot
from clipcovid.data.sources.rows import find_table, read_json_lines


@register_source("medpix2")
def medpix2(root: DatasetRoot, columns: ColumnsConfig) -> pd.DataFrame:
    """MedPix 2.0 (Siragusa et al. 2024): `descriptions_<split>.jsonl`, `Case_topic.json` and `images/`."""
    names = sorted({posixpath.basename(path) for path in root.require_folder().files()})
    parts = {name: match[1] for name in names if (match := re.fullmatch(r"descriptions_(\w+)\.jsonl", name))}
    if not parts:
        raise UserError(f"{root.given} has no descriptions_<split>.jsonl: is it the folder of MedPix 2.0?")
    listed = [
        (split, row)
        for name, split in parts.items()
        for row in read_json_lines(root, find_table(root, re.escape(name)), required=("U_id", "image", "Type"))
    ]
    paths = locate_names(root, [row["image"] for _, row in listed], "descriptions_<split>.jsonl")
    topics = _topics(root)
    rows = []
    for split, row in listed:
        what, case = row.get("Description") or {}, topics.get(row["U_id"], {})
        rows.append(
            {
                "path": paths.get(row["image"], f"images/{row['image']}.png"),  # missing: quarantined
                "label": row["Type"],
                "patient_id": row["U_id"],
                "split": split,
                "view": what.get("Plane"),
                "caption": what.get("Caption"),
                "modality": what.get("Modality"),
                "location": row.get("Location"),
                "location_category": row.get("Location Category"),
                "age": what.get("Age"),
                "sex": what.get("Sex"),
                "title": case.get("Title"),
                "diagnosis": case.get("Case Diagnosis"),
            }
        )
    types = ", ".join(sorted({str(row["Type"]) for _, row in listed}))
    root.notes.append(f"The class of an image is its Type ({types}), not the diagnosis, which is a column of its own.")
    return pd.DataFrame(rows, dtype=object)


def _topics(root: DatasetRoot) -> dict[str, dict[str, Any]]:
    """Title and diagnosis of each case; none where their file is not there."""
    path = find_table(root, r"Case_topic\.json")
    if not path:
        root.notes.append("There is no Case_topic.json: titles and diagnoses are not known.")
        return {}
    text = root.read_text(path)
    try:
        return {case["U_id"]: case.get("Case") or {} for case in json.loads(text)}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{root.given}: {path} is not a JSON list of cases with their U_id.") from None
