"""Indiana University's chest X-rays with their reports (OpenI)."""

import posixpath
import xml.etree.ElementTree as ElementTree

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.locating import locate_names
from clipcovid.data.sources.registry import register_source
from clipcovid.data.sources.root import DatasetRoot
from clipcovid.data.sources.rows import find_table, read_required_rows


@register_source("iuxray")
def iuxray(root: DatasetRoot, columns: ColumnsConfig) -> pd.DataFrame:
    """Indiana University chest X-rays (OpenI, Demner-Fushman et al. 2016): the XML reports, or Kaggle's two CSV files.

    The caption is the report's findings and impression. Reports indexed as `normal` alone are Normal, all others have no
    label; a report's images are of one patient. Images are found by their names, wherever they are.
    """
    reports, images = _kaggle(root.require_folder()) or _openi_files(root)
    if not images:
        raise UserError(
            f"{root.given} has neither OpenI's XML reports nor indiana_reports.csv and indiana_projections.csv."
        )
    paths = locate_names(root, [name for _, name, _ in images], "the reports")
    if unknown := sum(uid not in reports for uid, _, _ in images):
        root.notes.append(f"Images without a report, and so without a caption and a label: {unknown}.")
    rows = []
    for uid, name, view in images:
        report = reports.get(uid, {})
        text = [part.strip() for part in (report.get("findings", ""), report.get("impression", "")) if part.strip()]
        texts = {"findings": report.get("findings", ""), "impression": report.get("impression", "")}
        label = "Normal" if report.get("MeSH", "").strip().lower() == "normal" else ""
        path = paths.get(name, name if posixpath.splitext(name)[1] else f"{name}.png")  # missing: quarantined
        rows.append(
            {"path": path, "label": label, "patient_id": posixpath.splitext(posixpath.basename(uid))[0], "view": view}
            | {"caption": " ".join(text), "mesh": report.get("MeSH", "")}
            | texts
        )
    return pd.DataFrame(rows, dtype=object)


Reports = dict[str, dict[str, str]]
Images = list[tuple[str, str, str]]


def _kaggle(root: DatasetRoot) -> tuple[Reports, Images] | None:
    """The reports and the images (report, name, view) of Kaggle's tables; None where they are not there."""
    tables = [find_table(root, name) for name in (r"indiana_reports\.csv", r"indiana_projections\.csv")]
    if not all(tables):
        return None
    report_rows = read_required_rows(root, tables[0], {"uid", "MeSH", "findings", "impression"}).drop_duplicates()
    if (again := report_rows["uid"].duplicated()).any():
        raise UserError(
            f"{root.given}/{tables[0]} has two reports with the uid {report_rows.loc[again, 'uid'].iloc[0]}: keep one of "
            "them."
        )
    reports = {
        row["uid"]: {name: row[name] for name in ("findings", "impression", "MeSH")}
        for row in report_rows.to_dict("records")
    }
    listed = read_required_rows(root, tables[1], {"uid", "filename", "projection"}).to_dict("records")
    return reports, [(row["uid"], row["filename"], row["projection"]) for row in listed]


def _openi_files(root: DatasetRoot) -> tuple[Reports, Images]:
    """The reports and the images (report, name, no view) of OpenI's XML files."""
    reports: Reports = {}
    images: Images = []
    for path in (path for path in root.files() if path.lower().endswith(".xml")):
        reports[path], names = _openi(root.read_text(path), path)
        images += [(path, name, "") for name in names]
    if bare := len(reports) - len({path for path, _, _ in images}):
        root.notes.append(f"Reports without images, left out: {bare}.")
    return reports, images


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
