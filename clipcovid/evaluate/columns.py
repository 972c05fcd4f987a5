"""Which columns of another program's table hold its predictions, and what they say."""

import ast
import contextlib
import json
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate.calibration import PROBABILITY_SUM_TOLERANCE
from clipcovid.evaluate.class_names import class_name, refuse_similar_names, resolve_class_names
from clipcovid.evaluate.probabilities import (
    PROBABILITY_PREFIX,
    SIMILARITY_PREFIX,
    check_probabilities,
)
from clipcovid.io.tables import VALUE_COLUMN

TRUTH_COLUMNS = ("ytrue", "truelabel", "trueclass", "groundtruth", "gt", "truth", "true", "target", "actual")
"""What columns of true classes are called, in small letters and without signs, as those below."""
AMBIGUOUS_LABEL_COLUMNS = ("label", "class")
"""What columns of true classes are called, and of predicted ones."""
PREDICTED_LABEL_COLUMNS = (
    "prediction",
    "predicted",
    "pred",
    "ypred",
    "predictedlabel",
    "predictedclass",
    "predlabel",
    "predclass",
    "yhat",
)
LIST_COLUMNS = ("predictions", "scores", "output")
"""What columns of lists are called, beside ranking."""
_PREFIXES = {"probabilities": PROBABILITY_PREFIX, "similarities": SIMILARITY_PREFIX}


Layout = Literal["prefixed", "classes", "cells"]


class PredictionColumns(NamedTuple):
    """Where a table's predictions stand."""

    layout: Layout
    """prefixed: prob_<class>, sim_<class>, probabilities or similarities. classes: columns named so. cells: one column."""
    columns: list[str]
    notes: list[str]
    is_ambiguous: bool = False
    """Whether the column is called as those of true classes are, too."""
    alternatives: Sequence[tuple[Layout, list[str]]] = ()
    """Layouts and columns of the other predictions in the table, which are not scored."""


def columns_matching(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns that are called so, in the order of the names."""
    plain = {column: re.sub(r"[\W_]", "", column.lower()) for column in map(str, table)}
    return sorted((column for column in plain if plain[column] in names), key=lambda column: names.index(plain[column]))


def require_column(table: pd.DataFrame, column: str, file: str, flag: str) -> str:
    """A column that a flag names; one that is not there is a `UserError`."""
    if column not in table:
        raise UserError(f"{flag} {column}: {file} has no such column; it has {', '.join(map(str, table))}.")
    return column


def single_consistent_column(table: pd.DataFrame, columns: list[str], file: str, noun: str, flag: str) -> str:
    """The first of columns that say the same in each row; others are a `UserError`."""
    texts = [table[column].map(str).tolist() for column in columns]
    if any(text != texts[0] for text in texts):
        raise UserError(
            f"{file} has several columns that could be {noun}, and they differ: {', '.join(columns)}. Say which with {flag}."
        )
    return columns[0]


def detect_prediction_columns(
    table: pd.DataFrame, prediction_column: str, vocabulary: Sequence[str], file: str
) -> PredictionColumns:
    """The predictions of a table: of several forms the one that says most, and the others as `alternatives`.

    `vocabulary`: the classes, or the true labels. None, or two columns of one form that differ: `UserError`.
    """
    if prediction_column:
        return PredictionColumns("cells", [require_column(table, prediction_column, file, "--prediction-column")], [])
    columns = [str(column) for column in table]
    prefixed = [column for column in columns if column.startswith((PROBABILITY_PREFIX, SIMILARITY_PREFIX))]
    as_classes = [column for column in columns if column in vocabulary]
    lists = [
        column
        for column in columns_matching(table, LIST_COLUMNS)
        if isinstance(_decode_cell(table[column].iloc[0]), list | dict)
    ]
    forms: list[tuple[Layout, list[str]]] = [
        ("prefixed", prefixed + [column for column in ("probabilities", "similarities") if column in columns]),
        ("classes", as_classes if len(as_classes) > 1 else []),
        ("cells", [column for column in ("ranking",) if column in columns]),
        ("cells", lists),
        ("cells", columns_matching(table, PREDICTED_LABEL_COLUMNS)),
        ("cells", [column for column in (VALUE_COLUMN,) if column in columns]),
    ]
    forms = [(kind, members) for kind, members in forms if members]
    if not forms and (either := columns_matching(table, AMBIGUOUS_LABEL_COLUMNS)):
        return PredictionColumns(
            "cells",
            [single_consistent_column(table, either, file, "the predictions", "--prediction-column")],
            [],
            is_ambiguous=True,
        )
    if not forms:
        raise UserError(
            f"{file} has no predictions: give {PROBABILITY_PREFIX}<class> or {SIMILARITY_PREFIX}<class> columns, "
            "columns named as the "
            f"classes ({', '.join(vocabulary[:5])}), or one of probabilities, similarities, ranking, "
            f"{', '.join(PREDICTED_LABEL_COLUMNS[:4])}, or say which column it is with --prediction-column; "
            f"it has {', '.join(columns)}."
        )
    kind, members = forms[0]
    if kind == "cells":
        members = [single_consistent_column(table, members, file, "the predictions", "--prediction-column")]
    alternatives: list[tuple[Layout, list[str]]] = []
    for layout, columns in forms[1:]:
        alternatives += [(layout, [column]) for column in columns] if layout == "cells" else [(layout, columns)]
    return PredictionColumns(kind, members, [], alternatives=alternatives)


def extract_predictions(
    table: pd.DataFrame, choice: PredictionColumns, classes: list[str], file: str
) -> tuple[pd.DataFrame, list[str]]:
    """prob_<class> and sim_<class> columns, or ranking, or predicted; and the classes, where they say them."""
    result = pd.DataFrame(index=table.index)
    if choice.layout == "classes":
        cells = _cells_by_class(table, choice.columns)
        return result, _add_scores(result, cells, classes or choice.columns, choice, "probabilities", file)
    if choice.layout == "cells":
        return _from_cells([_decode_cell(cell) for cell in table[choice.columns[0]]], choice, result, classes, file)
    for column, prefix in _PREFIXES.items():
        wide = [name for name in choice.columns if name.startswith(prefix)]
        if wide:
            cells = [
                {key.removeprefix(prefix): cell for key, cell in row.items()} for row in _cells_by_class(table, wide)
            ]
        else:
            cells = [_decode_cell(cell) for cell in table[column]] if column in choice.columns else []
        if cells:
            classes = _add_scores(result, cells, classes, choice, column, file)
    return result, classes


def _add_scores(
    result: pd.DataFrame, cells: list[Any], classes: list[str], choice: PredictionColumns, column: str, file: str
) -> list[str]:
    """Write the prob_<class> or sim_<class> columns of `cells`, and give the classes, which the cells name if none are."""
    classes = classes or _class_keys(cells[0], file, column)
    names = list(cells[0]) if isinstance(cells[0], dict) else []
    result[[_PREFIXES[column] + c for c in classes]] = _score_matrix(cells, classes, file, column)
    if not set(names) <= set(classes):
        choice.notes.append(
            f"The {column} of {file} are numbered: {', '.join(f'{n} is {class_name(n, classes)}' for n in names)}, by "
            "--classes."
        )
    return classes


def _from_cells(
    cells: list[Any], choice: PredictionColumns, result: pd.DataFrame, classes: list[str], file: str
) -> tuple[pd.DataFrame, list[str]]:
    """What the cells of a column are: scores by class, a pipeline's output, rankings, or a class each."""
    column = choice.columns[0]
    lists = [cell for cell in cells if isinstance(cell, list)]
    if any(isinstance(item, dict) for cell in lists for item in cell):
        cells, complete = _pipeline(cells, classes, file)
        column = "probabilities" if complete else "ranking"
        if not complete:
            choice.notes.append(
                f"The scores in {file} are not of all classes, or do not sum to 1: they are read as rankings."
            )
    elif isinstance(cells[0], dict) or (lists and not any(isinstance(item, str) for cell in lists for item in cell)):
        column = "ranking" if column == "ranking" else "probabilities"
    elif lists:
        column = "ranking"
    if column == "probabilities":
        return result, _add_scores(result, cells, classes, choice, column, file)
    if column == "ranking":
        rankings = [resolve_class_names(cell if isinstance(cell, list) else [cell], classes, file) for cell in cells]
        return result.assign(ranking=pd.Series(rankings, index=result.index, dtype=object)), classes
    return result.assign(predicted=resolve_class_names(cells, classes, file)), classes


def _pipeline(cells: list[Any], classes: list[str], file: str) -> tuple[list[Any], bool]:
    """A Hugging Face pipeline's [{label, score}, …] of each image as {class: score}; or, incomplete, as rankings."""
    rows = []
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, list) or not all(
            isinstance(item, dict) and {"label", "score"} <= set(item) for item in cell
        ):
            raise UserError(
                f"Row {number} of {file}: a list of objects with label and score was expected, not {cell!r:.60}."
            )
        labels = resolve_class_names([item["label"] for item in cell], classes, file)
        rows.append(dict(zip(labels, (item["score"] for item in cell), strict=True)))
    every = classes or sorted({label for row in rows for label in row})
    if all(set(row) == set(every) and abs(sum(row.values()) - 1) < PROBABILITY_SUM_TOLERANCE for row in rows):
        return [{label: row[label] for label in every} for row in rows], True
    return [sorted(row, key=lambda label: -row[label]) for row in rows], False


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _cells_by_class(table: pd.DataFrame, columns: list[str]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in table[columns].to_numpy()]


def _decode_cell(cell: Any) -> Any:
    """A list or an object that stands as text in a CSV's cell, as JSON or as Python prints it."""
    if not isinstance(cell, str) or not cell.startswith(("[", "{")):
        return cell
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return parse(cell)
    return cell


def _class_keys(cell: Any, file: str, column: str) -> list[str]:
    if isinstance(cell, dict):
        return list(cell)
    raise UserError(f"The {column} in {file} do not name their classes; give --classes in their order.")


def _score_matrix(cells: list[Any], classes: list[str], file: str, column: str) -> np.ndarray:
    """(n, k) float64 from objects {class: number} or lists; probabilities must be such."""
    rows = []
    for number, cell in enumerate(cells, 1):
        names = [class_name(str(key), classes) for key in cell] if isinstance(cell, dict) else classes
        if not isinstance(cell, dict | list) or len(cell) != len(classes) or set(names) != set(classes):
            refuse_similar_names({file: names}, classes)
            got = f"of {', '.join(cell)}" if isinstance(cell, dict) else repr(cell)
            raise UserError(f"Row {number} of {file}: {column} of {', '.join(classes)} were expected, not {got}.")
        by_class = dict(zip(names, cell.values() if isinstance(cell, dict) else cell, strict=True))
        rows.append([by_class[name] for name in classes])
    try:
        matrix = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError):
        other = next((cell for row in rows for cell in row if not _is_number(cell)), rows[0])
        raise UserError(f"The {column} in {file} are not all numbers: {other!r} is none.") from None
    if column == "probabilities":
        check_probabilities(
            matrix,
            classes,
            file,
            f"scores that are no probabilities go in {SIMILARITY_PREFIX}<class> columns, and --classes names all classes",
        )
    return matrix
