"""Patients in several splits, in several data sets, of several classes; and those that nobody knows."""

import pandas as pd

from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import AuditData, PreparedSet
from clipcovid.data.manifest import SPLITS
from clipcovid.data.patients import normalize_id, patient_warnings
from clipcovid.evaluate.number_format import agree, format_count
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report.findings import ExampleSheet, Finding

MAX_ROWS = 20  # patients that a table lists
MAX_SHEETS, MAX_IMAGES = 3, 6  # of examples


def check_patients(data: AuditData, config: AuditConfig) -> list[Finding]:
    """Findings on patients across splits and data sets, on unknown patients, and on how their ids are written."""
    findings = [*_across_splits(data.main), *_unknown(data.main), *_several_classes(data.main)]
    findings += [
        Finding(
            check="patient ids",
            severity="medium",
            summary=f"{warning[0].upper()}{warning[1:]}",
            advice="Correct the patient ids in the data set's table, and prepare it again.",
        )
        for warning in patient_warnings(data.main.table["patient_id"])
    ]
    return [*findings, *(finding for other in data.others for finding in _across_sets(data.main, other))]


def _across_splits(part: PreparedSet) -> list[Finding]:
    known = part.table[part.table["patient_id"] != ""]
    if known.empty:
        return []  # said by `_unknown`
    counts = known.groupby(["patient_id", "split"]).size().unstack(fill_value=0).reindex(columns=SPLITS, fill_value=0)
    leaking = counts[(counts > 0).sum(axis=1) > 1]
    trained = leaking.index[leaking["train"] > 0]
    held_out = known["patient_id"].isin(trained) & (known["split"] != "train")
    patients, images, held = len(counts), len(known), int(held_out.sum())
    numbers = {
        "patients": patients,
        "images_of_known_patients": images,
        "patients_across_splits": len(leaking),
        "held_out_images_of_training_patients": held,
    }
    if leaking.empty:
        summary = f"{format_count(patients, 'known patient')} ({format_count(images, 'image')}) "
        summary += f"{agree(patients, 'is', 'are each')} in one split."
        return [
            Finding(
                check="patients across splits", severity="info", summary=summary, advice="Nothing.", numbers=numbers
            )
        ]
    rows = [(str(name), *map(str, row)) for name, row in leaking.head(MAX_ROWS).iterrows()]
    return [
        Finding(
            check="patients across splits",
            severity="high",
            summary=f"{len(leaking):,} of {format_count(patients, 'patient')} {agree(len(leaking), 'is', 'are')} in several "
            f"splits: {format_count(held, 'image')} of val and test {agree(held, 'is', 'are')} of patients who are in train, "
            "too.",
            advice="Prepare the set again with --resplit, which keeps patients together.",
            numbers=numbers,
            tables=(TextTable(title=_title("Patients", len(leaking)), headers=("patient", *SPLITS), sections=[rows]),),
            examples=_sheets(part, leaking.index),
        )
    ]


def _unknown(part: PreparedSet) -> list[Finding]:
    unknown, count = int((part.table["patient_id"] == "").sum()), len(part.table)
    if not unknown:
        return []
    several = part.table.loc[part.table["patient_id"] == "", "split"].nunique() > 1
    return [
        Finding(
            check="unknown patients",
            severity="medium" if several else "low",
            summary=f"{unknown:,} of {format_count(count, 'image')} {agree(unknown, 'has', 'have')} no patient id"
            + (": whether one patient's images are in several splits is not known." if several else "."),
            advice="Find the patients (--columns.patient-id names the column of a table that has them); till then, "
            "intervals and splits take each image for a patient.",
            numbers={"images_without_patient": unknown, "images": count},
        )
    ]


def _several_classes(part: PreparedSet) -> list[Finding]:
    known = part.table[(part.table["patient_id"] != "") & (part.table["label"] != "")]
    classes = known.groupby("patient_id")["label"].agg(lambda labels: sorted(set(labels)))
    mixed = classes[classes.map(len) > 1]
    if mixed.empty:
        return []
    combinations = mixed.map(", ".join).value_counts()
    rows = [(str(name), f"{count:,}") for name, count in combinations.items()]
    return [
        Finding(
            check="patients of several classes",
            severity="low",
            summary=f"{len(mixed):,} of {format_count(len(classes), 'patient')} {agree(len(mixed), 'has', 'have')} images of "
            "several classes.",
            advice="This may be right (a disease begins or heals); if not, correct the labels.",
            numbers={"patients_of_several_classes": len(mixed), "classes": combinations.to_dict()},
            tables=(TextTable(headers=("classes", "patients"), sections=[rows]),),
            examples=_sheets(part, mixed.index),
        )
    ]


def _across_sets(main: PreparedSet, other: PreparedSet) -> list[Finding]:
    keys = [part.table["patient_id"].map(lambda name: normalize_id(name) if name else "") for part in (main, other)]
    shared = sorted((set(keys[0]) & set(keys[1])) - {""})
    images = [int(key.isin(shared).sum()) for key in keys]
    numbers = {"patients": len(shared), "images": images[0], "images_of_the_other": images[1], "set": other.name}
    unknown = [int((key == "").sum()) for key in keys]
    said = f" (images without a patient id: {unknown[0]:,} and {unknown[1]:,})" if any(unknown) else ""
    check = f"patients shared with {other.name}"
    if not shared:
        return [
            Finding(
                check=check,
                severity="info",
                summary=f"No patient id of {main.name} is in {other.name}{said}.",
                advice="Nothing.",
                numbers=numbers,
            )
        ]
    telling = sum(not name.isdecimal() for name in shared)
    return [
        Finding(
            check=check,
            severity="high" if telling else "medium",
            summary=f"{format_count(len(shared), 'patient id')} {agree(len(shared), 'is', 'are')} in {main.name} "
            f"({format_count(images[0], 'image')}) and in {other.name} ({format_count(images[1], 'image')}){said}; "
            f"{telling:,} of them {agree(telling, 'is', 'are')} more than a number.",
            advice="If these are the same patients, never train on one set and test on the other with them in it; plain "
            "numbers may be the same by chance.",
            numbers=numbers,
            examples=_sheets_of_both(main, other, keys, shared),
        )
    ]


def _sheets(part: PreparedSet, patients: pd.Index) -> tuple[ExampleSheet, ...]:
    sheets = []
    for patient in patients[:MAX_SHEETS]:
        rows = part.table.index[part.table["patient_id"] == patient][:MAX_IMAGES]
        named = ", ".join(dict.fromkeys((part.table["split"] + " " + part.table["label"])[rows]))
        sheets.append(
            ExampleSheet(caption=f"patient {patient}: {named}", images=tuple(part.example(int(at)) for at in rows))
        )
    return tuple(sheets)


def _sheets_of_both(
    main: PreparedSet, other: PreparedSet, keys: list[pd.Series], shared: list[str]
) -> tuple[ExampleSheet, ...]:
    sheets = []
    for patient in shared[:MAX_SHEETS]:
        images = [
            part.example(int(at))
            for part, key in zip((main, other), keys, strict=True)
            for at in key.index[key == patient][: MAX_IMAGES // 2]
        ]
        sheets.append(ExampleSheet(caption=f"patient {patient} in both sets", images=tuple(images)))
    return tuple(sheets)


def _title(what: str, count: int) -> str:
    return f"{what} (the first {MAX_ROWS} of {count:,})" if count > MAX_ROWS else what
