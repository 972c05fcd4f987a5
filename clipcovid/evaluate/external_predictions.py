"""Predictions and ground truth that other programs wrote: JSON, JSON lines, CSV or Parquet, recognised by shape."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate.columns import (
    AMBIGUOUS_LABEL_COLUMNS,
    LIST_COLUMNS,
    PREDICTED_LABEL_COLUMNS,
    TRUTH_COLUMNS,
    columns_matching,
    detect_prediction_columns,
    extract_predictions,
    require_column,
    resolve_class_names,
    single_consistent_column,
)
from clipcovid.evaluate.matching import JoinTable, match_rows
from clipcovid.io.tables import VALUE_COLUMN, cell_text, is_missing, read_table_file

PATIENT_COLUMNS = ("patientid", "patient", "subjectid")
"""What columns of patients are called, in small letters and without signs."""


class ExternalPredictions(NamedTuple):
    """The matched predictions and ground truth of two external files."""

    table: pd.DataFrame
    """Predictions as a `Kind` scores them, a row for each scored image, in the order of the ground truth."""
    classes: list[str]
    notes: list[str]


def read_external_predictions(
    predictions: str | Path,
    truth: str | Path = "",
    classes: Sequence[str] = (),
    missing: Literal["error", "drop"] = "error",
    *,
    match: str = "",
    truth_column: str = "",
    prediction_column: str = "",
) -> ExternalPredictions:
    """Read both files, match their rows (see `matching.match_rows`) and bring them to one shape.

    `truth` "" or the same file: one file has both. Ground truth: `truth_column`, else one of `TRUTH_COLUMNS` and
    `AMBIGUOUS_LABEL_COLUMNS`, and one of `PATIENT_COLUMNS` where known. Predictions: `prediction_column`, else prob_<class>
    columns, probabilities ({class: p}, a list with `classes`), sim_<class> or similarities (the same way), columns named as
    the classes, ranking (a list), a Hugging Face pipeline's lists, or one of `PREDICTED_LABEL_COLUMNS`, else of
    `AMBIGUOUS_LABEL_COLUMNS`. A label may be an index into `classes`. `missing` "drop" scores the images that both have;
    "error" refuses.

    What does not fit, two columns that could be meant and differ, files without a class in common, and classes that
    differ in case or spaces alone, are a `UserError`.
    """
    notes: list[str] = []
    predicted = _read(predictions, notes)
    one_file = not str(truth) or Path(truth).resolve() == Path(predictions).resolve()
    truths = predicted if one_file else _read(truth, notes)
    files = str(predictions), str(predictions if one_file else truth)
    label = _truth_column(truths, truth_column, files[1], one_file=one_file)
    vocabulary = list(classes) or sorted({str(value) for value in truths[label] if not is_missing(value)})
    choice = detect_prediction_columns(
        predicted.drop(columns=label) if one_file else predicted, prediction_column, vocabulary, files[0]
    )
    if not one_file:
        roles = [
            column
            for table in (predicted, truths)
            for column in columns_matching(
                table, (*TRUTH_COLUMNS, *AMBIGUOUS_LABEL_COLUMNS, *PREDICTED_LABEL_COLUMNS, *LIST_COLUMNS)
            )
        ]
        no_ids = {label, *choice.columns, *vocabulary, VALUE_COLUMN, *roles}
        sides = JoinTable(predicted, files[0], no_ids), JoinTable(truths, files[1], no_ids)
        predicted, truths, matched = match_rows(*sides, match_column=match, missing=missing)
        notes += matched
    labels = resolve_class_names(truths[label], classes, files[1])
    table, names = extract_predictions(predicted, choice, list(classes), files[0])
    notes += choice.notes + ([] if one_file else _copies(predicted, choice.columns, labels, classes, files[0]))
    if choice.is_ambiguous and "predicted" in table:
        notes += _suspicion_notes(predicted, choice.columns[0], table["predicted"].tolist(), labels, vocabulary, files)
    check_class_names(spoken := _predicted_class_names(table, names), labels, classes, files)
    if not names:
        names = sorted({*labels, *spoken})
        notes.append(f"The classes are those that the files name ({', '.join(names)}); --classes sets all, in order.")
    table.insert(0, "image_id", _ids(truths) if one_file else table.index.map(str))
    table.insert(1, "label", labels)
    if patients := sorted(columns_matching(truths, PATIENT_COLUMNS), key=lambda column: column != "patient_id"):
        table["patient_id"] = truths[patients[0]].map(cell_text).tolist()
        notes += [f"Patients are those in {patients[0]} of {files[1]}."] if patients[0] != "patient_id" else []
    return ExternalPredictions(table.reset_index(drop=True), names, notes)


def _predicted_class_names(table: pd.DataFrame, names: list[str]) -> list[str]:
    """The names of classes that predictions hold: in cells, or `names` of their columns."""
    if "predicted" in table:
        return table["predicted"].tolist()
    return [name for ranking in table["ranking"] for name in ranking] if "ranking" in table else names


def _read(path: str | Path, notes: list[str]) -> pd.DataFrame:
    table = read_table_file(path, notes)
    if table.empty:
        raise UserError(f"{path} has no rows.")
    return table


def _ids(table: pd.DataFrame) -> list[str]:
    """The images' names of a table that is matched with no other, or their numbers."""
    id_columns = JoinTable(table, "", ()).id_columns()
    return [cell_text(value) for value in (table[id_columns[0]] if id_columns else range(len(table)))]


def _truth_column(true: pd.DataFrame, truth_column: str, file: str, *, one_file: bool) -> str:
    """The column of the true classes; several that could be, and differ, are a `UserError`."""
    if truth_column:
        return require_column(true, truth_column, file, "--truth-column")
    columns = (
        (one_file and columns_matching(true, TRUTH_COLUMNS))
        or columns_matching(true, (*AMBIGUOUS_LABEL_COLUMNS, *TRUTH_COLUMNS))
        or [c for c in true if c == VALUE_COLUMN]
    )
    if not columns:
        raise UserError(
            f"{file} has no label column ({', '.join((*AMBIGUOUS_LABEL_COLUMNS, *TRUTH_COLUMNS))}); it has "
            f"{', '.join(map(str, true))}: say which it is with --truth-column."
        )
    return single_consistent_column(true, columns, file, "the true classes", "--truth-column")


def _copies(
    predicted: pd.DataFrame, scored: Sequence[str], labels: list[str], classes: Sequence[str], file: str
) -> list[str]:
    """Notes of columns among the predictions that should repeat the truth, and do not."""
    notes = []
    for column in [
        column
        for column in columns_matching(predicted, (*TRUTH_COLUMNS, *AMBIGUOUS_LABEL_COLUMNS))
        if column not in scored
    ]:
        if predicted[column].map(is_missing).any():
            continue
        texts = resolve_class_names(predicted[column], classes, file)
        differ = sum(text != label for text, label in zip(texts, labels, strict=True))
        if differ and set(texts) <= set(labels):
            notes.append(
                f"{column} of {file} was not read, and differs from the truth in {differ} of {len(labels)} rows."
            )
    return notes


def _suspicion_notes(
    predictions: pd.DataFrame,
    column: str,
    predicted: list[str],
    labels: list[str],
    vocabulary: list[str],
    files: Sequence[str],
) -> list[str]:
    """Notes on a column that may hold predictions or repeat the truth; where others could be meant, a `UserError`."""
    same = predicted == labels
    passed = {column, *columns_matching(predictions, (*TRUTH_COLUMNS, *AMBIGUOUS_LABEL_COLUMNS))}
    candidates = [
        c for c in map(str, predictions) if c not in passed and set(predictions[c].map(str)) <= set(vocabulary)
    ]
    if candidates and (same or not all(name.isdecimal() for name in vocabulary)):
        raise UserError(
            f"{files[0]} has several columns of classes, {', '.join((column, *candidates))}, and {column} may be the truth: "
            "say which holds the predictions with --prediction-column."
        )
    return [f"{column} of {files[0]} is the truth's in every row: does it hold predictions?"] if same else []


def check_class_names(
    predicted: Sequence[str], labels: Sequence[str], classes: Sequence[str], files: Sequence[str]
) -> None:
    """Refuse names of classes that differ in case, spaces or hyphens only, and files that have no class in common."""
    predicted_names, true_names = set(predicted), set(labels)
    alike: dict[str, str] = {}
    for name in [*classes, *sorted(true_names), *sorted(predicted_names - true_names)]:
        other = alike.setdefault(re.sub(r"[\s_-]+", "", name).casefold() or name, name)
        if other != name and not (name in classes and other in classes) and not re.fullmatch(r"-?[\d.]+", name):
            holders = " and ".join(
                f for f, names in zip(files, (predicted_names, true_names), strict=True) if name in names
            )
            raise UserError(
                f"The class {name!r} in {holders} differs from {other!r} in case, spaces or hyphens alone: write both alike."
            )
    if not predicted_names & true_names and not classes:
        ours_text, theirs_text = (", ".join(sorted(names)[:8]) for names in (predicted_names, true_names))
        raise UserError(
            f"{files[0]} predicts {ours_text}, and in {files[1]} the classes are {theirs_text}: they have none in common. "
            "Write both alike, or say with --classes which names the numbers 0, 1, … stand for."
        )
