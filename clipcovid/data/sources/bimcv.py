"""BIMCV-COVID19+ and BIMCV-COVID19- (de la Iglesia Vayá et al. 2020): Valencian X-rays in the layout of BIDS."""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.images import MONOCHROME1
from clipcovid.data.manifest import INVERTED
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.registry import register_source
from clipcovid.data.sources.root import DatasetRoot
from clipcovid.io.csv_rows import read_csv
from clipcovid.io.tables import cell_text, is_missing

IMAGE = re.compile(r"(?:.*/)?sub-(?P<patient>[^/_]+)/(?P<study>ses-[^/_]+)/mod-rx/(?P<name>[^/]+)\.png", re.IGNORECASE)
LABEL_TABLE = re.compile(r"labels_(covid|sars).*\.tsv", re.IGNORECASE)
TEST_TABLE = re.compile(r"sil_reg_covid.*\.(tsv|txt)", re.IGNORECASE)
NEGATIVE_PART = re.compile(r"neg|bimcv-(covid-?19-)?(/|$)", re.IGNORECASE)  # in the path of a table or a folder
POSITIVE_SOURCE, NEGATIVE_SOURCE = "BIMCV-COVID19+", "BIMCV-COVID19-"
COVID, UNCERTAIN, NORMAL = "covid 19", "covid 19 uncertain", "normal"
PNEUMONIA = frozenset(("pneumonia", "viral pneumonia", "atypical pneumonia"))
TEST_WINDOW = 14  # days before or after a study in which a positive test counts for it
VIEWS = {"pa": "PA", "ap": "AP", "ll": "LATERAL", "lat": "LATERAL", "l": "LATERAL", "lateral": "LATERAL"}
DESCRIBED_VIEWS = (  # what a series description says of the view, in this order
    (r"PA Y LAT|PA O AP", ""),
    (r"\bLAT", "LATERAL"),
    (r"\bPA\b", "PA"),
    (r"\bAP\b|PORTATIL|PORTÁTIL|SUPIN", "AP"),
)
MODALITY, MANUFACTURER, SEX, AGE = "00080060", "00080070", "00100040", "00101010"
STUDY_DATE, VIEW_POSITION, SERIES_DESCRIPTION, PHOTOMETRIC = "00080020", "00185101", "0008103E", "00280004"


@dataclass(frozen=True, kw_only=True)
class _Study:
    """What the label table says of a study."""

    findings: tuple[str, ...] = ()
    """In small letters."""
    report: str = ""
    source: str = ""


@dataclass(frozen=True)
class _Tables:
    """What the tables of the data set say."""

    studies: dict[str, _Study] = field(default_factory=dict)
    """By session."""
    dates: dict[str, str] = field(default_factory=dict)
    """Session → day of the study, YYYYMMDD."""
    positives: dict[str, list[str]] = field(default_factory=dict)
    """Patient → days of positive tests, YYYYMMDD; "" for an unknown day."""
    tested: frozenset[str] = frozenset()
    """Patients with any test."""
    people: dict[str, dict[str, str]] = field(default_factory=dict)
    """Patient → age and sex."""


@register_source("bimcv")
def bimcv(root: DatasetRoot, columns: ColumnsConfig) -> pd.DataFrame:
    """BIMCV-COVID19+ and -: `sub-S…/ses-E…/mod-rx/*.png` at any depth, with JSON sidecars, label, test and session tables.

    A study is COVID-19 where its report names COVID 19, or pneumonia near a positive test, Non-COVID where it names pneumonia
    and Normal where it names nothing, of patients without a positive test. Lateral views are left out.
    """
    images = [
        (path, match)
        for path in root.require_folder().images()
        if (match := IMAGE.fullmatch(path)) and "derivatives" not in path.split("/")
    ]
    if not images:
        raise UserError(
            f"{root.given} has no images in sub-…/ses-…/mod-rx/: is it the folder of BIMCV-COVID19+ or -, unpacked?"
        )
    known, seen = _read_tables(root), Counter[str]()
    rows = [row for path, match in images if (row := _row(root, path, match, known, seen))]
    if not rows:
        raise UserError(f"{root.given} has {len(images):,} images, and none is a frontal X-ray of the chest.")
    table = pd.DataFrame(rows, dtype=object)
    root.notes += [*_assumptions(seen), _class_note(table)]
    return table


def _row(
    root: DatasetRoot, path: str, match: re.Match[str], known: _Tables, seen: Counter[str]
) -> dict[str, str] | None:
    """An image's row; None for what is no frontal chest X-ray. `seen` counts what is left out or assumed."""
    patient, study, name = match["patient"], match["study"], match["name"]
    tags = _read_sidecar(root, path, seen)
    if (part := re.search(r"_bp-([a-z]+)", name, re.IGNORECASE)) and part[1].lower() not in (
        "chest",
        "thorax",
        "torax",
    ):
        seen["other"] += 1
        return None
    if (view := _view(name, tags, seen)) == "LATERAL":
        seen["lateral"] += 1
        return None
    seen["no view"] += not view
    facts = known.studies.get(study, _Study())
    source = facts.source or (NEGATIVE_SOURCE if NEGATIVE_PART.search(posixpath.dirname(path)) else POSITIVE_SOURCE)
    days = known.positives.get(patient, [])
    near = any(_days_apart(known.dates.get(study) or tags.get(STUDY_DATE, ""), day) <= TEST_WINDOW for day in days)
    seen["inverted"] += (inverted := tags.get(PHOTOMETRIC, "") == MONOCHROME1)
    person = known.people.get(patient, {})
    return {
        "path": path,
        "label": _class_of(set(facts.findings), positive=bool(days) or source == POSITIVE_SOURCE, near=near),
        "patient_id": patient,
        "source": source,
        "view": view,
        "caption": facts.report,
        "study": study,
        "findings": "|".join(facts.findings),
        "test": "positive" if days else "negative" if patient in known.tested else "",
        "age": person.get("age") or tags.get(AGE, "").rstrip("Yy").lstrip("0"),
        "sex": person.get("sex") or tags.get(SEX, ""),
        "modality": tags.get(MODALITY) or name.rpartition("_")[2].partition("-")[0].upper(),
        "manufacturer": tags.get(MANUFACTURER, ""),
        INVERTED: MONOCHROME1 if inverted else "",
    }


def _class_of(findings: set[str], *, positive: bool, near: bool) -> str:
    """The class of a study, "" for none. `positive`: of a patient with a positive test; `near`: near that test."""
    if positive and (COVID in findings or (near and findings & {UNCERTAIN, *PNEUMONIA})):
        return "COVID-19"
    if not positive and findings & PNEUMONIA and not findings & {COVID, UNCERTAIN}:
        return "Non-COVID"
    return "Normal" if not positive and findings == {NORMAL} else ""


def _class_note(table: pd.DataFrame) -> str:
    counts = table["label"].value_counts()
    note = (
        f"Classes are made of findings and tests, study by study: COVID-19 ({counts.get('COVID-19', 0):,} images) where the "
        f"patient has tested positive and the report names COVID 19, or pneumonia within {TEST_WINDOW} days of a positive "
        f"test; Non-COVID ({counts.get('Non-COVID', 0):,}) where it names {', '.join(sorted(PNEUMONIA))}, and Normal "
        f"({counts.get('Normal', 0):,}) where it names normal alone, of patients without a positive test; the other "
        f"{counts.get('', 0):,} have no label."
    )
    if set(table["source"]) == {POSITIVE_SOURCE}:
        note += (
            f" All are of {POSITIVE_SOURCE}, which has no other class: unpack {NEGATIVE_SOURCE} beside it for those."
        )
    return note


def _assumptions(seen: Counter[str]) -> list[str]:
    """A sentence for each thing that was left out or assumed of images."""
    sentences = {
        "other": "images are of other parts than the chest, and are left out",
        "lateral": "images are lateral views, and are left out",
        "renamed": "images are lateral views by the description of their series, and frontal by their names: the description "
        "is taken",
        "no view": "images do not say their view, and are taken as frontal",
        "no sidecar": "images have no JSON sidecar, or none that can be read: maker, age and inversion are not known of them",
        "inverted": "images are inverted by their sidecars (MONOCHROME1), and are turned back",
    }
    return [f"{seen[key]:,} {sentence}." for key, sentence in sentences.items() if seen[key]]


def _view(name: str, tags: dict[str, str], seen: Counter[str]) -> str:
    """PA, AP, LATERAL, or "" where neither the name nor the sidecar says it."""
    in_name = re.search(r"_vp-([a-z]+)", name, re.IGNORECASE)
    named = VIEWS.get(in_name[1].lower() if in_name else "", "") or VIEWS.get(tags.get(VIEW_POSITION, "").lower(), "")
    description = tags.get(SERIES_DESCRIPTION, "").upper()
    described = next((view for words, view in DESCRIBED_VIEWS if re.search(words, description)), "")
    if described == "LATERAL" and named in ("PA", "AP"):
        seen["renamed"] += 1
        return described
    return named or described


def _read_sidecar(root: DatasetRoot, path: str, seen: Counter[str]) -> dict[str, str]:
    """Tag → its first value, of the DICOM header that is beside an image as JSON; {} where there is none."""
    beside = f"{posixpath.splitext(path)[0]}.json"
    try:
        header = json.loads(root.read_text(beside)) if beside in root.file_index else None
    except (ValueError, UserError):
        header = None
    if not isinstance(header, dict):
        seen["no sidecar"] += 1
        return {}
    return {tag: value for tag, element in header.items() if (value := _first_value(element))}


def _first_value(element: Any) -> str:
    values = element.get("Value") if isinstance(element, dict) else None
    return (
        cell_text(values[0]) if isinstance(values, list) and values and not isinstance(values[0], dict | list) else ""
    )


def _read_tables(root: DatasetRoot) -> _Tables:
    """All label, session, test and participant tables below the root; without a label table there are no classes."""
    known, tested, again = _Tables(), set[str](), 0
    for path, row in _rows(root, LABEL_TABLE, "PatientID", "ReportID", "Labels"):
        source = NEGATIVE_SOURCE if NEGATIVE_PART.search(path) else POSITIVE_SOURCE
        findings = tuple(dict.fromkeys(" ".join(name.lower().split()) for name in parse_list(row["Labels"])))
        report = " ".join(parse_list(row.get("Report", "")))
        study = _Study(findings=findings, report=report, source=source)
        again += known.studies.setdefault(row["ReportID"], study).findings != findings
        known.studies[row["ReportID"]] = study
    for _, row in _rows(root, re.compile(r"sub-.*_sessions\.tsv"), "session_id", "study_date"):
        known.dates[row["session_id"]] = row["study_date"].partition(".")[0]
    for _, row in _rows(root, TEST_TABLE, "participant", "date", "result"):
        patient = row["participant"].removeprefix("sub-")
        tested.add(patient)
        if row["result"].upper() == "POSITIVO":
            known.positives.setdefault(patient, []).append("".join(reversed(row["date"].split("."))))
    for _, row in _rows(root, re.compile(r"participants\.tsv"), "participant"):
        ages = re.findall(r"\d+", row.get("age", ""))
        sex = row.get("gender", "") if row.get("gender", "") in ("M", "F") else ""
        known.people[row["participant"].removeprefix("sub-")] = {"age": ages[0] if ages else "", "sex": sex}
    if again:
        root.notes.append(f"{again:,} studies have other findings in a later label table: those of the last are taken.")
    if not known.studies:
        root.notes.append("There is no table labels_covid….tsv (derivatives/labels): no image has a class.")
    if not tested:
        root.notes.append("There is no table sil_reg_covid….tsv (derivatives/EHR): tests are not known.")
    return _Tables(known.studies, known.dates, known.positives, frozenset(tested), known.people)


def _rows(root: DatasetRoot, name: re.Pattern[str], *needed: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The path and the rows of all tables of a name, as text; one without a needed column is a `UserError`."""
    for path in (path for path in root.files() if name.fullmatch(posixpath.basename(path))):
        rows = read_csv(root.read_text(path), f"{root.given}/{path}", root.notes, tab_separated=True)
        if missing := [column for column in needed if column not in rows]:
            raise UserError(f"{root.given}/{path} lacks the columns {', '.join(missing)}.")
        for row in rows.to_dict("records"):
            yield path, {str(key): cell_text(cell) for key, cell in row.items()}


def parse_list(text: str) -> list[str]:
    """The texts of a list as these tables write them, `['COVID 19', 'pneumonia']`, by commas or tabs, with quotes or not."""
    quoted = [first or second for first, second in re.findall(r"'([^']*)'|\"([^\"]*)\"", text)]
    values = quoted or re.split(r"[\t,]", text.strip("[] "))
    return [value.strip() for value in values if not is_missing(value)]


def _days_apart(one: str, other: str) -> float:
    """Days between two days (YYYYMMDD); infinite where one is not known."""
    try:
        days = [datetime.strptime(day, "%Y%m%d") for day in (one, other)]
    except ValueError:
        return float("inf")
    return abs((days[0] - days[1]).days)
