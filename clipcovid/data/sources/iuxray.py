"""Indiana University's chest X-rays with their reports (OpenI)."""

import posixpath
import xml.etree.ElementTree as ElementTree

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.registry import source
from clipcovid.data.sources.root import Root
from clipcovid.data.sources.rows import needed_rows


@source("iuxray")
def iuxray(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """Indiana University chest X-rays (OpenI, Demner-Fushman et al. 2016): the XML reports, or Kaggle's two CSV files.

    The caption is the report's findings and impression. Reports indexed as `normal` alone are Normal, all others have no
    label; a report's images are of one patient. Images are found by their names, wherever they are.
    """
    places: dict[str, str] = {}
    for path in root.folder().images():
        name = posixpath.splitext(posixpath.basename(path))[0]
        places.setdefault(name, path)
        places.setdefault(name.removesuffix(".dcm"), path)  # Kaggle's are called 1_IM-0001-4001.dcm.png
    tables = {posixpath.basename(path): path for path in root.files()}
    reports: dict[str, dict[str, str]] = {}
    images: list[tuple[str, str, str]] = []  # report, image, view
    if "indiana_reports.csv" in tables and "indiana_projections.csv" in tables:
        said = needed_rows(root, tables["indiana_reports.csv"], {"uid", "MeSH", "findings", "impression"})
        for row in said.to_dict("records"):
            reports[row["uid"]] = {name: row[name] for name in ("findings", "impression", "MeSH")}
        listed = needed_rows(root, tables["indiana_projections.csv"], {"uid", "filename", "projection"})
        for row in listed.to_dict("records"):
            images.append((row["uid"], posixpath.splitext(row["filename"])[0], row["projection"]))
    else:
        for path in (path for path in root.files() if path.endswith(".xml")):
            report, there = _openi(root.read_text(path), path)
            reports[path] = report
            images += [(path, name, "") for name in there]
    if not images:
        raise UserError(
            f"{root.given} has neither OpenI's XML reports nor indiana_reports.csv and indiana_projections.csv."
        )
    rows = []
    for uid, name, view in images:
        report = reports.get(uid, {})
        text = [part.strip() for part in (report.get("findings", ""), report.get("impression", "")) if part.strip()]
        place = places.get(name, places.get(name.removesuffix(".dcm"), f"{name}.png"))
        about = {"findings": report.get("findings", ""), "impression": report.get("impression", "")}
        label = "Normal" if report.get("MeSH", "").strip().lower() == "normal" else ""
        rows.append(
            {"path": place, "label": label, "patient_id": posixpath.splitext(posixpath.basename(uid))[0], "view": view}
            | {"caption": " ".join(text), "mesh": report.get("MeSH", "")}
            | about
        )
    return pd.DataFrame(rows, dtype=object)


def _openi(text: str, path: str) -> tuple[dict[str, str], list[str]]:
    """Findings, impression and MeSH terms of an OpenI report, and the names of its images."""
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not valid XML ({error}).") from None
    sections = {
        node.get("Label", "").lower(): " ".join("".join(node.itertext()).split()) for node in tree.iter("AbstractText")
    }
    terms = ";".join((node.text or "").strip() for node in tree.iter("major"))
    report = {"findings": sections.get("findings", ""), "impression": sections.get("impression", ""), "MeSH": terms}
    return report, [node.get("id", "") for node in tree.iter("parentImage")]
