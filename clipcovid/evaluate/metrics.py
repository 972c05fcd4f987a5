"""Classification metrics as flat scalars: from probabilities, hard labels, or rankings of the classes.

One rule holds everywhere: macro averages, and entries per class, run over the classes that stand among the labels. A
class without a label has no recall and no AUROC; a metric that is undefined is left out, never reported as 0 or NaN.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate.calibration import calibration_metrics

Predictions = np.ndarray | Sequence[str]
"""Probabilities or scores (n, k), higher = more likely, or n predicted class names."""

ALARM_DISTANCE = 0.25
ALARM_P_VALUE = 0.01

SCORE_METRICS = re.compile("(macro_)?(auroc|auprc)|brier|(classwise_)?ece")  # that hard labels do not have


def encode_labels(values: Sequence[str], classes: Sequence[str], noun: str = "label") -> np.ndarray:
    """Indices (n,) int64 of `values` in `classes`. No values, a class named twice, an unknown value: `UserError`."""
    values = list(values)
    if len(values) == 0:
        raise UserError(f"There is no {noun} to score.")
    if len(classes) == 0 or len(set(classes)) < len(classes):
        raise UserError(f"The classes {list(classes)} must have at least one name, each given once.")
    index = pd.Index(list(classes), dtype=object).get_indexer(pd.Index(values, dtype=object)).astype(np.int64)
    if (index < 0).any():
        unknown = values[int(np.argmax(index < 0))]
        raise UserError(
            f"{int((index < 0).sum())} of {len(index)} {_plural(noun)} are not among the classes {', '.join(classes)}; "
            f"the first is {unknown!r}."
        )
    return index


def predicted_indices(predictions: Predictions, classes: Sequence[str], n: int) -> np.ndarray:
    """Indices (n,) int64 of the predicted classes: the highest score, of equal ones the first in `classes`."""
    if len(predictions) != n:
        raise UserError(f"There are {len(predictions)} predictions for {n} labels; give one prediction a label.")
    if not isinstance(predictions, np.ndarray) or predictions.ndim == 1:
        return encode_labels(list(predictions), classes, "prediction")
    if predictions.shape != (n, len(classes)):
        raise UserError(
            f"The scores have shape {predictions.shape}; {n} labels and {len(classes)} classes were expected."
        )
    if not np.isfinite(predictions).all():
        bad = int((~np.isfinite(predictions)).any(axis=1).sum())
        raise UserError(f"The scores of {bad} of {n} rows are not finite numbers (NaN or infinite).")
    return predictions.argmax(axis=1)


def confusion_matrix(labels: Sequence[str], predicted: Predictions, classes: Sequence[str]) -> np.ndarray:
    """Counts (k, k) int64, a row the true class, a column the predicted one; `predicted` may be scores (n, k)."""
    truth, k = encode_labels(labels, classes), len(classes)
    cells = truth * k + predicted_indices(predicted, classes, len(truth))
    return np.bincount(cells, minlength=k * k).reshape(k, k)


def confusion_rates(counts: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """What confusion matrices alone decide, for any number of matrices at once; NaN where undefined.

    `counts` (..., k, k) >= 0 may be weighted or expected counts; each value has shape (...). Definitions are
    scikit-learn's with `zero_division=0`; specificity = TN / (TN + FP); npv = TN / (TN + FN); kappa is Cohen's (1960).
    `balanced_accuracy` equals `macro_recall`.
    """
    counts = np.asarray(counts, dtype=np.float64)
    hits, support, predicted = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)
    total = support.sum(-1, keepdims=True)
    present = np.where(support > 0, 1.0, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = {
            "precision": present * np.where(predicted > 0, hits / predicted, 0.0),
            "recall": hits / support,
            "specificity": present * (total - support - predicted + hits) / (total - support),
            "npv": present
            * np.where(total > predicted, (total - support - predicted + hits) / (total - predicted), 0.0),
            "f1": present * 2 * hits / (support + predicted),
        }
        accuracy = (hits.sum(-1, keepdims=True) / total)[..., 0]
        chance = (support * predicted).sum(-1) / total[..., 0] ** 2
        kappa = np.where(chance < 1, (accuracy - chance) / (1 - chance), np.nan)
    flat = {"accuracy": accuracy, "balanced_accuracy": nan_mean(rates["recall"]), "kappa": kappa}
    flat |= {f"macro_{name}": nan_mean(values) for name, values in rates.items()}
    flat |= {f"{name}/{c}": values[..., i] for name, values in rates.items() for i, c in enumerate(classes)}
    return flat


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Means over the last axis of the values that are not NaN; NaN where there are none."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(-1) / defined.sum(-1)


def classification_metrics(
    labels: Sequence[str], probabilities: np.ndarray, classes: Sequence[str]
) -> dict[str, float]:
    """Every metric that probabilities allow, as flat scalars.

    `labels`: n class names. `probabilities`: (n, k) float, columns in the order of `classes`. Gives accuracy,
    balanced_accuracy, macro_{precision,recall,specificity,npv,f1,auroc,auprc}, the same per class as `recall/<class>`, kappa,
    top2_accuracy … top5_accuracy (below k), mean_reciprocal_rank. All lie in [0, 1] but kappa in [-1, 1]. AUROC (ties count
    half) and AUPRC (average precision) are one class against the rest, defined for a class that some labels have and some
    have not. Equal scores rank in the order of `classes`. For all of these only order matters, so any finite score does;
    what `weighted_calibration_metrics` gives is added for rows that are probabilities.

    Empty input, shapes that don't fit, NaN, a label that is not a class: `UserError`.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    truth = encode_labels(labels, classes)
    flat = _scalars(confusion_rates(confusion_matrix(labels, probabilities, classes), classes))
    flat |= _topk_metrics(_true_ranks(truth, probabilities), len(classes)) | calibration_metrics(truth, probabilities)
    from sklearn.metrics import average_precision_score, roc_auc_score  # a second to import: see plots.roc_figure

    for name, metric in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        values = {
            f"{name}/{c}": float(metric(truth == i, probabilities[:, i]))
            for i, c in enumerate(classes)
            if 0 < np.count_nonzero(truth == i) < len(truth)
        }
        flat |= values
        if values:
            flat[f"macro_{name}"] = float(np.mean(list(values.values())))
    return flat


def hard_label_metrics(labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    """The `classification_metrics` that hard labels allow: no AUROC, AUPRC or ranks. Raises the same errors."""
    return _scalars(confusion_rates(confusion_matrix(labels, predicted, classes), classes))


def ranking_metrics(
    labels: Sequence[str], rankings: Sequence[Sequence[str]], classes: Sequence[str]
) -> dict[str, float]:
    """The metrics that rankings allow: those of hard labels for the first class of each, top-k and reciprocal rank.

    Each ranking lists class names, the best first, and may be cut short: a true class that it lacks is a miss with
    reciprocal rank 0, and top-k stops at the longest ranking. An empty ranking, or a class twice in one: `UserError`.
    """
    if any(len(ranking) == 0 or len(set(ranking)) < len(ranking) for ranking in rankings):
        raise UserError("A ranking must list at least one class, and none twice.")
    flat = hard_label_metrics(labels, [ranking[0] for ranking in rankings], classes)
    encode_labels([name for ranking in rankings for name in ranking], classes, "ranked class")
    ranks = [
        list(ranking).index(label) + 1 if label in ranking else np.inf
        for label, ranking in zip(labels, rankings, strict=True)
    ]
    return flat | _topk_metrics(np.array(ranks), min(len(classes), max(map(len, rankings)) + 1))


def similarity_metrics(labels: Sequence[str], similarities: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """`mean_true_similarity`: the mean of `similarities` (n, k), e.g. cosines in [-1, 1], at each row's true class."""
    truth = encode_labels(labels, classes)
    predicted_indices(np.asarray(similarities), classes, len(truth))  # checks shape and finiteness
    return {
        "mean_true_similarity": float(np.asarray(similarities, dtype=np.float64)[np.arange(len(truth)), truth].mean())
    }


def baseline_scores(
    train_labels: Sequence[str] | None, labels: Sequence[str], classes: Sequence[str]
) -> dict[str, dict[str, float | str]]:
    """The scores of two predictors that see no image: what every number must be read against.

    Both know only the class shares of `train_labels`, or of the scored `labels` where those are None; `from` says which
    ("train" or "scored labels"). `majority` gives these shares as the same probabilities to every image, so it predicts
    the most frequent class (named in `class`). `prior` draws a class at random by these shares: its values are those of
    the expected confusion matrix, exact in expectation for accuracy (sum of p_train * p_scored), recall and
    specificity, a ratio of expectations for precision, F1 and kappa. Constant scores have AUROC 0.5 and AUPRC equal to
    the prevalence, which stand in both, as does their calibration.
    """
    source = "scored labels" if train_labels is None else "train"
    reference = encode_labels(labels if train_labels is None else train_labels, classes, "train label")
    shares = np.bincount(reference, minlength=len(classes)) / len(reference)
    truth = encode_labels(labels, classes)
    majority = classification_metrics(labels, np.tile(shares, (len(truth), 1)), classes)
    expected = np.outer(np.bincount(truth, minlength=len(classes)), shares)
    prior = _scalars(confusion_rates(expected, classes))
    prior |= {key: value for key, value in majority.items() if SCORE_METRICS.match(key)}
    return {
        "majority": {"from": source, "class": classes[int(shares.argmax())], **majority},
        "prior": {"from": source, **prior},
    }


def collapse_alarm(predictions: Predictions, labels: Sequence[str], classes: Sequence[str]) -> str | None:
    """A sentence where the predicted class shares stray far from the labels' shares, else None.

    Both must hold. Far: the total variation distance of the shares is over 0.25, or one class takes over 90 % of the
    predictions and under 75 % of the labels. Not by chance: of 10,000 simulated pairs of n predictions and n labels,
    all drawn at random by the shares of both together, fewer than 1 % are as far apart. So a guesser who knows the
    prevalences sets it off in about 1 % of cases at most, a better model less often, and constant predictions set it
    off from about 9 (three equal classes) or 12 (two) rows on.
    """
    truth = encode_labels(labels, classes)
    n, k = len(truth), len(classes)
    true_counts = np.bincount(truth, minlength=k)
    predicted = np.bincount(predicted_indices(predictions, classes, n), minlength=k) / n
    excess = predicted - true_counts / n
    worst = int(excess.argmax())
    distance = float(np.abs(excess).sum() / 2)
    if not (distance > ALARM_DISTANCE or (predicted[worst] > 0.9 and true_counts[worst] / n < 0.75)):
        return None
    shares = (true_counts / n + predicted) / 2
    first, second = np.random.default_rng(0).multinomial(n, shares, size=(2, 10_000)) / n
    if np.mean(np.abs(first - second).sum(axis=1) / 2 >= distance - 1e-9) >= ALARM_P_VALUE:
        return None
    return (
        f"The predictions lean to {classes[worst]!r}: {predicted[worst]:.0%} of the predictions, but "
        f"{true_counts[worst] / n:.0%} of the {n} labels (total variation distance {distance:.2f})."
    )


def _plural(what: str) -> str:
    return what + ("es" if what.endswith("s") else "s")


def _scalars(rates: dict[str, np.ndarray]) -> dict[str, float]:
    return {key: float(value) for key, value in rates.items() if not np.isnan(value)}


def _true_ranks(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    true_scores = scores[np.arange(len(truth)), truth][:, None]
    ties_before = (scores == true_scores) & (np.arange(scores.shape[1]) < truth[:, None])
    return 1 + ((scores > true_scores) | ties_before).sum(axis=1)


def _topk_metrics(ranks: np.ndarray, k: int) -> dict[str, float]:
    flat = {f"top{top}_accuracy": float(np.mean(ranks <= top)) for top in range(2, min(5, k - 1) + 1)}
    return flat | {"mean_reciprocal_rank": float(np.mean(1.0 / ranks))}
