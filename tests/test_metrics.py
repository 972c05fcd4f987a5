"""Metrics against scikit-learn and against naive code, at the edges, and under changes that must not matter."""

import warnings

import numpy as np
import pytest
from made_predictions import CLASSES, make
from sklearn import metrics as sk

from clipcovid.config import UserError
from clipcovid.evaluate import metrics
from clipcovid.evaluate.calibration import calibration_metrics

CALIBRATION = calibration_metrics(np.array([0]), np.eye(2)[:1]).keys()


def naive(labels, probabilities, classes):
    predicted = [classes[max(range(len(classes)), key=lambda i: row[i])] for row in probabilities]
    present = [c for c in classes if c in labels]
    out = {"accuracy": sum(a == b for a, b in zip(labels, predicted, strict=True)) / len(labels)}
    per = {name: {} for name in ("precision", "recall", "specificity", "npv", "f1", "auroc")}
    for c in present:
        tp = sum(a == c == b for a, b in zip(labels, predicted, strict=True))
        fp = sum(a != c == b for a, b in zip(labels, predicted, strict=True))
        fn = sum(a == c != b for a, b in zip(labels, predicted, strict=True))
        tn = len(labels) - tp - fp - fn
        per["precision"][c] = tp / (tp + fp) if tp + fp else 0.0
        per["recall"][c] = tp / (tp + fn)
        per["npv"][c] = tn / (tn + fn) if tn + fn else 0.0
        per["f1"][c] = 2 * tp / (2 * tp + fp + fn)
        if tn + fp:
            per["specificity"][c] = tn / (tn + fp)
            column = probabilities[:, classes.index(c)]
            mine = [p for p, a in zip(column, labels, strict=True) if a == c]
            others = [p for p, a in zip(column, labels, strict=True) if a != c]
            per["auroc"][c] = np.mean([(p > q) + (p == q) / 2 for p in mine for q in others])
    for name, values in per.items():
        out |= {f"{name}/{c}": value for c, value in values.items()}
        if values:
            out[f"macro_{name}"] = np.mean(list(values.values()))
    ranks = []
    for a, row in zip(labels, probabilities, strict=True):
        ranks.append(sorted(range(len(classes)), key=lambda i: (-row[i], i)).index(classes.index(a)) + 1)
    out["mean_reciprocal_rank"] = np.mean([1 / rank for rank in ranks])
    out |= {f"top{k}_accuracy": np.mean([rank <= k for rank in ranks]) for k in range(2, min(5, len(classes) - 1) + 1)}
    return out


CASES = {
    "balanced": make(60),
    "imbalanced": make(80, shares=[0.03, 0.07, 0.9], seed=1),
    "absent class": make(40, shares=[0.5, 0.5, 0.0], seed=2),
    "one class only": make(20, shares=[0.0, 1.0, 0.0], seed=3),
    "one row": make(1, seed=4),
    "constant": (make(30, seed=5)[0], np.full((30, 3), 1 / 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_naive_code(case):
    labels, probabilities = CASES[case]
    scores = metrics.classification_metrics(labels, probabilities, CLASSES)
    expected = naive(labels, probabilities, CLASSES)
    assert {key: scores[key] for key in expected} == pytest.approx(expected)
    rest = {key for key in scores if key not in expected}
    assert all(key in ("balanced_accuracy", "kappa") or "auprc" in key or key in CALIBRATION for key in rest), rest
    assert scores["balanced_accuracy"] == scores["macro_recall"]
    assert all(np.isfinite(value) for value in scores.values())


@pytest.mark.parametrize("k", [2, 3, 7])
def test_equals_scikit_learn(k):
    classes = tuple(f"c{i}" for i in range(k))
    labels, probabilities = make(200, classes, seed=k)
    predicted = [classes[i] for i in probabilities.argmax(axis=1)]
    scores = metrics.classification_metrics(labels, probabilities, classes)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    binary = np.array(labels)[:, None] == np.array(classes)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_precision": precision,
        "macro_recall": recall,
        "macro_f1": f1,
        "kappa": sk.cohen_kappa_score(labels, predicted),
        "macro_auroc": np.mean([sk.roc_auc_score(binary[:, i], probabilities[:, i]) for i in range(k)]),
        "macro_auprc": sk.average_precision_score(binary, probabilities, average="macro"),
    }
    assert {key: scores[key] for key in expected} == pytest.approx(expected)
    assert (
        metrics.confusion_matrix(labels, predicted, classes) == sk.confusion_matrix(labels, predicted, labels=classes)
    ).all()
    assert ("top2_accuracy" in scores, "top5_accuracy" in scores, "top6_accuracy" in scores) == (k > 2, k > 5, False)


def test_order_of_rows_does_not_matter():
    labels, probabilities = make(97)
    order = np.random.default_rng(9).permutation(97)
    shuffled = metrics.classification_metrics([labels[i] for i in order], probabilities[order], CLASSES)
    assert shuffled == pytest.approx(metrics.classification_metrics(labels, probabilities, CLASSES), abs=1e-12)


def test_order_of_classes_does_not_matter_without_ties():
    labels, probabilities = make(97)
    probabilities = probabilities + np.random.default_rng(0).uniform(0, 1e-6, probabilities.shape)
    turned = metrics.classification_metrics(labels, probabilities[:, ::-1], CLASSES[::-1])
    assert turned == pytest.approx(metrics.classification_metrics(labels, probabilities, CLASSES), abs=1e-12)


def test_one_label_swapped_changes_accuracy_by_one_nth():
    labels, probabilities = make(50)
    predicted = probabilities.argmax(axis=1)
    right = next(i for i, label in enumerate(labels) if CLASSES[predicted[i]] == label)
    before = metrics.classification_metrics(labels, probabilities, CLASSES)["accuracy"]
    labels[right] = CLASSES[(predicted[right] + 1) % 3]
    assert before - metrics.classification_metrics(labels, probabilities, CLASSES)["accuracy"] == pytest.approx(1 / 50)


@pytest.mark.parametrize("transform", [lambda p: np.log(p), lambda p: 7 * p - 3])
def test_only_the_order_of_scores_matters(transform):
    labels, probabilities = make(60)
    same = metrics.classification_metrics(labels, transform(probabilities), CLASSES)
    before = metrics.classification_metrics(labels, probabilities, CLASSES)
    assert same == pytest.approx({name: value for name, value in before.items() if name not in CALIBRATION})


def test_one_class_named_or_one_class_labelled_leaves_undefined_out():
    assert (
        metrics.classification_metrics(["a"], np.ones((1, 1)), ["a"])
        .keys()
        .isdisjoint({"kappa", "macro_auroc", "macro_specificity"})
    )
    scores = metrics.classification_metrics(["a", "a"], np.array([[0.9, 0.1], [0.2, 0.8]]), ["a", "b"])
    assert "macro_auroc" not in scores
    assert "recall/b" not in scores
    assert scores["macro_recall"] == scores["recall/a"] == 0.5


def test_no_warnings_at_the_edges():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels, probabilities in CASES.values():
            metrics.classification_metrics(labels, probabilities, CLASSES)
            metrics.baseline_scores(None, labels, CLASSES)


def test_hard_labels_and_rankings_share_what_they_allow_with_probabilities():
    labels, probabilities = make(60)
    full = metrics.classification_metrics(labels, probabilities, CLASSES)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hard = metrics.hard_label_metrics(labels, [CLASSES[row[0]] for row in order], CLASSES)
    ranked = metrics.ranking_metrics(labels, [[CLASSES[i] for i in row] for row in order], CLASSES)
    assert hard == {key: full[key] for key in hard}
    assert ranked == pytest.approx({key: full[key] for key in ranked})
    assert "macro_f1" in hard
    assert ranked.keys() - hard.keys() == {"top2_accuracy", "mean_reciprocal_rank"}


def test_a_ranking_cut_short_is_a_miss():
    scores = metrics.ranking_metrics(["a", "b", "c", "d"], [["a"], ["a", "b"], ["a", "b"], ["d", "c"]], list("abcde"))
    assert scores["accuracy"] == 0.5
    assert scores["top2_accuracy"] == 0.75
    assert scores["mean_reciprocal_rank"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert "top3_accuracy" not in scores  # no ranking goes that far


def test_similarity_is_the_mean_at_the_true_class():
    assert metrics.similarity_metrics(["a", "b"], np.array([[0.5, 0.9], [0.1, 0.3]]), ["a", "b"]) == {
        "mean_true_similarity": pytest.approx(0.4)
    }


@pytest.mark.parametrize(
    ("labels", "probabilities", "classes", "words"),
    [
        ([], np.empty((0, 2)), ["a", "b"], "no label to score"),
        (["a"], np.array([[np.nan, 0.5]]), ["a", "b"], "1 of 1 rows are not finite"),
        (["a"], np.array([[0.2, 0.3, 0.5]]), ["a", "b"], "shape"),
        (["a", "b"], np.array([[0.5, 0.5]]), ["a", "b"], "1 predictions for 2 labels"),
        (
            ["a", "x"],
            np.full((2, 2), 0.5),
            ["a", "b"],
            "1 of 2 labels are not among the classes a, b; the first is 'x'",
        ),
        (["a"], np.full((1, 2), 0.5), ["a", "a"], "each given once"),
    ],
)
def test_mistakes_are_sentences(labels, probabilities, classes, words):
    with pytest.raises(UserError, match=words):
        metrics.classification_metrics(labels, probabilities, classes)


def test_mistakes_in_hard_labels_and_rankings_are_sentences():
    with pytest.raises(UserError, match="predictions are not among the classes"):
        metrics.hard_label_metrics(["a"], ["x"], ["a", "b"])
    for ranking in ([], ["a", "a"]):
        with pytest.raises(UserError, match="A ranking must list"):
            metrics.ranking_metrics(["a"], [ranking], ["a", "b"])
    with pytest.raises(UserError, match="1 of 2 ranked classes are not among"):
        metrics.ranking_metrics(["a"], [["a", "x"]], ["a", "b"])
    with pytest.raises(UserError, match="not finite"):
        metrics.similarity_metrics(["a"], np.array([[np.inf, 0]]), ["a", "b"])


def test_majority_baseline_takes_the_majority_of_train():
    labels, train = ["a"] * 8 + ["b"] * 2, ["b"] * 6 + ["a"] * 4
    from_train = metrics.baseline_scores(train, labels, ["a", "b"])
    assert (from_train["majority"]["from"], from_train["majority"]["class"]) == ("train", "b")
    assert from_train["majority"]["accuracy"] == pytest.approx(0.2)
    hard_label_metrics = metrics.baseline_scores(None, labels, ["a", "b"])
    assert (hard_label_metrics["majority"]["from"], hard_label_metrics["majority"]["class"]) == ("scored labels", "a")
    assert hard_label_metrics["majority"]["accuracy"] == pytest.approx(0.8)
    assert hard_label_metrics["majority"]["macro_auroc"] == 0.5
    assert hard_label_metrics["majority"]["auprc/a"] == pytest.approx(0.8)


def test_prior_baseline_equals_the_mean_over_random_draws():
    labels, train = make(300, shares=[0.2, 0.3, 0.5])[0], make(100, shares=[0.6, 0.3, 0.1], seed=1)[0]
    prior = metrics.baseline_scores(train, labels, CLASSES)["prior"]
    shares = [train.count(c) / len(train) for c in CLASSES]
    rng = np.random.default_rng(0)
    draws = [
        metrics.hard_label_metrics(labels, rng.choice(CLASSES, 300, p=shares).tolist(), CLASSES) for _ in range(400)
    ]
    for key in ("accuracy", "macro_recall", "macro_specificity", "recall/Normal", "macro_f1", "kappa"):
        assert prior[key] == pytest.approx(np.mean([draw[key] for draw in draws]), abs=0.01), key
    assert prior["accuracy"] == pytest.approx(
        sum(p * labels.count(c) / 300 for p, c in zip(shares, CLASSES, strict=True))
    )


@pytest.mark.parametrize("n", [9, 30, 300])
def test_alarm_fires_for_constant_predictions(n):
    labels = [CLASSES[i % 3] for i in range(n)]
    alarm = metrics.collapse_alarm(["Normal"] * n, labels, CLASSES)
    assert alarm is not None
    assert "'Normal': 100% of the predictions, but 33%" in alarm
    assert metrics.collapse_alarm(np.tile([0.1, 0.2, 0.7], (n, 1)), labels, CLASSES) == alarm


def test_alarm_fires_at_a_high_prevalence_but_not_above_its_bound():
    assert metrics.collapse_alarm(["a"] * 1000, ["a"] * 740 + ["b"] * 260, ["a", "b"]) is not None
    assert metrics.collapse_alarm(["a"] * 1000, ["a"] * 760 + ["b"] * 240, ["a", "b"]) is None


def test_alarm_is_silent_for_guessers_and_good_models_at_small_n():
    rng = np.random.default_rng(0)
    guesser = good = 0
    for seed in range(150):
        n = int(rng.integers(2, 40))
        labels, probabilities = make(n, seed=seed, signal=3)
        guesser += metrics.collapse_alarm(rng.choice(CLASSES, n).tolist(), labels, CLASSES) is not None
        good += metrics.collapse_alarm(probabilities, labels, CLASSES) is not None
    assert good == 0
    assert guesser <= 4
