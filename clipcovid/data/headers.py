"""What DICOM headers say of images: the patient (hashed), the view, and the order of a patient's studies."""

from collections.abc import Mapping

import pandas as pd

FIELDS = ("patient_id", "view", "study_date")


def fill_from_headers(table: pd.DataFrame, headers: Mapping[str, Mapping[str, str]]) -> tuple[pd.DataFrame, list[str]]:
    """The table with what DICOM headers add to it, and what was assumed, a sentence each.

    `headers`: image_id → `dicom.read_header` of its file. What the table knows stays; a patient whom it names on other
    images goes by that name. `study_order` (1, 2, … by date within a patient, "" where unknown) becomes a column where a
    date is known and the table has none of that name; the dates themselves are not kept.
    """
    if not headers:
        return table, []
    read = pd.DataFrame(list(headers.values()), index=list(headers), columns=list(FIELDS), dtype=object)
    read = read.reindex(table["image_id"]).fillna("").set_axis(table.index)
    patients, notes = _patients(table["patient_id"], read["patient_id"])
    views = table["view"].mask(table["view"] == "", read["view"])
    taken = {
        "the patient (hashed)": (patients != table["patient_id"]).sum(),
        "the view": (views != table["view"]).sum(),
    }
    table = table.assign(patient_id=patients, view=views)
    dated = (read["study_date"] != "") & (patients != "")
    if dated.any() and "study_order" not in table:
        order = read["study_date"][dated].groupby(patients[dated]).rank("dense").astype(int).astype(str)
        table["study_order"] = order.reindex(table.index, fill_value="")
        taken["the order of the patient's studies"] = dated.sum()
    if said := [f"{what} of {count:,}" for what, count in taken.items() if count]:
        notes.insert(0, f"from the DICOM headers come {', '.join(said)} images.")
    return table, notes


def _patients(own: pd.Series, read: pd.Series) -> tuple[pd.Series, list[str]]:
    """The source's patient ids, filled up from the headers', and how far the two disagree."""
    both = (own != "") & (read != "")
    names = own[both].groupby(read[both]).agg(["nunique", "first"])
    known_as = names.loc[names["nunique"] == 1, "first"].to_dict()
    filled = own.mask(own == "", read.map(lambda patient: known_as.get(patient, patient)))
    divided, joined = int((names["nunique"] > 1).sum()), int((read[both].groupby(own[both]).nunique() > 1).sum())
    if not (divided or joined):
        return filled, []
    return filled, [
        f"the data set's patient ids are taken where the DICOM headers disagree: {divided:,} of the headers' patients have "
        f"several ids there, and {joined:,} ids are of several of the headers' patients."
    ]
