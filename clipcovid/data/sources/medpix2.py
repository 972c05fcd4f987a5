"""MedPix 2.0."""

import json
import posixpath
import re

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.registry import source
from clipcovid.data.sources.root import Root
from clipcovid.data.sources.rows import json_lines


@source("medpix2")
def medpix2(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """MedPix 2.0 (Siragusa et al. 2024): `descriptions_<split>.jsonl`, `Case_topic.json` and `images/`."""
    files = root.folder().files()
    places = {posixpath.splitext(posixpath.basename(path))[0]: path for path in root.images()}
    topics = {}
    for path in files:
        if posixpath.basename(path) == "Case_topic.json":
            try:
                topics = {case["U_id"]: case.get("Case") or {} for case in json.loads(root.read_text(path))}
            except (ValueError, LookupError, TypeError, AttributeError):
                raise UserError(f"{root.given}: {path} is not a JSON list of cases with their U_id.") from None
    rows = []
    for path in files:
        if not (match := re.fullmatch(r"descriptions_(\w+)\.jsonl", posixpath.basename(path))):
            continue
        for row in json_lines(root, path, needed=("U_id", "image", "Type")):
            what, case = row.get("Description") or {}, topics.get(row["U_id"], {})
            rows.append(
                {
                    "path": places.get(row["image"], f"images/{row['image']}.png"),
                    "label": row["Type"],
                    "patient_id": row["U_id"],
                    "split": match[1],
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
    if not rows:
        raise UserError(f"{root.given} has no descriptions_<split>.jsonl: is it the folder of MedPix 2.0?")
    return pd.DataFrame(rows, dtype=object)
