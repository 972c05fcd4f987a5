"""clipcovid.data.patients: ids that stand for no patient, for one patient twice, or for several."""

import pandas as pd
import pytest
from pictures import cells, listed, pictures

from clipcovid.data.patients import normalize_id, patient_folder_hint, patient_warnings
from clipcovid.data.splits import make_splits


def ids(*names, times=1):
    return pd.Series([name for name in names for _ in range(times)], dtype=object)


@pytest.mark.parametrize(
    ("first", "second"),
    [("P3", "p3"), ("3", "3.0"), ("3", "003"), ("P 3", "P3"), ("P003", "p3"), (" 7", "7"), ("a\u00a07", "A7")],
)
def test_ids_that_differ_in_writing_alone_are_warned_of(first, second):
    (warning,) = patient_warnings(ids(first, second, "9", ""))
    names = ", ".join(sorted((first, second)))
    assert warning == (
        f"2 patient ids are 1 if case, blanks, `.0` and leading zeros are ignored ({names}): if these are the same "
        "patients, their images may be in several splits; write them alike."
    )


def test_ids_that_are_different_are_not():
    names = [
        "1",
        "10",
        "100",
        "1-2",
        "12",
        "1_2",
        "1.05",
        "1.5",
        "12e4",
        "120000",
        "12345678",
        "12345679",
        "A",
        "0",
        "-1",
    ]
    assert patient_warnings(ids(*names)) == []
    assert normalize_id("000") == normalize_id("0.0") == "0"


def test_the_warning_counts_all_and_is_printed_with_the_splits():
    table = pd.DataFrame({"patient_id": [f"{letter}{number}" for number in range(20) for letter in "Pp"]})
    table["image_id"] = table["path"] = table.index.astype(str)
    table = table.assign(label="x", split="", sha256="")
    warnings = make_splits(table, val=0.2, test=0.2, seed=0)[2]
    assert warnings[0].startswith("40 patient ids are 20 if case, blanks, `.0` and leading zeros are ignored (P0, p0)")


def test_words_for_an_unknown_patient_are_no_patient_and_counted(tmp_path):
    words = [
        "Unknown",
        "ANON",
        "anonymous",
        "Anonymized",
        "anonymised",
        "-",
        "?",
        "N/a",
        "n/a",
        "",
        "7",
        "Anonymous Bosch",
    ]
    pictures(tmp_path, *(f"{at:02}.png" for at in range(len(words))))
    lines = [f"{at:02}.png,x,{word}" for at, word in enumerate(words)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,patient_id", *lines]))
    listing = listed("table", tmp_path / "t.csv")
    assert [row[1] for row in cells(listing, "image_id", "patient_id")] == [""] * 10 + words[10:]
    assert listing.notes == (
        "9 images have no patient id, for 'Unknown', 'ANON', 'anonymous', 'Anonymized' and 5 more in the patient ids "
        "means missing.",
    )


def test_an_id_of_many_images_is_warned_of():
    others = [str(number) for number in range(1, 41)]
    assert patient_warnings(ids(*["0"] * 10, *others)) == [
        "the patient id 0 has 10 of 50 images (20%): if it stands for unknown, leave it empty."
    ]
    assert patient_warnings(ids(*["0"] * 9, *others, "41")) == []
    assert patient_warnings(ids(*["0"] * 9, *others)) == []  # 49 images
    assert patient_warnings(ids("0", "1", "2", "3", times=20)) == []


def test_folders_that_may_be_patients_are_named_where_no_patient_is_known():
    def table(*folders):
        paths = [f"/data/{folder}/{image}.png" for folder in folders for image in range(2)]
        return pd.DataFrame({"path": paths, "label": [path.split("/")[2] for path in paths]})

    many = table(*(f"{label}/p{number}" for label in "AB" for number in range(4)))
    assert patient_folder_hint(many) == (
        " The images are in 8 folders (first: A/p0): if these are the patients, say so in the column patient_id of a table "
        "(metadata.csv in a folder of images)."
    )
    assert patient_folder_hint(many.drop_duplicates("label")) == ""
    assert patient_folder_hint(many.iloc[::2]) == ""
    assert patient_folder_hint(table("A", "B")) == ""
    assert (
        patient_folder_hint(table(*(f"{label}/{split}" for label in "AB" for split in ("train", "val", "test")))) == ""
    )
    rows = many.assign(image_id=many["path"], patient_id="", split="", sha256="")
    (warning,) = make_splits(rows, val=0.2, test=0.2, seed=0)[2]
    assert warning.startswith("no patient ids are known")
    assert "--columns.patient-id names the column" in warning
    assert warning.endswith(patient_folder_hint(many))
