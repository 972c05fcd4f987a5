"""Other programs' tables as people have them: which rows match, which columns are meant, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from clipcovid.config import UserError
from clipcovid.evaluate.external_predictions import read_external_predictions
from clipcovid.evaluate.kinds.classification import KIND

CLASSES = ("COVID-19", "Non-COVID", "Normal")
TRUE = ["COVID-19", "Normal", "Non-COVID", "Normal", "COVID-19", "Normal", "Non-COVID", "Normal"]
GUESS = ["COVID-19", *["COVID-19"] * 5, "Non-COVID", "COVID-19"]  # 3 of 8 are right
NAMES = [f"{i:02}.png" for i in (3, 1, 4, 15, 9, 2, 6, 5)]
TRUTH = pd.DataFrame({"image_id": NAMES, "label": TRUE})


def evaluated(folder, predictions, truth=TRUTH, ending=".csv", classes=(), **options):
    """The scores of two tables (the truth None: the predictions' file has it), and the notes."""
    paths = []
    for name, content in (("preds", predictions), ("truth", truth)):
        path = folder / (name + (ending if isinstance(content, pd.DataFrame) else ".json"))
        if isinstance(content, pd.DataFrame) and ending == ".tsv":
            content.to_csv(path, sep="\t", index=False)
        elif isinstance(content, pd.DataFrame):
            content.to_csv(path, index=False)
        elif content is not None:
            path.write_text(json.dumps(content))
        paths += [path] if content is not None else []
    table, names, notes = read_external_predictions(*paths, classes=classes, **options)
    return KIND.score(table, names).metrics, notes, table


def accuracy(*args, **options):
    return evaluated(*args, **options)[0]["accuracy"]


# which rows match


@pytest.mark.parametrize("column", ["filename", "Image Index", "image_name", "study_id", "Aufnahme"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_rows_match_by_the_column_that_both_have_whatever_its_name(tmp_path, column, ending):
    truth = TRUTH.rename(columns={"image_id": column}).assign(age=61)
    given = pd.DataFrame({column: NAMES, "pred": TRUE, "age": 61})[::-1]
    metrics, notes, table = evaluated(tmp_path, given, truth, ending)
    assert metrics["accuracy"] == 1
    assert table["image_id"].tolist() == NAMES
    assert any("matched by Aufnahme" in note for note in notes) == (column == "Aufnahme")


def test_position_is_matched_only_when_asked(tmp_path):
    given = pd.DataFrame({"pred": GUESS, "score": np.linspace(0.3, 0.9, 8)})
    with pytest.raises(UserError, match=r"no column in common .*--match position"):
        evaluated(tmp_path, given)
    metrics, notes, _ = evaluated(tmp_path, given, match="position")
    assert metrics["accuracy"] == 3 / 8
    assert notes[0] == "Rows were matched by position, as asked."
    _, notes, _ = evaluated(tmp_path, given.assign(image_id=NAMES[:6] + NAMES[:5:-1]), match="position")
    assert "image_id differs in 2 of the 8 rows that were matched." in notes
    with pytest.raises(UserError, match=r"has 7 rows and .* 8: to be matched by position"):
        evaluated(tmp_path, given[1:], match="position")


def test_numbers_of_rows_are_no_ids(tmp_path):
    """What pandas writes beside the rows of a shuffled and renumbered table."""
    given = pd.DataFrame({"Unnamed: 0": range(8), "row": range(8), "pred": TRUE[::-1]})
    with pytest.raises(UserError, match="no column in common"):
        evaluated(tmp_path, given, TRUTH.assign(row=range(8)))
    given = pd.DataFrame({"pred": TRUE}).to_dict()
    with pytest.raises(UserError, match="no column in common"):
        evaluated(tmp_path, given, TRUTH.to_dict())
    _, notes, _ = evaluated(tmp_path, pd.DataFrame({"id": range(8), "pred": TRUE}), TRUTH.assign(id=range(8)))
    assert "id only counts the rows of both files: are they in the same order?" in notes


def test_ids_that_contradict_each_other_are_refused(tmp_path):
    truth = TRUTH.assign(filename=[f"f{i}" for i in range(8)])
    given = truth.assign(filename=[f"f{7 - i}" for i in range(8)], pred=TRUE).drop(columns="label")
    with pytest.raises(UserError, match=r"match different images by image_id than by filename: .*--match"):
        evaluated(tmp_path, given, truth)
    assert accuracy(tmp_path, given, truth, match="image_id") == 1
    assert accuracy(tmp_path, given, truth, match="filename") == np.mean(np.array(TRUE) == TRUE[::-1])
    with pytest.raises(UserError, match=r"--match scan: .*preds\.csv has no such column"):
        evaluated(tmp_path, given, truth, match="scan")


def test_labels_are_no_ids_however_few_there_are(tmp_path):
    truth = pd.DataFrame({"label": ["a", "b"], "scan": ["x", "y"]})
    given = pd.DataFrame({"label": ["b", "a"], "y_pred": ["a", "a"], "scan": ["x", "y"]})
    assert accuracy(tmp_path, given, truth, classes=("a", "b")) == 0.5


def test_patients_are_read_whatever_their_column_is_called(tmp_path):
    given, patients = TRUTH.rename(columns={"label": "pred"}), ["7", "7", "8", "8", "nan", "9", "9", "9"]
    for name in ("patient_id", "Patient ID", "subject_id"):
        _, notes, table = evaluated(tmp_path, given, TRUTH.assign(**{name: patients}))
        assert table["patient_id"].tolist() == ["7", "7", "8", "8", "", "9", "9", "9"]
        assert any("Patients are those in" in note for note in notes) == (name != "patient_id")


def test_patients_that_contradict_the_truth_are_said(tmp_path):
    truth = TRUTH.assign(patient_id=["7", "7", "8", "8", "", "9", "9", "9"])
    given = TRUTH.rename(columns={"label": "pred"}).assign(patient=["7", "8", "8", "", "1", "9", "9", "7"])
    _, notes, table = evaluated(tmp_path, given, truth)
    assert table["patient_id"].tolist() == truth["patient_id"].tolist()
    assert any(note.startswith("patient of ") and "in 2 of 8 rows" in note for note in notes)
    assert len(evaluated(tmp_path, given.drop(columns="patient"), truth)[1]) == len(notes) - 1


def test_an_id_that_says_nothing_is_no_id(tmp_path):
    given = TRUTH.rename(columns={"label": "pred"}).assign(image_id=["nan", *NAMES[1:]])
    with pytest.raises(UserError, match=r"1 rows of .* have no image_id"):
        evaluated(tmp_path, given)


# which columns are meant


def test_the_truth_is_never_scored_against_itself(tmp_path):
    """scikit-learn's users keep the label beside what was predicted."""
    for name in ("y_pred", "pred", "Predicted Label", "prediction"):
        metrics, notes, _ = evaluated(tmp_path, TRUTH.assign(**{name: GUESS}))
        assert metrics["accuracy"] == 3 / 8
        assert len(notes) == 1
    one_hot = pd.get_dummies(pd.Series(GUESS)).astype(float).reindex(columns=CLASSES, fill_value=0.0)
    metrics, _, _ = evaluated(tmp_path, pd.concat([TRUTH, one_hot], axis=1))
    assert metrics["accuracy"] == 3 / 8
    assert "macro_auroc" in metrics
    with pytest.raises(UserError, match=r"several columns of classes, label, resnet, and label may be the truth"):
        evaluated(tmp_path, TRUTH.assign(resnet=GUESS))
    assert accuracy(tmp_path, TRUTH.assign(resnet=GUESS), prediction_column="resnet") == 3 / 8
    metrics, notes, _ = evaluated(tmp_path, TRUTH)
    assert any("is the truth's in every row: does it hold predictions?" in note for note in notes)


def test_a_copy_of_the_truth_that_is_another_is_named(tmp_path):
    _, notes, _ = evaluated(tmp_path, TRUTH.assign(label=["Normal", *TRUE[1:]], y_pred=GUESS))
    assert any("label of " in note and "differs from the truth in 1 of 8 rows" in note for note in notes)


@pytest.mark.parametrize("names", [("label", "class", "target"), ("label", "target"), ("class", "y_true")])
def test_of_two_columns_that_could_be_the_truth_none_is_taken(tmp_path, names):
    truth = pd.DataFrame({"image_id": NAMES} | dict.fromkeys(names, GUESS)).assign(**{names[0]: TRUE})
    given = pd.DataFrame({"image_id": NAMES, "pred": GUESS})
    with pytest.raises(UserError, match=f"could be the true classes, and they differ: {', '.join(names)}"):
        evaluated(tmp_path, given, truth)
    assert accuracy(tmp_path, given, truth, truth_column=names[0]) == 3 / 8
    assert accuracy(tmp_path, given, truth, truth_column=names[1]) == 1
    assert accuracy(tmp_path, given, truth.assign(**dict.fromkeys(names, TRUE))) == 3 / 8  # they say the same
    with pytest.raises(UserError, match=r"--truth-column finding: .* has no such column; it has image_id"):
        evaluated(tmp_path, given, truth, truth_column="finding")


def test_of_two_columns_of_predictions_none_is_taken(tmp_path):
    given = pd.DataFrame({"image_id": NAMES, "pred": GUESS, "prediction": TRUE})
    with pytest.raises(UserError, match="could be the predictions, and they differ: prediction, pred"):
        evaluated(tmp_path, given)
    assert accuracy(tmp_path, given, prediction_column="pred") == 3 / 8


def scores_of(prefix, names):
    return pd.DataFrame(np.eye(3)[[CLASSES.index(name) for name in names]], columns=[prefix + c for c in CLASSES])


@pytest.mark.parametrize(
    ("other", "columns"),
    [
        (pd.DataFrame({"y_pred": TRUE}), "y_pred"),
        (pd.DataFrame({"y_pred": [CLASSES.index(name) for name in TRUE]}), "y_pred"),
        (pd.DataFrame({"ranking": [json.dumps([name]) for name in TRUE]}), "ranking"),
        (scores_of("sim_", TRUE), "sim_COVID-19, sim_Non-COVID, sim_Normal"),
        (scores_of("", TRUE), "COVID-19, Non-COVID, Normal"),
    ],
    ids=["names", "numbers", "ranking", "similarities", "columns of classes"],
)
def test_two_kinds_of_predictions_that_differ_are_refused(tmp_path, other, columns):
    given = pd.concat([pd.DataFrame({"image_id": NAMES}), scores_of("prob_", GUESS), other], axis=1)
    with pytest.raises(UserError, match=f"by prob_COVID-19, .* and by {columns} differ in 5 of 8 rows .*: remove the"):
        evaluated(tmp_path, given)
    if len(other.columns) == 1:
        assert accuracy(tmp_path, given, prediction_column=columns, classes=CLASSES) == 1
    agreeing = pd.concat([given[["image_id"]], scores_of("prob_", TRUE), other], axis=1)
    metrics, notes, _ = evaluated(tmp_path, agreeing)
    assert metrics["accuracy"] == 1
    assert any(f"by {columns} are the same" in note or f"and by {columns} are the same" in note for note in notes)


def test_of_equal_probabilities_either_class_may_be_predicted(tmp_path):
    given = pd.DataFrame({"image_id": NAMES, "prob_A": 0.5, "prob_B": 0.5, "pred": ["A", "B"] * 4})
    _, notes, _ = evaluated(tmp_path, given, TRUTH.assign(label=["A", "B"] * 4))
    assert any("by pred are the same" in note for note in notes)


def test_what_is_not_read_beside_probabilities_is_said(tmp_path):
    given = pd.concat([pd.DataFrame({"image_id": NAMES, "pred": [1.0, *[0.8] * 7]}), scores_of("prob_", GUESS)], axis=1)
    metrics, notes, _ = evaluated(tmp_path, given)
    assert metrics["accuracy"] == 3 / 8
    assert any("not read: pred" in note for note in notes)


def test_columns_named_as_the_classes_are_probabilities(tmp_path):
    given = pd.DataFrame({"image_id": NAMES, "Normal": 0.2, "COVID-19": 0.7, "Non-COVID": 0.1, "age": 61})
    metrics, notes, _ = evaluated(tmp_path, given)
    assert (metrics["accuracy"], notes) == (2 / 8, [])
    logits = given.assign(Normal=3.5)
    with pytest.raises(
        UserError, match=r"rows of .* are no probabilities of Normal, COVID-19, Non-COVID: .*sim_<class>"
    ):
        evaluated(tmp_path, logits)
    with pytest.raises(UserError, match="of COVID-19, Non-COVID, Normal, Mass were expected"):
        evaluated(tmp_path, given, classes=(*CLASSES, "Mass"))


def test_one_file_may_hold_both(tmp_path):
    both = pd.DataFrame({"y_true": TRUE, "y_pred": GUESS})
    metrics, notes, _ = evaluated(tmp_path, both, None)
    assert metrics["accuracy"] == 3 / 8
    assert len(notes) == 1  # of the classes
    assert accuracy(tmp_path, TRUTH.assign(y_pred=GUESS), None) == 3 / 8
    given = TRUTH.assign(y_pred=GUESS)
    given.to_csv(tmp_path / "both.csv", index=False)
    table = read_external_predictions(tmp_path / "both.csv", tmp_path / "both.csv").table
    assert table["image_id"].tolist() == NAMES
    assert table["predicted"].tolist() == GUESS
    for alone in (TRUTH, both[["y_pred"]]):
        with pytest.raises(UserError, match=r"has no predictions|has no label column"):
            evaluated(tmp_path, alone, None)


def pipeline(names, labels=CLASSES):
    """A Hugging Face pipeline's output, the highest score first."""
    rows = [
        [{"label": name, "score": 0.8}] + [{"label": n, "score": 0.1} for n in labels if n != name] for name in names
    ]
    return [sorted(row, key=lambda item: -item["score"]) for row in rows]


def test_a_pipelines_output_is_read(tmp_path):
    metrics = evaluated(tmp_path, pipeline(GUESS), match="position")[0]
    assert metrics["accuracy"] == 3 / 8
    assert "macro_auroc" in metrics
    by_id = dict(zip(NAMES[::-1], pipeline(GUESS[::-1]), strict=True))
    assert evaluated(tmp_path, by_id)[0] == metrics
    rows = [{"image_id": name, "label": cell} for name, cell in by_id.items()]
    assert evaluated(tmp_path, rows)[0] == metrics
    rows = [{"image_id": name, "predictions": cell} for name, cell in by_id.items()]
    assert evaluated(tmp_path, rows)[0] == metrics
    table = pd.DataFrame(rows)
    for written in (json.dumps, str):  # as Python prints it, too
        assert evaluated(tmp_path, table.assign(predictions=table["predictions"].map(written)))[0] == metrics
    numbered = [f"LABEL_{i}" for i in range(3)]
    unnamed = pipeline([numbered[CLASSES.index(name)] for name in GUESS], numbered)
    assert evaluated(tmp_path, unnamed, match="position", classes=CLASSES)[0] == metrics
    cut, notes, _ = evaluated(tmp_path, [row[:2] for row in pipeline(GUESS)], match="position")
    assert cut["accuracy"] == 3 / 8
    assert "macro_auroc" not in cut
    assert any("read as rankings" in note for note in notes)
    best = evaluated(tmp_path, [row[0] for row in pipeline(GUESS)], match="position")[0]
    assert best["accuracy"] == 3 / 8
    with pytest.raises(UserError, match=r"Row 2 of .*: a list of objects with label and score was expected, not None"):
        evaluated(tmp_path, [*pipeline(GUESS)[:1], None, *pipeline(GUESS)[2:]], match="position")


# names of classes


def predicted_as(**names):
    return pd.DataFrame({"image_id": NAMES, "pred": [names.get(name, name) for name in TRUE]})


@pytest.mark.parametrize("twin", ["covid-19", "COVID-19 ", "COVID 19", "covid_19", "Covid19"])
@pytest.mark.parametrize("classes", [(), CLASSES])
def test_names_that_are_nearly_alike_are_named(tmp_path, twin, classes):
    given = pd.DataFrame({"image_id": NAMES, "pred": [twin if name == "COVID-19" else name for name in TRUE]})
    with pytest.raises(
        UserError, match=f"The class '{twin}' in .*preds.csv differs from 'COVID-19' in .* write both alike"
    ):
        evaluated(tmp_path, given, classes=classes)
    wide = pd.DataFrame({"image_id": NAMES, f"prob_{twin}": 0.5, "prob_Normal": 0.25, "prob_Non-COVID": 0.25})
    if not twin.endswith(" "):  # spaces around a column's name are no part of it
        with pytest.raises(UserError, match="write both alike"):
            evaluated(tmp_path, wide, classes=classes)
    truth = TRUTH.assign(label=[twin, *TRUE[1:]])
    with pytest.raises(UserError, match="write both alike"):
        evaluated(tmp_path, pd.DataFrame({"image_id": NAMES, "pred": GUESS}), truth, classes=classes)


def test_one_name_in_two_unicode_forms_is_refused(tmp_path):
    composed, decomposed = "K\u00f6", "Ko\u0308"
    truth = TRUTH.assign(label=[composed, "B"] * 4)
    for given in (
        pd.DataFrame({"image_id": NAMES, "pred": [decomposed, "B"] * 4}),
        pd.DataFrame({"image_id": NAMES, f"prob_{decomposed}": 0.5, "prob_B": 0.5}),
    ):
        for classes in ((), (composed, "B")):
            with pytest.raises(UserError, match=r"in .*preds\.csv and .* two Unicode forms, .* write both in one form"):
                evaluated(tmp_path, given, truth, classes=classes)


def test_files_without_a_class_in_common_are_refused_with_both_lists(tmp_path):
    given = pd.DataFrame({"image_id": NAMES, "pred": ["sick", "healthy"] * 4})
    with pytest.raises(
        UserError, match=r"predicts healthy, sick, and in .* COVID-19, Non-COVID, Normal: .* none in common"
    ):
        evaluated(tmp_path, given)


def test_numbers_are_indices_of_the_classes_that_are_named(tmp_path):
    numbers = [CLASSES.index(name) for name in TRUE]
    for kind in (int, float):
        given = pd.DataFrame({"image_id": NAMES, "pred": np.array(numbers, kind)})
        with pytest.raises(UserError, match=r"predicts 0, 1, 2, and .*say with --classes which names the numbers"):
            evaluated(tmp_path, given)
        assert accuracy(tmp_path, given, classes=CLASSES) == 1
        truth = TRUTH.assign(label=numbers)
        assert accuracy(tmp_path, given, truth) == accuracy(tmp_path, given, truth, classes=CLASSES) == 1
    for column in ("prob_{}", "sim_{}", "prob_LABEL_{}"):
        given = pd.concat(
            [TRUTH[["image_id"]], scores_of("", TRUE).set_axis(map(column.format, range(3)), axis=1)], axis=1
        )
        with pytest.raises(UserError, match="say with --classes which names the numbers"):
            evaluated(tmp_path, given)
        metrics, notes, _ = evaluated(tmp_path, given, classes=CLASSES)
        assert metrics["accuracy"] == 1
        assert any("are numbered: " in note and "1 is Non-COVID" in note for note in notes)
    signs = TRUTH.assign(label=["-1", "1"] * 4)
    assert accuracy(tmp_path, signs.rename(columns={"label": "pred"}), signs) == 1
