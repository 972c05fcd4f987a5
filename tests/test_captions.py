"""The text that goes with an image."""

import pandas as pd
import pytest

from clipcovid.config import UserError
from clipcovid.data.captions import TEMPLATE, captions_of, fill_template

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
    assert captions_of(rows, "both", "a {plane} scan").tolist() == [
        "a Axial scan. A mass.",
        "a Axial scan",
        "胸部 CT",
        "",
    ]
    assert captions_of(rows, "dataset", "").tolist() == ["A mass.", "", "胸部 CT", ""]
    (tmp_path / "own.csv").write_text("image_id,caption\nb, two words \nz,unknown image\n")
    assert captions_of(rows, str(tmp_path / "own.csv"), "").tolist() == ["", "two words", "", ""]
    (tmp_path / "own.csv").write_text("image,caption\nb,x\n")
    with pytest.raises(UserError, match="image_id"):
        captions_of(rows, str(tmp_path / "own.csv"), "")
