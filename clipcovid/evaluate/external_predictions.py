"""Predictions and ground truth that other programs wrote: JSON, JSON lines, CSV or Parquet, recognised by shape."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate.agreement import agreement_notes
from clipcovid.evaluate.class_names import check_class_names, resolve_class_names
from clipcovid.evaluate.columns import (
    AMBIGUOUS_LABEL_COLUMNS,
    LIST_COLUMNS,
    PREDICTED_LABEL_COLUMNS,
    TRUTH_COLUMNS,
    columns_matching,
    detect_prediction_columns,
    extract_predictions,
    require_column,
    single_consistent_column,
)
from clipcovid.evaluate.matching import JoinTable, match_rows
from clipcovid.io.tables import VALUE_COLUMN, cell_text, is_missing, read_table_file

PATIENT_COLUMNS = ("patientid", "patient", "subjectid")
"""What columns of patients are called, in small letters and without signs."""
_ROLE_COLUMNS = (*TRUTH_COLUMNS, *AMBIGUOUS_LABEL_COLUMNS, *PREDICTED_LABEL_COLUMNS, *LIST_COLUMNS)


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

    What does not fit, two columns or kinds of predictions that could be meant and differ, files without a class in common,
    and classes that differ in case, spaces or Unicode form alone, are a `UserError`.
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
        roles = [column for table in (predicted, truths) for column in columns_matching(table, _ROLE_COLUMNS)]
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
    notes += agreement_notes(predicted, choice, table, names, files[0])
    table.insert(0, "image_id", _ids(truths) if one_file else table.index.map(str))
    table.insert(1, "label", labels)
    if column := _patient_column(truths):
        table["patient_id"] = truths[column].map(cell_text).tolist()
        notes += [f"Patients are those in {column} of {files[1]}."] if column != "patient_id" else []
        notes += _patient_notes(predicted, table["patient_id"].tolist(), files)
    return ExternalPredictions(table.reset_index(drop=True), names, notes)


def _patient_column(table: pd.DataFrame) -> str:
    """The column of patients, "" where there is none."""
    columns = sorted(columns_matching(table, PATIENT_COLUMNS), key=lambda column: column != "patient_id")
    return columns[0] if columns else ""


def _patient_notes(predicted: pd.DataFrame, patients: Sequence[str], files: Sequence[str]) -> list[str]:
    """A note where the predictions name other `patients` (n,) than the truth does."""
    if not (column := _patient_column(predicted)):
        return []
    pairs = zip(predicted[column].map(cell_text), patients, strict=True)
    differ = sum(ours != theirs for ours, theirs in pairs if ours and theirs)
    return (
        [
            f"{column} of {files[0]} differs from the patients of {files[1]} in {differ} of {len(patients)} rows: "
            f"those of {files[1]} are used."
        ]
        if differ
        else []
    )


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
