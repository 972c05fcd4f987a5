"""Patient ids: words that stand for no patient, and ids that may be one patient's or several patients'."""

import re
from pathlib import PurePosixPath

import pandas as pd

from clipcovid.data.classes import fold_text, join_names
from clipcovid.io.tables import MISSING_WORDS

PLACEHOLDER_IDS = frozenset(("unknown", "anon", "anonymous", "anonymized", "anonymised")) | {
    word.casefold() for word in MISSING_WORDS
}
"""What stands for an unknown patient, in small letters."""
MIN_DOMINANT_SHARE = 0.2  # of the images, from which on one patient is unlikely
MIN_IMAGES, MIN_PATIENTS = 50, 5  # of a set in which a patient can be unlikely
MIN_FOLDERS = 6  # that may be patients


def is_placeholder_id(patient_id: str) -> bool:
    """Whether a patient id says that the patient is unknown; "" does."""
    return fold_text(patient_id) in PLACEHOLDER_IDS


def drop_placeholder_ids(patient_ids: pd.Series) -> tuple[pd.Series, list[str]]:
    """Patient ids, cells as a table has them, with placeholders as "", and a sentence that counts them."""
    placeholder = patient_ids.map(lambda cell: isinstance(cell, str) and cell.strip() != "" and is_placeholder_id(cell))
    if not placeholder.any():
        return patient_ids, []
    words = join_names(patient_ids[placeholder].unique().tolist())
    return patient_ids.mask(placeholder, ""), [
        f"{placeholder.sum():,} images have no patient id, for {words} in the patient ids means missing."
    ]


def normalize_id(patient_id: str) -> str:
    """A patient id without what tables write differently: case, blanks, a trailing `.0`, leading zeros of numbers."""
    text = re.sub(r"(?<=\d)\.0+$", "", fold_text(patient_id).replace(" ", ""))
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text)


def patient_warnings(patient_ids: pd.Series) -> list[str]:
    """A sentence on ids that may be one patient's, and on an id that may be several patients'."""
    warnings, counts = list[str](), patient_ids[patient_ids != ""].value_counts()
    names = pd.Series(counts.index, dtype=object).sort_values()
    keys = names.map(normalize_id)
    if (twins := keys.duplicated(keep=False)).any():
        first = names[keys == keys[twins].iloc[0]].tolist()
        warnings.append(
            similar_ids_warning(int(twins.sum()), keys[twins].nunique(), examples=f" ({', '.join(first[:2])})")
        )
    if len(counts) >= MIN_PATIENTS and len(patient_ids) >= MIN_IMAGES:
        share = counts.iloc[0] / len(patient_ids)
        if share >= MIN_DOMINANT_SHARE:
            warnings.append(
                f"the patient id {counts.index[0]} has {counts.iloc[0]:,} of {len(patient_ids):,} images ({share:.0%}): "
                "if it stands for unknown, leave it empty."
            )
    return warnings


def similar_ids_warning(ids: int, patients: int, *, of: str = "", examples: str = "") -> str:
    """A sentence on `ids` ids that are those of `patients` patients but for the way they are written."""
    return (
        f"{ids:,} patient ids{of} are {patients:,} if case, blanks, `.0` and leading zeros are ignored{examples}: if these "
        "are the same patients, their images may be in several splits; write them alike."
    )


def patient_folder_hint(table: pd.DataFrame) -> str:
    """A sentence on folders of images that may be patients: many of a class, most of several images; "" for others."""
    folders = table["path"].str.rpartition("/")[0]
    counts = folders.value_counts()
    if len(counts) < max(MIN_FOLDERS, 4 * table["label"].nunique()) or (counts > 1).mean() <= 0.5:
        return ""
    first = "/".join(PurePosixPath(folders.iloc[0]).parts[-2:])
    return (
        f" The images are in {len(counts):,} folders (first: {first}): if these are the patients, say so in the column "
        "patient_id of a table (metadata.csv in a folder of images)."
    )
