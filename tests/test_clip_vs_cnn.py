"""CLIP against CNN: every number in a sentence is one that can be counted, and the workflow gathers what they are made of."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_predictions import CLASSES, make
from scipy.stats import binomtest
from sklearn.metrics import recall_score, roc_auc_score

from clipcovid.prompts import TEMPLATE
from clipcovid.report.clip_vs_cnn import NewClass, Paraphrases, Rival, compare_families
from clipcovid.report.findings import Finding
from clipcovid.workflows.clip_vs_cnn import describe_candidate, predict_candidates, usual_phrase
from clipcovid.workflows.prompt_search import Candidate, PromptSpace, read_space


def table_of(n, seed, signal=1.0):
    """Predictions of one set of labels, whatever the seed."""
    labels, _ = make(n, seed=0)
    truth = np.array([CLASSES.index(label) for label in labels])
    odds = np.exp(np.random.default_rng(seed).normal(size=(n, 3)) + signal * np.eye(3)[truth])
    table = pd.DataFrame({"image_id": [f"{at:04}" for at in range(n)], "label": labels})
    table["patient_id"] = [f"p{at // 2}" for at in range(n)]
    table[[f"prob_{name}" for name in CLASSES]] = odds / odds.sum(axis=1, keepdims=True)
    return table


@pytest.fixture(scope="module")
def rivals():
    return [
        Rival(
            name="zeroshot", family="CLIP", table=table_of(120, 1, 0.5), training=table_of(60, 5, 0.5), zero_shot=True
        ),
        Rival(name="probe", family="CLIP", table=table_of(120, 2, 1.0)),
        Rival(name="cnn", family="CNN", table=table_of(120, 3, 1.2), training=table_of(60, 6, 6.0)),
        Rival(name="vgg", family="CNN", table=table_of(120, 4, 0.1), training=table_of(60, 7, 0.1)),
    ]


def of(findings, check):
    (found,) = [finding for finding in findings if finding.check.startswith(check)]
    return found


def right(table):
    return table.filter(like="prob_").to_numpy().argmax(axis=1) == [CLASSES.index(label) for label in table["label"]]


def test_the_duel_of_the_best_counts_and_shows_each_side(rivals):
    finding = of(compare_families(rivals, CLASSES, "data/x"), "Where each wins")
    numbers, clip, cnn = finding.numbers, right(rivals[1].table), right(rivals[2].table)
    assert (numbers["clip"], numbers["cnn"]) == ("probe", "cnn")
    assert (numbers["only_clip"], numbers["only_cnn"]) == ((clip & ~cnn).sum(), (cnn & ~clip).sum())
    assert numbers["both_right"] + numbers["only_clip"] + numbers["only_cnn"] + numbers["both_wrong"] == 120
    assert numbers["p"] == pytest.approx(
        binomtest(numbers["only_clip"], numbers["only_clip"] + numbers["only_cnn"]).pvalue
    )
    for name in CLASSES:
        recalls = [
            recall_score(
                rival.table["label"] == name,
                (rival.table.filter(like="prob_").idxmax(axis=1) == f"prob_{name}"),
            )
            for rival in rivals[1:3]
        ]
        entry = numbers["by_class"][name]
        assert entry["recall_difference"] == pytest.approx(recalls[0] - recalls[1])
        assert entry["interval"][0] <= entry["recall_difference"] <= entry["interval"][1]
    shown = {sheet.caption.split(" (")[0]: {image for _, image in sheet.images} for sheet in finding.examples}
    images = rivals[0].table["image_id"].to_numpy()
    assert shown["Only probe is right"] <= set(images[clip & ~cnn])
    assert shown["Only cnn is right"] <= set(images[cnn & ~clip])
    assert shown["Both are wrong"] <= set(images[~cnn & ~clip])
    assert all(folder == "data/x" for sheet in finding.examples for folder, _ in sheet.images)


def test_a_class_is_surely_ahead_only_where_its_interval_is_off_zero():
    sure = [
        Rival(name="clip", family="CLIP", table=table_of(200, 1, 5.0)),
        Rival(name="cnn", family="CNN", table=table_of(200, 2, 0.0)),
    ]
    told = of(compare_families(sure, CLASSES, "x"), "Where each wins").summary
    assert "clip on COVID-19, clip on Non-COVID, clip on Normal is surely ahead" in told
    same = [
        Rival(name="clip", family="CLIP", table=sure[0].table),
        Rival(name="cnn", family="CNN", table=sure[0].table),
    ]
    assert "neither is surely ahead" in of(compare_families(same, CLASSES, "x"), "Where each wins").summary


def test_over_fitting_is_the_gap_between_the_train_split_and_the_compared_one(rivals):
    finding = of(compare_families(rivals, CLASSES, "x"), "Over-fitting")
    assert set(finding.numbers) == {"zeroshot", "cnn", "vgg"}
    own = finding.numbers["cnn"]
    assert own["gap"] == pytest.approx(right(rivals[2].training).mean() - right(rivals[2].table).mean())
    assert own["interval"][0] < own["gap"] < own["interval"][1]
    assert finding.severity == "medium"
    assert finding.summary.startswith("cnn loses most between the train split")
    flat = [entry for entry in rivals if entry.name != "cnn"]
    assert of(compare_families(flat, CLASSES, "x"), "Over-fitting").severity == "info"


def test_new_classes_are_told_by_auroc_and_the_cnns_by_their_fixed_set(rivals):
    rng = np.random.default_rng(0)
    is_class = rng.random(80) < 0.4
    scores = np.clip(0.5 * rng.random(80) + 0.3 * is_class, 0, 1)
    new = NewClass(name="Edema", data="data/nih", is_class=is_class, scores=scores, patients=("",) * 80)
    rare = replace(new, name="Hernia", is_class=np.arange(80) < 3)
    finding = of(compare_families(rivals, CLASSES, "x", new_classes=[new, rare]), "New classes")
    assert "Too few images to say it of Hernia (3)." in finding.summary
    known, (edema,) = finding.numbers["classes"][:3], finding.numbers["classes"][3:]
    for entry in known:
        truth = rivals[0].table["label"] == entry["class"]
        assert entry["auroc"] == pytest.approx(roc_auc_score(truth, rivals[0].table[f"prob_{entry['class']}"]))
    assert edema["auroc"] == pytest.approx(roc_auc_score(is_class, scores))
    assert edema["interval"][0] < edema["auroc"] < edema["interval"][1]
    assert "No method learned 'Edema'." in finding.summary
    assert "cnn and vgg can answer 'COVID-19', 'Non-COVID', 'Normal' and nothing else" in finding.summary


def test_phrasing_counts_the_spread_and_how_far_images_keep_their_class(rivals):
    truth = np.array([CLASSES.index(label) for label in rivals[0].table["label"]])
    perfect, never = truth, (truth + 1) % 3
    half = np.where(np.arange(120) < 60, truth, never)
    spread = Paraphrases(
        method="zeroshot",
        varied_noun="templates",
        texts=("a {}", "b {}", "c {}"),
        predicted=np.stack([half, never, perfect]),
    )
    finding = of(compare_families(rivals, CLASSES, "x", paraphrases=[spread]), "Robustness")
    accuracy = finding.numbers["accuracy"]
    assert (accuracy["min"], accuracy["median"], accuracy["max"]) == (0.0, 0.5, 1.0)
    assert accuracy["own"] == pytest.approx(right(rivals[0].table).mean())
    assert finding.numbers["images_of_one_class"] == 0
    assert finding.numbers["mean_agreement"] == pytest.approx(2 / 3)
    assert finding.severity == "low"
    assert [row[0] for row in finding.tables[0].sections[0]] == ["b {}", "a {}", "c {}"]
    steady = Paraphrases(
        method="zeroshot", varied_noun="templates", texts=("a {}", "b {}"), predicted=np.stack([truth, truth])
    )
    finding = of(compare_families(rivals, CLASSES, "x", paraphrases=[steady]), "Robustness")
    assert finding.numbers["images_of_one_class"] == finding.numbers["mean_agreement"] == 1
    assert finding.severity == "info"


def test_what_nothing_is_known_of_is_left_out(rivals):
    checks = [finding.check for finding in compare_families(rivals[1:2], CLASSES, "x")]
    assert checks == []
    findings = compare_families(rivals[2:3], CLASSES, "x")
    assert [finding.check for finding in findings] == ["Trained classes", "Over-fitting"]
    for finding in compare_families(rivals, CLASSES, "x"):
        text = json.dumps(finding.to_json(), allow_nan=False)
        assert Finding.from_json(json.loads(text)).summary == finding.summary


# The workflow


def test_paraphrases_predict_as_clip_does_with_those_prompts_alone():
    rng = np.random.default_rng(1)
    space = PromptSpace(("a {}", "b {}"), (2,), {"x": ("x1", "x2", "x3"), "y": ("y1", "y2")})
    images, texts = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(2, 5, 4)).astype(np.float32)
    candidates = [
        Candidate((at,), ((one,), (two,))) for at, one, two in itertools.product(range(2), range(3), range(2))
    ]
    predicted = predict_candidates(images, texts, space, candidates)
    for row, candidate in zip(predicted, candidates, strict=True):
        chosen = texts[candidate.templates[0]][[candidate.phrases[0][0], 3 + candidate.phrases[1][0]]]
        assert row.tolist() == (images @ chosen.T).argmax(axis=1).tolist()
    assert describe_candidate(space, candidates[-1], names=False) == "b {}"
    assert describe_candidate(space, candidates[-1], names=True) == "x3 / y2"


def test_the_default_words_are_among_the_paraphrases():
    space = read_space(None, CLASSES)
    assert TEMPLATE in space.templates
    assert [usual_phrase(name, space.phrases[name]) for name in CLASSES] == [
        "COVID-19 pneumonia",
        "viral or bacterial pneumonia",
        "normal lungs",
    ]
