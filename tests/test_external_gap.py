"""The gap between a test split and another data set: its interval against a naive one, merged classes, sets that differ."""

import numpy as np
import pandas as pd
import pytest
from made_predictions import CLASSES, make
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from clipcovid.config import UserError
from clipcovid.evaluate.external_gap import (
    SHORTCUT_WARNING,
    compare_sets,
    external_tables,
    internal_external_gaps,
    merge_classes,
    parse_merges,
)
from clipcovid.evaluate.kinds.classification import KIND
from clipcovid.evaluate.scores import ExternalTest


def table_of(n, seed, signal=1.0, a_patient=3):
    labels, probabilities = make(n, signal=signal, seed=seed)
    table = pd.DataFrame({"image_id": [f"{at:04}" for at in range(n)], "label": labels})
    table["patient_id"] = [f"p{at // a_patient}" for at in range(n)]
    table[[f"prob_{name}" for name in CLASSES]] = probabilities
    return table


def about(**changes):
    told = {"data": "data/other", "dataset": "other", "split": "all", "manifest_hash": "m", "split_hash": "s"}
    told |= {"label_map": {}, "left_out": 0, "shared": {}, "runs": {}, "skipped": {}}
    return ExternalTest(**(told | changes))


def naive_accuracies(table, samples, rng):
    """Accuracies of resamples of patients, drawn one by one."""
    patients = {name: rows.index.to_numpy() for name, rows in table.groupby("patient_id")}
    predicted = table.filter(like="prob_").to_numpy().argmax(axis=1)
    right = predicted == np.array([CLASSES.index(label) for label in table["label"]])
    names = list(patients)
    drawn = [
        np.concatenate([patients[names[at]] for at in rng.integers(0, len(names), len(names))]) for _ in range(samples)
    ]
    return np.array([right[rows].mean() for rows in drawn])


def test_a_gap_is_the_difference_of_both_sets_scores_with_the_interval_of_a_naive_bootstrap():
    internal, external = table_of(180, 1), table_of(120, 2, signal=0.5)
    gap = internal_external_gaps(KIND, [internal], [external], CLASSES, samples=4000)[0]
    scores = []
    for table in (internal, external):
        matrix = table.filter(like="prob_").to_numpy()
        predicted = [CLASSES[at] for at in matrix.argmax(axis=1)]
        aurocs = [roc_auc_score(table["label"] == name, matrix[:, at]) for at, name in enumerate(CLASSES)]
        macro_f1 = f1_score(table["label"], predicted, average="macro")
        scores.append(
            {
                "accuracy": accuracy_score(table["label"], predicted),
                "macro_f1": macro_f1,
                "macro_auroc": np.mean(aurocs),
            }
        )
    for metric in scores[0]:
        assert gap[metric]["internal"] == pytest.approx(scores[0][metric])
        assert gap[metric]["external"] == pytest.approx(scores[1][metric])
        assert gap[metric]["value"] == pytest.approx(scores[1][metric] - scores[0][metric])
        assert gap[metric]["low"] < gap[metric]["value"] < gap[metric]["high"]
    rng = np.random.default_rng(5)
    naive = naive_accuracies(external, 4000, rng) - naive_accuracies(internal, 4000, rng)
    assert [gap["accuracy"]["low"], gap["accuracy"]["high"]] == pytest.approx(
        np.percentile(naive, [2.5, 97.5]), abs=0.01
    )


def test_the_sets_are_resampled_apart_even_where_they_are_of_one_size():
    table = table_of(150, 3)
    gap = internal_external_gaps(KIND, [table], [table], CLASSES, samples=2000)[0]["accuracy"]
    assert gap["value"] == 0
    alone = naive_accuracies(table, 2000, np.random.default_rng(0)).std()
    assert gap["high"] - gap["low"] == pytest.approx(2 * 1.96 * np.sqrt(2) * alone, rel=0.1)


def test_several_methods_are_measured_as_each_alone():
    internal, external = [table_of(90, seed) for seed in (1, 2)], [table_of(60, seed) for seed in (3, 4)]
    both = [entry.assign(label=sets[0]["label"]) for sets in (internal, external) for entry in sets]
    together = internal_external_gaps(KIND, both[:2], both[2:], CLASSES)
    for at in (0, 1):
        assert together[at] == internal_external_gaps(KIND, [both[at]], [both[2 + at]], CLASSES)[0]


def test_a_set_of_one_patient_has_no_interval():
    gap = internal_external_gaps(KIND, [table_of(60, 1)], [table_of(30, 2, a_patient=30)], CLASSES)[0]
    assert "low" not in gap["accuracy"]


def test_merged_classes_have_the_sum_of_their_probabilities():
    table = table_of(30, 1)
    merged, classes = merge_classes(table, CLASSES, {"negative": ["Non-COVID", "Normal"]})
    assert classes == ["COVID-19", "negative"]
    assert np.allclose(merged["prob_negative"], table["prob_Non-COVID"] + table["prob_Normal"])
    assert ((merged["label"] == "negative") == (table["label"] != "COVID-19")).all()
    assert merged.filter(like="prob_").sum(axis=1).to_numpy() == pytest.approx(1)
    same, unchanged = merge_classes(table, CLASSES, {})
    assert unchanged == list(CLASSES)
    pd.testing.assert_frame_equal(same[table.columns], table)


def test_an_entry_merges_only_where_all_its_parts_are_classes():
    entries = ("negative=Non-COVID+Normal", "positive=COVID-19", "COVID+=COVID+", "other=", "a=b=COVID-19+Edema")
    plain, merges = parse_merges(entries, [*CLASSES, "COVID+", "Edema"])
    assert plain == ["positive=COVID-19", "COVID+=COVID+", "other="]
    assert merges == {"negative": ["Non-COVID", "Normal"], "a=b": ["COVID-19", "Edema"]}
    with pytest.raises(UserError, match="merges the class 'Normal' twice"):
        parse_merges(("a=Non-COVID+Normal", "b=Normal+COVID-19"), CLASSES)
    for second in ("a=COVID-19", "a=COVID-19+Normal", "a="):
        with pytest.raises(UserError, match=r"--external-map: 'a' is mapped twice, to 'Non-COVID\+Normal' and to"):
            parse_merges(("a=Non-COVID+Normal", second), CLASSES)


def test_classes_of_one_set_alone_are_left_out_of_both():
    internal, external = table_of(150, 1), table_of(90, 2)
    external = external[external["label"] != "Normal"].reset_index(drop=True)
    test = compare_sets(KIND, {"cnn": internal}, {"cnn": external}, CLASSES, about())
    both = internal[internal["label"] != "Normal"]
    right = both.filter(like="prob_").to_numpy().argmax(axis=1) == [CLASSES.index(label) for label in both["label"]]
    assert test.gaps["cnn"]["accuracy"]["internal"] == pytest.approx(right.mean())
    assert test.n == len(external)
    assert "other: no external image is 'Normal', so the internal scores leave these out." in test.notes
    with pytest.raises(UserError, match="data/other has no image of a class of the compared split"):
        compare_sets(KIND, {"cnn": both}, {"cnn": internal[internal["label"] == "Normal"]}, CLASSES, about())


def test_a_set_of_which_one_class_is_left_has_no_scores_and_the_others_have():
    internal, external = table_of(150, 1), table_of(90, 2)
    one = external[external["label"] == "Normal"].reset_index(drop=True)
    tables = {"strong": internal, "weak": internal}, {"strong": one, "weak": one}
    test = compare_sets(KIND, *tables, CLASSES, about(left_out=4))
    assert (test.n, test.methods, test.gaps, test.notes) == (0, {}, {"strong": {}, "weak": {}}, [])
    assert test.alarms[0].startswith(
        "data/other is not scored: 'Normal' is the only class that both sets have images of"
    )
    assert any(alarm.startswith("4 images of data/other are also internal") for alarm in test.alarms)
    scored = compare_sets(KIND, {"cnn": internal}, {"cnn": external}, CLASSES, about())
    shown = [table.title for table in external_tables([test, scored], KIND)]
    assert shown == ["External: other (data/other), not scored", "External: other (data/other), 90 images"]
    merged = [merge_classes(table, CLASSES, {"ill": CLASSES}) for table in (internal, external)]
    whole = compare_sets(KIND, {"cnn": merged[0][0]}, {"cnn": merged[1][0]}, merged[0][1], about())
    assert "'ill' is the only class" in whole.alarms[0]


def test_what_is_assumed_of_a_set_is_said():
    internal, external = table_of(150, 1, signal=3.0), table_of(150, 2, signal=0.2)
    told = about(shared={"train": 3, "test": 1}, left_out=4, skipped={"folds": "keeps no checkpoint"})
    weak = internal.assign(**{f"prob_{name}": value for name, value in zip(CLASSES, (0.2, 0.3, 0.5), strict=True)})
    tables = {"strong": internal, "weak": weak}, {"strong": external, "weak": external}
    test = compare_sets(KIND, *tables, CLASSES, told)
    alarms = " ".join(test.alarms)
    assert "images of the internal data set (of its splits train 3, test 1), by their pixels" in alarms
    assert "4 images of data/other are also internal, or a method learned from them" in alarms
    assert "folds keeps no checkpoint, and is not tested on data/other." in alarms
    assert test.alarms[-1] == SHORTCUT_WARNING
    assert "DeGrave" in SHORTCUT_WARNING
    notes = " ".join(test.notes)
    assert "1 of 2 methods are worse on the external set, with the gap's interval below 0: strong." in notes
    assert "Accuracy, F1 and precision change with these shares alone" in notes
    (shown,) = external_tables([test], KIND)
    lines = "\n".join(shown.markdown())
    assert lines.startswith("## External: other (data/other), 150 images")
    assert "gap" in lines
    content = test.to_json()
    assert content["gaps"]["strong"]["accuracy"]["high"] < 0
    assert content["methods"]["strong"]["metrics"]["accuracy"] == content["gaps"]["strong"]["accuracy"]["external"]
