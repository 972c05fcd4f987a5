"""clipcovid.data.classes: labels that are renamed, missing, lists, or near twins of each other."""

import shlex

import pandas as pd
import pytest

from clipcovid.config import UserError
from clipcovid.data.classes import clean_labels, keep_classes, parse_renames


def clean(labels, **options):
    return clean_labels(pd.Series(labels, dtype=object), **options)


def test_labels_without_a_doubt_stay_as_they_are():
    labels = [
        "COVID-19",
        "Non-COVID",
        "Normal",
        "",
        "Pneumonia, viral",
        "[bold]",
        "(a)",
        "COVID+",
        "COVID-",
        "-1",
        "1",
        "0",
    ]
    labels += ["1-2", "12", "1.5", "15", "A", "B", "Pneumonia/Viral", "COVID"]
    cleaned, notes = clean(labels)
    assert cleaned.tolist() == labels
    assert notes == []


@pytest.mark.parametrize(
    "names",
    [
        ("COVID-19", "Covid-19", "covid 19"),
        ("COVID-19", "COVID\u201319"),
        ("COVID-19", "covid_19"),
        ("COVID-19", "Covid19"),
        ("Non-COVID", "NonCovid"),
        ("Normal", "normal."),
        ("No finding", "No  Finding"),
        ("1", "1.0"),
        ("Grade 1-2", "grade 1 - 2"),
        ("COVID +", "Covid+"),
        ("fi\u00e8vre", "fie\u0300vre"),
    ],
)
def test_near_equal_class_names_are_refused_with_counts_and_the_command(names):
    labels = [name for count, name in zip((3, 2, 1), names, strict=False) for _ in range(count)]
    with pytest.raises(UserError, match="differ in case, spaces or punctuation only") as error:
        clean([*labels, "Other"])
    for count, name in zip((3, 2, 1), names, strict=False):
        assert f"{name!r} ({count} images)" in str(error.value)
    renames = [f"{name}={names[0]}" for name in names[1:]]
    assert f"--rename {shlex.join(renames)}, or" in str(error.value)
    assert "Other" not in str(error.value)
    cleaned, _ = clean([*labels, "Other"], renames=renames)
    assert set(cleaned) == {names[0], "Other"}
    assert set(clean(labels, wanted=names)[0]) == set(names)  # named, they are meant


@pytest.mark.parametrize(
    "label", ["['pneumonia']", '["a", "b"]', "[]", "['a' 'b']", "('a', 'b')", "{'a'}", "a|b", "c,d", "d; c"]
)
def test_lists_of_findings_are_refused_with_the_way_out(label):
    labels = [label, label, "c", "d"]
    with pytest.raises(UserError, match=r"in the column 'x' \(2 images, e\.g\. .*--columns\.label") as error:
        clean(labels, where="the column 'x'")
    assert repr(label) in str(error.value)
    assert clean(labels, renames=[f"{label}=Pneumonia"])[0].tolist() == ["Pneumonia", "Pneumonia", "c", "d"]
    assert clean(labels, renames=[f"{label}="])[0].tolist() == ["", "", "c", "d"]
    assert clean(labels, wanted=["c"])[0].tolist() == labels  # others are left out, and counted


def test_words_for_a_missing_value_are_no_class_but_where_they_are_named():
    assert clean(["-", "?", "A"])[0].tolist() == ["", "", "A"]
    assert clean(["-", "?", "A"])[1][0].startswith("2 images have no label, for '-', '?' in the labels means missing")
    labels = ["None", "nan", "A", "NA", ""]
    cleaned, notes = clean(labels)
    assert cleaned.tolist() == ["", "", "A", "", ""]
    assert len(notes) == 1
    assert notes[0].startswith("3 images have no label, for 'None', 'nan', 'NA' in the labels means missing")
    cleaned, notes = clean(labels, wanted=("None", "A"))
    assert cleaned.tolist() == ["None", "", "A", "", ""]
    assert notes[0].startswith("2 images have no label")
    assert clean(labels, renames=["NA=Normal"])[0].tolist() == ["", "", "A", "Normal", ""]


def test_renames_are_checked():
    assert parse_renames(["a=b", "c = d", "x=1=y", "e="]) == {"a": "b", "c": "d", "x=1": "y", "e": ""}
    for entries, words in (
        (["ab"], "--rename 'ab' must be OLD=NEW"),
        (["=b"], "must be OLD=NEW"),
        (["a=b", "a=c"], "--rename: 'a' is mapped twice, to 'b' and to 'c'"),
    ):
        with pytest.raises(UserError, match=words):
            parse_renames(entries)
    with pytest.raises(UserError, match="--rename 'z' labels no image; found: 'a', 'b'"):
        clean(["b", "a"], renames=["z=a"])


def test_our_classes_have_their_own_order_and_others_that_of_the_alphabet():
    table = pd.DataFrame({"label": ["Normal", "COVID-19", "", "Non-COVID"]})
    assert keep_classes(table, ())[2] == ("COVID-19", "Non-COVID", "Normal")
    kept, left_out, classes = keep_classes(pd.DataFrame({"label": ["b", "a", "", "c"]}), ("c", "a"))
    assert (kept["label"].tolist(), left_out, classes) == (["a", "", "c"], {"b": 1}, ("c", "a"))
