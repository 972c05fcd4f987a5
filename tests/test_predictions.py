"""The predictions table, its scores, and the tables of other programs."""

import csv
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_predictions import CLASSES, make

from clipcovid.config import UserError
from clipcovid.evaluate import metrics
from clipcovid.evaluate.external_predictions import read_external_predictions
from clipcovid.evaluate.kinds.classification import KIND, ClassificationScores
from clipcovid.evaluate.kinds.registry import scores_from_json
from clipcovid.evaluate.predictions import read_predictions, write_predictions
from clipcovid.evaluate.probabilities import class_probabilities, get_predictions

score = KIND.score
ENCODER_FILE = {
    "method": "zeroshot",
    "task": "classification",
    "identity": {"seed": 0, "clip.model": "tiny"},
    "manifest_hash": "m1",
    "split_hash": "s1",
    "split": "test",
    "classes": list(CLASSES),
}


def table_of(n=60, **options):
    labels, probabilities = make(n, **options)
    table = pd.DataFrame({"image_id": [f"{i:03}.png" for i in range(n)], "label": labels})
    table[[f"prob_{c}" for c in CLASSES]] = probabilities
    return table.assign(patient_id=[f"p{i // 2}" for i in range(n)])


# The predictions table


def test_table_and_metadata_come_back_as_written(tmp_path):
    path, table = tmp_path / "run" / "test.parquet", table_of()
    write_predictions(path, table, **ENCODER_FILE)
    read, about = read_predictions(path)
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    assert about == ENCODER_FILE
    assert [entry.name for entry in path.parent.iterdir()] == ["test.parquet"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "test.parquet"
    write_predictions(path, table_of(), **ENCODER_FILE)

    def half(table, where, **settings):
        with open(where, "wb") as file:  # noqa: PTH123
            file.write(b"PAR1")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(UserError, match=r"can't be written \(disk full\)"):
        write_predictions(path, table_of(4), **ENCODER_FILE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["test.parquet"]
    assert len(read_predictions(path)[0]) == 60


def test_tables_that_break_the_contract_are_refused(tmp_path):
    with pytest.raises(UserError, match="lack the columns prob_Normal"):
        write_predictions(tmp_path / "x.parquet", table_of().drop(columns="prob_Normal"), **ENCODER_FILE)
    with pytest.raises(UserError, match=r"Image '000\.png' stands twice in .*x\.parquet;"):
        write_predictions(tmp_path / "x.parquet", pd.concat([table_of(), table_of(1)]), **ENCODER_FILE)
    masks = pd.DataFrame({"image_id": ["a", "a"], "region": ["lung", "infection"]})
    write_predictions(tmp_path / "x.parquet", masks, **{**ENCODER_FILE, "task": "segmentation", "classes": []})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_are_not_written(tmp_path, value):
    table = table_of()
    table.iloc[3, table.columns.get_loc(f"prob_{CLASSES[0]}")] = value
    with pytest.raises(UserError, match="not finite numbers for 1 of 60 images"):
        write_predictions(tmp_path / "a.parquet", table, **ENCODER_FILE)
    assert not (tmp_path / "a.parquet").exists()


def test_files_of_another_make_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        read_predictions(tmp_path / "no.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="not a readable Parquet"):
        read_predictions(tmp_path / "text.parquet")
    table_of().to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"clipcovid evaluate"):
        read_predictions(tmp_path / "other.parquet")


def test_class_probabilities_go_by_name_not_by_position():
    table = table_of()
    turned = table[list(table.columns[::-1])]
    assert (class_probabilities(turned, CLASSES) == class_probabilities(table, CLASSES)).all()
    for classes in (CLASSES[:2], (*CLASSES, "Other")):
        with pytest.raises(UserError, match="the classes are"):
            class_probabilities(table, classes)


# Its scores


def test_score_is_json_and_agrees_with_the_metrics():
    table = table_of()
    body = score(table, CLASSES, train_labels=["Normal"] * 3, similarities=np.full((60, 3), 0.25))
    content = json.loads(json.dumps(body.to_json(), allow_nan=False))
    assert scores_from_json(content) == ClassificationScores.from_json(content) == body
    assert list(content) == ["n", "classes", "metrics", "confusion", "intervals", "baselines", "alarms", "notes"]
    expected = metrics.classification_metrics(table["label"].tolist(), class_probabilities(table, CLASSES), CLASSES)
    assert body.metrics == {**expected, "mean_true_similarity": 0.25}
    assert (body.n, body.classes) == (60, list(CLASSES))
    assert (body.intervals["unit"], body.intervals["units"]) == ("patient", 30)
    assert body.baselines["majority"]["from"] == "train"
    low, high = body.intervals["intervals"]["accuracy"]
    assert low < body.metrics["accuracy"] < high
    assert body.alarms == body.notes == []


def test_score_without_patients_says_image_and_warns_of_what_is_wrong():
    table = table_of().drop(columns="patient_id")
    table[[f"prob_{c}" for c in CLASSES]] = [0.2, 0.2, 0.6]
    body = score(table, CLASSES)
    assert body.intervals["unit"] == "image"
    assert "'Normal'" in body.alarms[0]
    known = table_of()
    known.loc[:9, "patient_id"] = None
    assert "10 of 60 images have no patient id" in score(known, CLASSES).notes[0]
    assert "No image is labelled Normal" in score(table_of(shares=[0.5, 0.5, 0]), CLASSES).notes[0]


def test_a_table_without_predictions_is_a_sentence():
    with pytest.raises(UserError, match="predicts nothing"):
        score(pd.DataFrame({"image_id": ["a"], "label": ["Normal"]}), CLASSES)


# The tables of other programs


def write(path, rows):
    """The same rows in the format that the path's ending names."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in r.items()} for r in rows
            )
    return path


TABLE = table_of(30)
PROBABILITIES = class_probabilities(TABLE, CLASSES)
OWN = score(TABLE, CLASSES)
TRUTH = TABLE[["image_id", "label", "patient_id"]].to_dict("records")
KINDS = {
    "prob_": [{f"prob_{c}": p for c, p in zip(CLASSES, row, strict=True)} for row in PROBABILITIES.tolist()],
    "probabilities": [{"probabilities": dict(zip(CLASSES, row, strict=True))} for row in PROBABILITIES.tolist()],
    "list": [{"probabilities": row} for row in PROBABILITIES.tolist()],
    "sim_": [{f"sim_{c}": 2 * p - 1 for c, p in zip(CLASSES, row, strict=True)} for row in PROBABILITIES.tolist()],
    "similarities": [{"similarities": [2 * p - 1 for p in row]} for row in PROBABILITIES.tolist()],
    "ranking": [{"ranking": [CLASSES[i] for i in np.argsort(-row, kind="stable")]} for row in PROBABILITIES],
    "label": [{"label": CLASSES[row.argmax()]} for row in PROBABILITIES],
    "index": [{"pred": int(row.argmax())} for row in PROBABILITIES],
}


def foreign_score(folder, predictions, truth=TRUTH, ending=".json", classes=CLASSES, **options):
    given, true = write(folder / f"preds{ending}", predictions), write(folder / f"truth{ending}", truth)
    table, names, notes = read_external_predictions(given, true, classes, **options)
    return score(table, names), notes


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_in_every_format_scores_as_our_own_table(tmp_path, kind, ending):
    rows = [{"image_id": TRUTH[i]["image_id"], **row} for i, row in enumerate(KINDS[kind])]
    body, notes = foreign_score(tmp_path, rows[::-1], ending=ending)  # order must not matter
    assert notes == []
    expected = {key: value for key, value in OWN.metrics.items() if key in body.metrics}
    assert {key: value for key, value in body.metrics.items() if "similarity" not in key} == pytest.approx(expected)
    assert body.confusion == OWN.confusion
    assert body.intervals["intervals"]["macro_f1"] == OWN.intervals["intervals"]["macro_f1"]
    assert ("macro_auroc" in body.metrics) == (kind in ("prob_", "probabilities", "list"))
    assert ("mean_true_similarity" in body.metrics) == kind.startswith("sim")
    assert ("mean_reciprocal_rank" in body.metrics) == (kind not in ("label", "index"))


def test_objects_of_ids_lists_and_columns_mean_the_same(tmp_path):
    ids, labels = [row["image_id"] for row in TRUTH], [row["label"] for row in TRUTH]
    hard = [row["label"] for row in KINDS["label"]]
    by_id, by_position = {}, {}
    for name, given in {
        "ids": dict(zip(ids, hard, strict=True)),
        "columns": {"image": ids, "predicted": hard},
        "frame": json.loads(pd.DataFrame({"path": ids, "pred": hard}).to_json()),
        "probabilities": dict(zip(ids, (row["probabilities"] for row in KINDS["probabilities"]), strict=True)),
        "rankings": dict(zip(ids, (row["ranking"] for row in KINDS["ranking"]), strict=True)),
    }.items():
        by_id[name], notes = foreign_score(tmp_path, given, dict(zip(ids, labels, strict=True)))
        assert len(notes) == (name in ("columns", "frame"))  # where the ids' columns are called otherwise
    for name, given in {"values": hard, "indices": [CLASSES.index(c) for c in hard]}.items():
        by_position[name], notes = foreign_score(tmp_path, given, labels, match="position")
        assert "matched by position" in notes[0]
        with pytest.raises(UserError, match="--match position"):
            foreign_score(tmp_path, given, labels)
    accuracies = {body.metrics["accuracy"] for body in [*by_id.values(), *by_position.values()]}
    assert accuracies == {OWN.metrics["accuracy"]}


def test_rows_in_an_object_that_describes_them_are_read_and_said(tmp_path):
    rows = [{"image_id": row["image_id"], **hard} for row, hard in zip(TRUTH, KINDS["label"], strict=True)]
    for others in ({"model": "resnet"}, {"model": {"arch": "resnet"}, "errors": [], "epoch": 3, "note": None}):
        body, notes = foreign_score(tmp_path, {"predictions": rows, **others})
        assert body.metrics["accuracy"] == OWN.metrics["accuracy"]
        assert any("those under 'predictions'; not read: 'model'" in note for note in notes)


def test_ids_match_by_the_column_that_both_have(tmp_path):
    truth = [{"image_id": f"x{i}", "path": f"/data/{i}.png", "label": "a"} for i in range(3)]
    given = [{"path": f"/data/{i}.png", "pred": "ab"[i % 2]} for i in range(3)]
    body, _ = foreign_score(tmp_path, given, truth, classes=("a", "b"))
    assert body.metrics["accuracy"] == pytest.approx(2 / 3)


def test_our_own_predictions_can_be_read_as_foreign(tmp_path):
    write_predictions(tmp_path / "own.parquet", TABLE, **ENCODER_FILE)
    truth = write(tmp_path / "truth.json", TRUTH)
    table, classes, _ = read_external_predictions(tmp_path / "own.parquet", truth)
    assert classes == list(CLASSES)
    assert score(table, classes) == OWN


def test_numbers_are_classes_of_their_own_where_none_are_named(tmp_path):
    body, notes = foreign_score(tmp_path, [0, 1, 1], [0, 1, 0], classes=(), match="position")
    assert body.classes == ["0", "1"]
    assert "--classes" in notes[1]
    named, _ = foreign_score(tmp_path, [0, 1, 1], [0, 1, 0], classes=("1", "0"), match="position")
    assert named.metrics["recall/1"] == 1  # a name goes before an index


def test_drop_scores_what_both_have_and_says_what_it_left(tmp_path):
    given = [{"id": f"i{i}", "pred": "a"} for i in range(1, 6)]
    truth = [{"id": f"i{i}", "label": "a"} for i in range(5)]
    body, notes = foreign_score(tmp_path, given, truth, classes=("a", "b"), missing="drop")
    assert body.n == 4
    assert notes == ["Left out: 1 images without a prediction, 1 without a ground truth."]


P, T = [{"id": "i", "pred": "a"}], [{"id": "i", "label": "a"}]
MISTAKES = {
    "none predicted": ([], T, "has no rows"),
    "missing": (
        [{"id": "i5", "pred": "a"}],
        [{"id": f"i{k}", "label": "a"} for k in range(6)],
        "5 of the images in .*truth.json.*'i0', 'i1', 'i2' …; --m",
    ),
    "too many": (
        [*P, {"id": "j", "pred": "a"}],
        T,
        "1 of the images in .*preds.json are not in .*truth.json: 'j'; --missing",
    ),
    "position": (["a", "b"], ["a"], "no column in common that tells their images apart: .*--match position"),
    "twice": (P * 2, T, "1 ids stand twice in .*preds.json, the first is 'i'"),
    "no id": ([{"id": None, "pred": "a"}], T, "1 rows of .*preds.json have no id"),
    "no label column": (P, [{"id": "i", "diagnosis": "a"}], "has no label column .*it has id, diagnosis"),
    "no prediction column": ([{"id": "i", "guess": "a"}], T, "has no predictions: .*it has id, guess"),
    "no prediction": ([{"id": "i", "pred": None}], T, "A row of .*preds.json has no class"),
    "no label": (P, [{"id": "i", "label": ""}], "A row of .*truth.json has no class"),
    "unknown label": (P, [{"id": "i", "label": "x"}], "1 of 1 labels are not among the classes a, b; the first is 'x'"),
    "unknown prediction": ([{"id": "i", "pred": "x"}], T, "predictions are not among the classes"),
    "index too high": ([{"id": "i", "pred": 2}], T, "predictions are not among .* the first is '2'"),
    "sum": (
        [{"id": "i", "prob_a": 0.9, "prob_b": 0.3}],
        T,
        "1 of 1 rows of .* are no probabilities of a, b: row 1 sums to 1.2",
    ),
    "negative": ([{"id": "i", "prob_a": 1.5, "prob_b": -0.5}], T, "lowest of -0.5, where 1 and no negative"),
    "NaN": ([{"id": "i", "prob_a": float("nan"), "prob_b": 0.5}], T, "not finite"),
    "text": ([{"id": "i", "prob_a": "0,7", "prob_b": "0,3"}], T, "not all numbers: '0,7' is none"),
    "other classes": ([{"id": "i", "probabilities": {"a": 0.5, "c": 0.5}}], T, "of a, b were expected, not of a, c"),
    "too few": ([{"id": "i", "probabilities": [1.0]}], T, r"of a, b were expected, not \[1.0\]"),
    "null": ([{"id": "i", "probabilities": None}], T, "of a, b were expected, not None"),
    "empty ranking": ([{"id": "i", "ranking": []}], T, "not among the classes|at least one class"),
    "key twice": ('{"i": "a", "i": "b"}', T, "'i' stands twice in one object"),
    "no JSON": ("{", T, "not valid JSON"),
    "a number": ("3", T, "a list or an object of rows was expected"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_sentences(tmp_path, mistake):
    given, truth, words = MISTAKES[mistake]
    (tmp_path / "preds.json").write_text(given if isinstance(given, str) else json.dumps(given))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(UserError, match=words):
        score(*read_external_predictions(tmp_path / "preds.json", tmp_path / "truth.json", ("a", "b"))[:2])


def test_mistakes_of_files_are_sentences(tmp_path):
    truth = write(tmp_path / "truth.json", T)
    for name, text, words in (
        ("no.json", None, "There is no file"),
        ("preds.txt", "a", r"must be \.csv, \.tsv, \.json, \.jsonl"),
        ("preds.csv", "id,pred\ni,a,b\n", "line 2: 3 fields, where the header has 2"),
        ("empty.csv", "id,pred\n", "has no rows"),
        ("broken.parquet", "PAR1", "can't be read as Parquet"),
        ("binary.csv", "\udcff", "is not UTF-8 text"),
        ("lists.json", '{"i": [0.5, 0.5]}', "give --classes in their order"),
        ("nobody.json", '{"j": "a"}', "have no image in common"),
    ):
        if text is not None:
            (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=words):
            read_external_predictions(tmp_path / name, truth, missing="drop")


def test_predicted_prefers_probabilities():
    table = table_of(5)
    assert isinstance(get_predictions(table, CLASSES), np.ndarray)
    renamed = table.rename(columns=lambda name: name.replace("prob_", "sim_"))
    assert get_predictions(renamed, CLASSES) == [CLASSES[i] for i in class_probabilities(table, CLASSES).argmax(axis=1)]
