"""The predictions table: what every method writes, and all that is needed to score it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate import bootstrap, metrics
from clipcovid.io.files import read_parquet, write_parquet

PROBABILITY = "prob_"
SIMILARITY = "sim_"
TRAINED_ON = "trained_on"
"""The column, of a table that has such images, which marks those that the model learned from (bool)."""


def write_predictions(
    path: str | Path,
    table: pd.DataFrame,
    *,
    method: str,
    task: str,
    identity: dict[str, Any],
    manifest_hash: str,
    split_hash: str,
    split: str,
    classes: Sequence[str],
) -> None:
    """Write `table` as Parquet with what it is in the schema's metadata; the file appears whole or not at all.

    For `task` "classification": image_id (unique), label, prob_<class> for every class, and patient_id where known.
    Other tasks need an image_id. A column that lacks or an image twice is a `UserError`.
    """
    needed = ["image_id"]
    if task == "classification":
        needed += ["label", *(PROBABILITY + name for name in classes)]
    if missing := [name for name in needed if name not in table]:
        raise UserError(f"The predictions for {path} lack the columns {', '.join(missing)}.")
    if task == "classification" and table["image_id"].duplicated().any():
        twice = table["image_id"][table["image_id"].duplicated()].iloc[0]
        raise UserError(f"The predictions for {path} have image {twice!r} twice; an image is predicted once.")
    if task == "classification" and (bad := _not_finite(table, classes)):
        raise UserError(f"The predictions for {path} are not finite numbers for {bad} of {len(table)} images.")
    about = {"method": method, "task": task, "identity": identity, "manifest_hash": manifest_hash}
    about |= {"split_hash": split_hash, "split": split, "classes": list(classes)}
    write_parquet(Path(path), table, about)


def _not_finite(table: pd.DataFrame, classes: Sequence[str]) -> int:
    """How many images have a probability that is NaN or infinite."""
    values = table[[PROBABILITY + name for name in classes]].to_numpy(np.float64)
    return int((~np.isfinite(values)).any(axis=1).sum())


def read_predictions(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and the metadata that `write_predictions` was given; a file of another make is a `UserError`."""
    table, about = read_parquet(path)
    if about is None:
        raise UserError(f"{path} is no predictions table of clipcovid; score other tables with jobs/evaluate.py.")
    return table, about


def probability_table(image_ids: pd.Series, outputs: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """image_id and prob_<class>, float64 rows that sum to 1, from a model's probabilities (n, k) of any precision."""
    values = outputs.astype(np.float64)
    table = pd.DataFrame(values / values.sum(axis=1, keepdims=True), columns=[PROBABILITY + name for name in classes])
    table.insert(0, "image_id", image_ids.to_numpy())
    return table


def class_probabilities(table: pd.DataFrame, classes: Sequence[str], prefix: str = PROBABILITY) -> np.ndarray:
    """The columns prob_<class>, (n, k) float64 in the order of `classes`; a column too few or too many: `UserError`."""
    given = [name.removeprefix(prefix) for name in map(str, table.columns) if name.startswith(prefix)]
    if set(given) != set(classes):
        raise UserError(
            f"The {prefix}<class> columns are those of {', '.join(given) or 'no class'}; "
            f"the classes are {', '.join(classes)}."
        )
    return table[[prefix + name for name in classes]].to_numpy(dtype=np.float64)


def predicted(table: pd.DataFrame, classes: Sequence[str]) -> metrics.Predictions:
    """Probabilities (n, k) from prob_<class>; else n names: the best by sim_<class> or ranking, or those in predicted."""
    if _has(table, PROBABILITY):
        return class_probabilities(table, classes)
    rankings = _rankings(table, classes)
    if rankings is not None:
        return [next(iter(ranking), "") for ranking in rankings]
    if "predicted" not in table:
        raise UserError(
            f"The table predicts nothing: it has no {PROBABILITY}<class> columns, but {', '.join(map(str, table))}."
        )
    return table["predicted"].tolist()


def score(
    table: pd.DataFrame,
    classes: Sequence[str],
    train_labels: Sequence[str] | None = None,
    similarities: np.ndarray | None = None,
) -> dict[str, Any]:
    """The body of metrics.json: JSON-ready, no NaN.

    `table`: label, prob_<class> (or sim_<class>, a ranking of class names, or predicted), and patient_id where known.
    `similarities` (n, k) to the classes' texts add mean_true_similarity, and so do sim_<class> columns. Gives n,
    classes, metrics (see `metrics.classification`), confusion (k, k), intervals (see `bootstrap.Intervals`),
    baselines (see `metrics.baselines`), and alarms and notes, which are sentences. Errors as in `metrics`.
    """
    labels, classes = table["label"].tolist(), list(classes)
    predictions = predicted(table, classes)
    rankings = _rankings(table, classes)
    if isinstance(predictions, np.ndarray):
        scores = metrics.classification(labels, predictions, classes)
    elif rankings is not None:
        scores = metrics.from_rankings(labels, rankings, classes)
    else:
        scores = metrics.from_labels(labels, predictions, classes)
    if similarities is None and _has(table, SIMILARITY):
        similarities = class_probabilities(table, classes, SIMILARITY)
    if similarities is not None:
        scores |= metrics.similarity(labels, similarities, classes)
    patients = bootstrap.patients(table)
    alarm = metrics.collapse_alarm(predictions, labels, classes)
    return {
        "n": len(labels),
        "classes": classes,
        "metrics": scores,
        "confusion": metrics.confusion(labels, predictions, classes).tolist(),
        "intervals": bootstrap.classification_intervals(labels, predictions, classes, patients),
        "baselines": metrics.baselines(train_labels, labels, classes),
        "alarms": [alarm] if alarm else [],
        "notes": _notes(patients, labels, classes),
    }


def _has(table: pd.DataFrame, prefix: str) -> bool:
    return any(str(name).startswith(prefix) for name in table.columns)


def _rankings(table: pd.DataFrame, classes: Sequence[str]) -> list[Sequence[str]] | None:
    """The classes of each row, the best first, from sim_<class> (equal ones in the order of `classes`) or ranking."""
    if _has(table, SIMILARITY):
        similarities = class_probabilities(table, classes, SIMILARITY)
        metrics.predicted_index(similarities, classes, len(table))  # checks finiteness
        return [[classes[i] for i in row] for row in np.argsort(-similarities, axis=1, kind="stable")]
    return table["ranking"].tolist() if "ranking" in table else None


def _notes(patients: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> list[str]:
    notes = []
    if 0 < (unknown := patients.count("")) < len(patients):
        notes.append(
            f"{unknown} of {len(patients)} images have no patient id and count as patients of their own, "
            "so the intervals may be too narrow."
        )
    if absent := [name for name in classes if name not in set(labels)]:
        notes.append(f"No image is labelled {', '.join(absent)}; macro averages leave out what no image is.")
    return notes
