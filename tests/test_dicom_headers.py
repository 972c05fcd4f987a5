"""clipcovid.data.dicom_headers: what DICOM headers add to a table, and what of theirs gives way."""

import pandas as pd

from clipcovid.data.dicom_headers import fill_from_headers, similar_patients
from clipcovid.data.manifest import normalize_columns


def header(patient="", view="", date=""):
    return {"patient_id": patient, "view": view, "study_date": date}


def table(ids, **columns):
    return normalize_columns(pd.DataFrame({"image_id": list(ids), **columns}))


def test_patient_view_and_the_order_of_studies_are_filled_in_and_dates_are_not_kept():
    headers = {
        "a": header("p", "PA", "20240301"),
        "b": header("p", "AP", "20230101"),
        "c": header("q", "", "20220101"),
        "d": header("p", "PA", "20240301"),
        "e": header("", "LL", "20240301"),
    }
    filled, notes = fill_from_headers(table("abcdef"), headers)
    assert filled["patient_id"].tolist() == ["p", "p", "q", "p", "", ""]
    assert filled["view"].tolist() == ["PA", "AP", "", "PA", "LL", ""]
    assert filled["study_order"].tolist() == ["2", "1", "1", "2", "", ""]
    assert "2024" not in filled.to_json()
    taken = "the patient (hashed) of 4, the view of 4, the order of the patient's studies of 4"
    assert notes == [f"from the DICOM headers come {taken} images."]


def test_the_tables_own_values_win_and_disagreements_are_counted():
    headers = {name: header(patient, "PA") for name, patient in zip("abcde", "ppqqr", strict=True)}
    rows = table("abcde", patient_id=["1", "2", "3", "", "3"], view=["AP", "", "", "", ""])
    filled, notes = fill_from_headers(rows, headers)
    assert filled["patient_id"].tolist() == ["1", "2", "3", "3", "3"]  # q is called 3 elsewhere
    assert filled["view"].tolist() == ["AP", "PA", "PA", "PA", "PA"]
    assert "study_order" not in filled
    assert len(notes) == 2
    assert (
        "1 of the headers' patients have several ids there, and 1 ids are of several of the headers' patients"
        in notes[1]
    )


def test_a_patient_of_two_names_keeps_the_headers_where_the_table_gives_none():
    headers = {name: header("p") for name in "abc"}
    filled, _ = fill_from_headers(table("abc", patient_id=["1", "2", ""]), headers)
    assert filled["patient_id"].tolist() == ["1", "2", "p"]


def test_without_headers_or_with_empty_ones_nothing_changes():
    rows = table("ab", study_order=["x", "y"])
    assert fill_from_headers(rows, {}) == (rows, [])
    filled, notes = fill_from_headers(rows, {"a": header(), "b": header("", "", "20200101")})
    pd.testing.assert_frame_equal(filled, rows)
    assert notes == []


def test_headers_patients_that_differ_in_writing_alone_are_warned_of():
    headers = {name: header(f"hash of {name}") | {"patient_key": name[0]} for name in ("a1", "a2", "b1", "b2", "c")}
    assert similar_patients(headers | {"d": header()}) == [
        "4 patient ids of DICOM headers are 2 if case, blanks, `.0` and leading zeros are ignored: if these are the same "
        "patients, their images may be in several splits; write them alike."
    ]
    assert similar_patients({"c": headers["c"]}) == []
