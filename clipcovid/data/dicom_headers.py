"""What DICOM headers say of images: the patient (hashed), the view, and the order of a patient's studies."""

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from clipcovid.data.patients import similar_ids_warning

HEADER_FIELDS = ("patient_id", "view", "study_date")


def fill_from_headers(table: pd.DataFrame, headers: Mapping[str, Mapping[str, str]]) -> tuple[pd.DataFrame, list[str]]:
    """The table with what DICOM headers add to it, and what was assumed, a sentence each.

    `headers`: image_id → `dicom.read_header` of its file. What the table knows stays; a patient whom it names on other
    images goes by that name. `study_order` (1, 2, … by date within a patient, "" where unknown) becomes a column where a
    date is known and the table has none of that name; the dates themselves are not kept.
    """
    if not headers:
        return table, []
    header_fields = pd.DataFrame(list(headers.values()), index=list(headers), columns=list(HEADER_FIELDS), dtype=object)
    header_fields = header_fields.reindex(table["image_id"]).fillna("").set_axis(table.index)
    patients, notes = _patients(table["patient_id"], header_fields["patient_id"])
    views = table["view"].mask(table["view"] == "", header_fields["view"])
    counts = {
        "the patient (hashed)": (patients != table["patient_id"]).sum(),
        "the view": (views != table["view"]).sum(),
    }
    table = table.assign(patient_id=patients, view=views)
    dated = (header_fields["study_date"] != "") & (patients != "")
    if dated.any() and "study_order" not in table:
        order = header_fields["study_date"][dated].groupby(patients[dated]).rank("dense").astype(int).astype(str)
        table["study_order"] = order.reindex(table.index, fill_value="")
        counts["the order of the patient's studies"] = dated.sum()
    if sources := [f"{what} of {count:,}" for what, count in counts.items() if count]:
        notes.insert(0, f"from the DICOM headers come {', '.join(sources)} images.")
    return table, notes


def similar_patients(headers: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A warning where patient ids of DICOM headers, which are told by their hashes alone, differ in their writing only."""
    pairs = {(header["patient_key"], header["patient_id"]) for header in headers.values() if header["patient_id"]}
    ids = Counter(key for key, _ in pairs)
    twins = [count for count in ids.values() if count > 1]
    return [similar_ids_warning(sum(twins), len(twins), of=" of DICOM headers")] if twins else []


def _patients(table_ids: pd.Series, header_ids: pd.Series) -> tuple[pd.Series, list[str]]:
    """The source's patient ids, filled up from the headers', and how far the two disagree."""
    in_both = (table_ids != "") & (header_ids != "")
    ids_of_header = table_ids[in_both].groupby(header_ids[in_both]).agg(["nunique", "first"])
    known_as = ids_of_header.loc[ids_of_header["nunique"] == 1, "first"].to_dict()
    filled = table_ids.mask(table_ids == "", header_ids.map(lambda patient: known_as.get(patient, patient)))
    divided, joined = (
        int((ids_of_header["nunique"] > 1).sum()),
        int((header_ids[in_both].groupby(table_ids[in_both]).nunique() > 1).sum()),
    )
    if not (divided or joined):
        return filled, []
    return filled, [
        f"the data set's patient ids are taken where the DICOM headers disagree: {divided:,} of the headers' patients have "
        f"several ids there, and {joined:,} ids are of several of the headers' patients."
    ]
