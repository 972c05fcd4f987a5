"""BIMCV-COVID19+ and -, on small folders with the names and tables of the real ones."""

import json

import numpy as np
import pytest
from conftest import HERE
from pictures import listed, picture
from PIL import Image

from clipcovid.config import ClipConfig, UserError
from clipcovid.data.packed import PackedImages
from clipcovid.data.prepare import PrepareConfig, prepare
from clipcovid.data.sources.bimcv import parse_list
from clipcovid.inference.embed import EmbedConfig, embed

LABEL_COLUMNS = "PatientID\tReportID\tReport\tLabels\tLocalizations\tlabelCUIS\tLocalizationsCUIS"


def xray(root, part, patient, study, view="_vp-pa", ending="dx", tags=None, seed=0):
    """An image of 16 bits and its sidecar, a DICOM header as JSON."""
    folder = root / part / f"sub-{patient}" / f"ses-{study}" / "mod-rx"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sub-{patient}_ses-{study}_run-1_bp-chest{view}_{ending}.png"
    pixels = np.random.default_rng(seed).integers(0, 4096, (40, 40)).astype(np.uint16)
    pixels[0, 0], pixels[0, 1] = 0, 4095
    Image.fromarray(pixels).save(path)
    if tags is not None:
        header = {tag: {"vr": "CS", "Value": [value]} for tag, value in tags.items()}
        header["00283010"] = {"vr": "SQ", "Value": [{"00283006": {"vr": "US", "Value": [0, 1]}}]}  # a look-up table
        path.with_suffix(".json").write_text(json.dumps(header))
    return path


def tables(root, part, labels_name, studies, tests=None, dates=None):
    """The tables of a part. `studies`: patient, study, labels; `tests`: patient, date, result; `dates`: study → day."""
    derivatives = root / part / "derivatives"
    (derivatives / "labels").mkdir(parents=True, exist_ok=True)
    lines = [f"{patient}\t{study}\t['sin hallazgo']\t{labels}\t[]\t[]\t[]" for patient, study, labels in studies]
    (derivatives / "labels" / labels_name).write_text("\n".join([LABEL_COLUMNS, *lines]) + "\n")
    people = {patient: number for number, (patient, *_) in enumerate(studies)}
    rows = [f"{patient}\t['DX']\t['CHEST']\t[{60 + number}]\t{'MF'[number % 2]}" for patient, number in people.items()]
    (root / part / "participants.tsv").write_text(
        "\n".join(["participant\tmodality_dicom\tbody_parts\tage\tgender", *rows])
    )
    if tests:
        (derivatives / "EHR").mkdir(exist_ok=True)
        lines = [f"{patient}\t{date}\tPCR\t{result}" for patient, date, result in tests]
        (derivatives / "EHR/sil_reg_covid_posi.tsv").write_text("\n".join(["participant\tdate\ttest\tresult", *lines]))
    for patient, study, _ in studies:
        if day := (dates or {}).get(study):
            path = root / part / patient / f"{patient}_sessions.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"session_id\tstudy_date\tmedical_evaluation\n{study}\t{day}\t['TORAX.']\n")


@pytest.fixture
def bimcv(tmp_path):
    """Both parts: six studies of patients with positive tests, four of others."""
    posi = [
        ("sub-S03001", "ses-E1", "['COVID 19', 'ground glass pattern']"),
        ("sub-S03002", "ses-E2", "['pneumonia']"),  # three days after a positive test
        ("sub-S03003", "ses-E3", "['pneumonia', 'COVID 19 uncertain']"),  # a hundred days before
        ("sub-S03004", "ses-E4", "['normal']"),
        ("sub-S03005", "ses-E5", "['COVID 19 uncertain']"),  # negative that day, positive within two weeks
        ("sub-S03006", "ses-E6", "['cardiomegaly']"),
    ]
    days = dict.fromkeys((f"ses-E{number}" for number in range(1, 7)), "20200315")
    tests = [
        ("sub-S03001", "12.03.2020", "POSITIVO"),
        ("sub-S03002", "12.03.2020", "POSITIVO"),
        ("sub-S03003", "23.06.2020", "POSITIVO"),
        ("sub-S03004", "12.03.2020", "POSITIVO"),
        ("sub-S03005", "15.03.2020", "NEGATIVO"),
        ("sub-S03005", "29.03.2020", "POSITIVO"),
    ]
    nega = [
        ("sub-S09001", "ses-E101", "['pneumonia', 'pleural effusion']"),
        ("sub-S09002", "ses-E102", "['normal']"),
        ("sub-S09003", "ses-E103", "['COVID 19']"),  # by the report alone
        ("sub-S09004", "ses-E104", "['normal', 'cardiomegaly']"),
    ]
    tables(tmp_path, "covid19_posi", "labels_covid_posi.tsv", posi, tests, days)
    tables(tmp_path, "covid19_neg", "Labels_covid_NEG_JAN21.tsv", nega)
    tags = {"00080060": "DX", "00080070": "SIEMENS", "00280004": "MONOCHROME2", "0008103E": "Torax PA"}
    for number, (patient, study, _) in enumerate([*posi, *nega]):
        part = "covid19_posi" if patient < "sub-S09" else "covid19_neg"
        xray(tmp_path, part, patient.removeprefix("sub-"), study.removeprefix("ses-"), tags=tags, seed=number)
    return tmp_path


def rows_of(root):
    listing = listed("bimcv", root)
    return listing.table.set_index("study"), listing.notes


def test_classes_are_made_of_findings_and_tests_and_the_rule_is_printed(bimcv):
    table, notes = rows_of(bimcv)
    assert table["label"].to_dict() == {
        "ses-E1": "COVID-19",
        "ses-E2": "COVID-19",
        "ses-E3": "",
        "ses-E4": "",
        "ses-E5": "COVID-19",
        "ses-E6": "",
        "ses-E101": "Non-COVID",
        "ses-E102": "Normal",
        "ses-E103": "",
        "ses-E104": "",
    }
    (rule,) = [note for note in notes if note.startswith("Classes are made of findings and tests")]
    assert "COVID-19 (3 images)" in rule
    assert "within 14 days of a positive test" in rule
    assert "Non-COVID (1)" in rule
    assert "Normal (1)" in rule
    assert "the other 5 have no label" in rule


def test_patients_sources_and_facts_are_those_of_the_tables_and_sidecars(bimcv):
    table, _ = rows_of(bimcv)
    one, other = table.loc["ses-E1"], table.loc["ses-E102"]
    columns = ["patient_id", "source", "view", "test", "age", "sex", "modality", "manufacturer", "findings", "caption"]
    assert one[columns].tolist() == [
        *("S03001", "BIMCV-COVID19+", "PA", "positive", "60", "M", "DX", "SIEMENS"),
        *("covid 19|ground glass pattern", "sin hallazgo"),
    ]
    assert (other["patient_id"], other["source"], other["test"], other["sex"]) == ("S09002", "BIMCV-COVID19-", "", "F")


def test_views_come_from_names_then_sidecars_and_laterals_are_left_out(bimcv):
    def more(study, view, description, ending="cr"):
        xray(bimcv, "covid19_posi", "S03001", study, view, ending, {"0008103E": description})

    more("E20", "", "W031 TORAX AP")
    more("E21", "", "TÓRAX LAT.")
    more("E22", "_vp-ll", "")
    more("E23", "_acq-2_vp-pa", "LATERAL IZQ.")  # the series says otherwise than the name
    more("E24", "", "RX TORAX PA Y LAT")
    xray(bimcv, "covid19_posi", "S03001", "E25", "_vp-ap")
    table, notes = rows_of(bimcv)
    assert table["view"].reindex(["ses-E20", "ses-E24", "ses-E25"]).tolist() == ["AP", "", "AP"]
    assert not {"ses-E21", "ses-E22", "ses-E23"} & set(table.index)
    assert "3 images are lateral views, and are left out." in notes
    assert any(note.startswith("1 images are lateral views by the description of their series") for note in notes)
    assert "1 images do not say their view, and are taken as frontal." in notes
    assert any(note.startswith("1 images have no JSON sidecar") for note in notes)
    assert table.loc["ses-E20", "modality"] == "CR"


def test_images_that_show_black_as_white_are_turned_back(bimcv, tmp_path_factory):
    straight = {"00280004": "MONOCHROME2", "0008103E": "Torax PA"}
    xray(bimcv, "covid19_neg", "S09001", "E201", tags=straight, seed=7)
    path = xray(bimcv, "covid19_neg", "S09001", "E202", tags=straight | {"00280004": "MONOCHROME1"}, seed=7)
    Image.fromarray(4095 - np.asarray(Image.open(path)).astype(np.uint16)).save(path)
    assert "1 images are inverted by their sidecars (MONOCHROME1), and are turned back." in rows_of(bimcv)[1]
    out = tmp_path_factory.mktemp("prepared") / "bimcv"
    manifest = prepare(
        PrepareConfig(source="bimcv", root=str(bimcv), out=out, compute=HERE), log=lambda text: None
    ).manifest
    pair = [int(np.flatnonzero(manifest.table["study"] == study)[0]) for study in ("ses-E201", "ses-E202")]
    one, other = PackedImages(out, manifest).images(pair).astype(int)
    assert one.std() > 30
    assert np.abs(one - other).max() <= 1
    for source in ("packed", "raw"):
        config = EmbedConfig(
            data=out, clip=ClipConfig(model="tiny", pretrained="none", precision="fp32"), input=source, compute=HERE
        )
        features = embed(config, lambda text: None).load(manifest.table["image_id"].iloc[pair])
        assert features[0] == pytest.approx(features[1], abs=2e-3)


def test_the_positive_part_alone_has_one_class_and_says_so(bimcv):
    notes = listed("bimcv", bimcv / "covid19_posi").notes
    assert any("has no other class: unpack BIMCV-COVID19- beside it" in note for note in notes)


def test_ct_derivatives_and_other_parts_of_the_body_are_no_rows(bimcv):
    picture(bimcv / "covid19_posi/derivatives/ROI/sub-S03001/ses-E1/mod-rx/sub-S03001_ses-E1_vp-pa_dx.png")
    folder = bimcv / "covid19_posi/sub-S03001/ses-E1"
    picture(folder / "mod-rx/sub-S03001_ses-E1_run-1_bp-abdomen_vp-ap_dx.png")
    (folder / "mod-ct").mkdir()
    (folder / "mod-ct/sub-S03001_ses-E1_run-1_bp-chest_ct.nii.gz").write_bytes(b"\x1f\x8b")
    table, notes = rows_of(bimcv)
    assert len(table) == 10
    assert "1 images are of other parts than the chest, and are left out." in notes


def test_what_is_missing_is_said_or_refused(bimcv, tmp_path):
    for path in bimcv.rglob("*abels_covid*.tsv"):
        path.unlink()
    for path in bimcv.rglob("sil_reg_*.tsv"):
        path.unlink()
    table, notes = rows_of(bimcv)
    assert set(table["label"]) == {""}
    assert any("no table labels_covid….tsv" in note for note in notes)
    assert any("no table sil_reg_covid….tsv" in note for note in notes)
    (bimcv / "covid19_posi/participants.tsv").write_text("person\tage\nsub-S03001\t60\n")
    with pytest.raises(UserError, match=r"participants\.tsv lacks the columns participant"):
        listed("bimcv", bimcv)
    picture(tmp_path / "other/a.png")
    with pytest.raises(UserError, match=r"no images in sub-…/ses-…/mod-rx/"):
        listed("bimcv", tmp_path / "other")


def test_later_label_tables_go_before_earlier_ones_and_tests_may_be_text(bimcv):
    labels = bimcv / "covid19_posi/derivatives/labels"
    (labels / "labels_covid_zz.tsv").write_text(f"{LABEL_COLUMNS}\nsub-S03006\tses-E6\t[]\t['COVID 19']\t[]\t[]\t[]\n")
    tests = bimcv / "covid19_posi/derivatives/EHR/sil_reg_covid_posi.tsv"
    tests.rename(tests.with_name("SIL_REG_COVID_POSI_iter123.txt"))
    table, notes = rows_of(bimcv)
    assert table.loc["ses-E6", "label"] == "COVID-19"
    assert table.loc["ses-E2", "test"] == "positive"
    assert "1 studies have other findings in a later label table: those of the last are taken." in notes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("['COVID 19', 'pneumonia']", ["COVID 19", "pneumonia"]),
        ("['COVID 19'\t 'pneumonia']", ["COVID 19", "pneumonia"]),
        ('["costophrenic angle blunting", "a, b"]', ["costophrenic angle blunting", "a, b"]),
        ("[COVID 19\tpneumonia]", ["COVID 19", "pneumonia"]),
        ("[' normal ']", ["normal"]),
        ("[]", []),
        ("", []),
        ("[nan]", []),
    ],
)
def test_lists_are_read_in_every_form_that_the_tables_have(text, names):
    assert parse_list(text) == names
