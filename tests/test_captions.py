"""The text that goes with an image."""

import pandas as pd
import pytest

from clipcovid.config import UserError
from clipcovid.data.captions import TEMPLATE, fill_template, make_captions

KNOWN = {"view": "Axial", "modality": "CT", "location": "Chest", "age": "61", "sex": "male", "diagnosis": "a mass"}


def filled(template=TEMPLATE, **fields):
    return fill_template(pd.DataFrame([KNOWN | fields]), template)[0]


def test_all_fields_make_the_whole_sentence():
    assert filled() == "a Axial plane CT scan of Chest on a 61 year old male depicting a mass"


@pytest.mark.parametrize("missing", ["", "nan", None, float("nan"), "None", "N/A", "  ", "-"])
def test_a_missing_field_leaves_no_trace(missing):
    assert filled(view=missing) == "a CT scan of Chest on a 61 year old male depicting a mass"
    assert filled(age=missing) == "a Axial plane CT scan of Chest on a male depicting a mass"
    assert filled(age=missing, sex=missing) == "a Axial plane CT scan of Chest depicting a mass"
    assert filled(diagnosis=missing).endswith("61 year old male")
    assert filled(**dict.fromkeys(KNOWN, missing)) == ""  # nothing is known: no caption, not "a scan"


def test_templates_of_ones_own():
    assert filled("{sex}, {age} years: {diagnosis}.", age="") == "male, years: a mass."
    assert filled("{sex}[, {age} years]: {diagnosis}.", age="") == "male: a mass."
    assert filled("[{age} years {sex}]", sex="") == ""
    assert filled("{plane}") == "Axial"
    assert filled("a  {modality}\n scan , {location}") == "a CT scan, Chest"
    assert filled(diagnosis="{age} [x]").endswith("depicting {age} [x]")  # a field's own brackets are text


@pytest.mark.parametrize(
    ("template", "match"),
    [("{planet} scan", "planet"), ("no field", "same caption"), ("a [{age}", "not closed"), ("a {age}]", "not closed")],
)
def test_templates_that_can_not_be_are_refused(template, match):
    with pytest.raises(UserError, match=match):
        filled(template)


def test_template_and_free_text_stand_one_before_the_other(tmp_path):
    rows = pd.DataFrame(
        [
            {"image_id": "a", "caption": "A mass.", "view": "Axial"},
            {"image_id": "b", "caption": "", "view": "Axial"},
            {"image_id": "c", "caption": "胸部 CT", "view": ""},
            {"image_id": "d", "caption": "", "view": ""},
        ]
    )
    assert make_captions(rows, "both", "a {plane} scan").tolist() == [
        "a Axial scan. A mass.",
        "a Axial scan",
        "胸部 CT",
        "",
    ]
    assert make_captions(rows, "dataset", "").tolist() == ["A mass.", "", "胸部 CT", ""]
    (tmp_path / "own.csv").write_text("image_id,caption\nb, two words \nz,unknown image\n")
    assert make_captions(rows, str(tmp_path / "own.csv"), "").tolist() == ["", "two words", "", ""]
    (tmp_path / "own.csv").write_text("image,caption\nb,x\n")
    with pytest.raises(UserError, match="lacks the columns image_id; it has: image, caption"):
        make_captions(rows, str(tmp_path / "own.csv"), "")


def test_a_table_of_captions_of_other_images_is_refused(tmp_path, capsys):
    rows = pd.DataFrame({"image_id": ["a/1.png", "a/2.png"]})
    (tmp_path / "own.csv").write_text("image_id,caption\n1.png,x\n2.png,y\n")
    with pytest.raises(
        UserError, match=r"none of the data set's images: .* is '1\.png', and the data set's is 'a/1\.png'"
    ):
        make_captions(rows, str(tmp_path / "own.csv"), "")
    assert make_captions(rows, str(tmp_path / "own.csv"), "", strict=False).tolist() == ["", ""]
    (tmp_path / "own.csv").write_text("image_id;caption\na/1.png;x\n3.png;y\n")
    for _ in range(2):
        assert make_captions(rows, str(tmp_path / "own.csv"), "").tolist() == ["x", ""]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"note: {tmp_path}/own.csv is divided by semicolons.",
        f"note: 1 of the 2 rows of --captions {tmp_path}/own.csv name no image of the data set.",
    ]
    (tmp_path / "own.csv").write_text("image_id,caption\na/1.png,x\nnan,y\n")
    with pytest.raises(UserError, match=r"1 rows of --captions .* have no image_id"):
        make_captions(rows, str(tmp_path / "own.csv"), "")


def test_a_table_of_captions_may_have_numbers_for_ids_and_brackets_in_its_texts(tmp_path):
    rows = pd.DataFrame({"image_id": ["1", "2", "3"]})
    (tmp_path / "a.jsonl").write_text('{"image_id": 1, "caption": "a mass"}\n{"image_id": 3, "caption": "N/A"}\n')
    assert make_captions(rows, str(tmp_path / "a.jsonl"), "").tolist() == ["a mass", "", ""]
    (tmp_path / "b.csv").write_text("image_id,caption\n2,[REDACTED] has a mass\n3,{x\n")
    assert make_captions(rows, str(tmp_path / "b.csv"), "").tolist() == ["", "[REDACTED] has a mass", "{x"]
    (tmp_path / "b.tsv").write_text('image_id\tcaption\n2\t"sharp" pain\n3\t"open\n')
    assert make_captions(rows, str(tmp_path / "b.tsv"), "").tolist() == ["", '"sharp" pain', '"open']
    (tmp_path / "b.json").write_text('{"2": "two", "3": "nan"}')
    assert make_captions(rows, str(tmp_path / "b.json"), "").tolist() == ["", "two", ""]
    (tmp_path / "c.csv").write_text("image_id,caption\n2,fever, cough\n")
    with pytest.raises(UserError, match="line 2: 3 fields, where the header has 2"):
        make_captions(rows, str(tmp_path / "c.csv"), "")
    (tmp_path / "c.csv").write_text("image_id,caption\n2,one\n2,other\n")
    with pytest.raises(UserError, match="has 2 twice"):
        make_captions(rows, str(tmp_path / "c.csv"), "")
