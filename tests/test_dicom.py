"""DICOM headers: which images belong together, and nothing of who the patient is."""

import hashlib

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian
from test_images import PATIENT, dicom, encode, picture

from clipcovid.data.dicom import read_header

BLANK = {"patient_id": "", "view": "", "study_date": ""}


def test_a_header_tells_patients_apart_by_a_hash_of_issuer_and_id():
    header = read_header(dicom(ViewPosition="PA", StudyDate="20200314"))
    digest = hashlib.sha256(b"\x004711").hexdigest()[:16]
    assert header == {"patient_id": digest, "view": "PA", "study_date": "20200314"}
    assert read_header(dicom(syntax=ImplicitVRLittleEndian, PatientID=" 4711 "))["patient_id"] == digest
    ids = {read_header(dicom(**tags))["patient_id"] for tags in ({}, {"PatientID": "4712"}, {"IssuerOfPatientID": "A"})}
    assert len(ids) == 3
    for secret in (PATIENT, "Doe", "Jane", "4711"):
        assert secret not in str(read_header(dicom(PatientName=PATIENT)))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PatientID": ""}, BLANK),
        ({"PatientID": " \0 "}, BLANK),
        ({"PatientID": "", "IssuerOfPatientID": "A"}, BLANK),
        ({"PatientID": None, "ViewPosition": "ll "}, BLANK | {"view": "LL"}),
        ({"PatientID": "", "StudyDate": "2020.03.14"}, BLANK | {"study_date": "20200314"}),
        ({"PatientID": "", "StudyDate": "March"}, BLANK),
    ],
)
def test_odd_headers_are_read_as_far_as_they_go(tags, expected):
    assert read_header(dicom(**tags)) == expected


def test_an_id_of_several_values_is_one_id():
    assert len(read_header(dicom(PatientID=["4711", "4712"]))["patient_id"]) == 16


def test_no_file_raises():
    rng = np.random.default_rng(0)
    for data in (
        b"",
        b"text",
        bytes(3000),
        encode(picture()),
        dicom()[:200],
        dicom(syntax=DeflatedExplicitVRLittleEndian),
    ):
        assert read_header(data) == BLANK
    source = dicom(ViewPosition="PA", StudyDate="20200314")
    for _ in range(200):
        data = bytearray(source)
        for place in rng.integers(0, 700, 6):
            data[place] = rng.integers(0, 256)
        assert read_header(bytes(data)).keys() == BLANK.keys()
