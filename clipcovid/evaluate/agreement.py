"""Whether a table's several kinds of predictions name the same classes: those that do not are for the user to choose from."""

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from clipcovid.errors import UserError, first_names
from clipcovid.evaluate.columns import PredictionColumns, extract_predictions
from clipcovid.evaluate.probabilities import (
    PROBABILITY_PREFIX,
    SIMILARITY_PREFIX,
    class_probabilities,
    has_columns,
)

_names = functools.partial(first_names, limit=3)  # of columns, in a message


def agreement_notes(
    table: pd.DataFrame, scored: PredictionColumns, predictions: pd.DataFrame, classes: Sequence[str], file: str
) -> list[str]:
    """Notes on predictions beside those that are scored; best classes that differ are a `UserError`.

    `table`: the file's rows. `predictions`: the scored ones, as `extract_predictions` gives them. Columns that do not name
    one of `classes` in every row are not compared; of equal scores any may be the best.
    """
    columns, notes = scored.columns, []
    best = _best_classes(predictions, classes)
    if has_columns(predictions, PROBABILITY_PREFIX) and has_columns(predictions, SIMILARITY_PREFIX):
        similar = [name for name in columns if name.startswith(SIMILARITY_PREFIX) or name == "similarities"]
        columns = [name for name in columns if name not in similar]
        similarities = predictions.drop(columns=[PROBABILITY_PREFIX + name for name in classes])
        _compare(best, _best_classes(similarities, classes), columns, similar, file, one_column=False)
        notes.append(f"The best classes of {file} by {_names(columns)} and by {_names(similar)} are the same.")
    agreeing, unread = list[str](), list[str]()
    for layout, names in scored.alternatives:
        others = _alternative_classes(table, PredictionColumns(layout, names, []), classes, file)
        if all(others):
            _compare(best, others, columns, names, file, one_column=layout == "cells")
        (agreeing if all(others) else unread).extend(names)
    if agreeing:
        notes.append(f"Scored: {_names(columns)} of {file}; the best classes by {_names(agreeing)} are the same.")
    if unread:
        notes.append(f"Scored: {_names(columns)} of {file}; not read: {_names(unread)} (see --prediction-column).")
    return notes


def _best_classes(predictions: pd.DataFrame, classes: Sequence[str]) -> list[set[str]]:
    """Those of `classes` that each row names as the best: several of equal scores, none where it names no class."""
    for prefix in (PROBABILITY_PREFIX, SIMILARITY_PREFIX):
        if has_columns(predictions, prefix):
            matrix = class_probabilities(predictions, classes, prefix)
            return [{classes[at] for at in np.flatnonzero(row == row.max()).tolist()} for row in matrix]
    if "ranking" in predictions:
        return [set(ranking[:1]) & set(classes) for ranking in predictions["ranking"]]
    return [{name} & set(classes) for name in predictions["predicted"]]


def _alternative_classes(
    table: pd.DataFrame, columns: PredictionColumns, classes: Sequence[str], file: str
) -> list[set[str]]:
    """`_best_classes` of columns that are not scored; none where they hold no predictions, such as a confidence."""
    try:
        predictions, _ = extract_predictions(table, columns, list(classes), file)
    except UserError:  # what the columns lack matters to nobody who scores others: the caller names them as not read
        return [set()] * len(table)
    return _best_classes(predictions, classes)


def _compare(
    best: Sequence[set[str]],
    others: Sequence[set[str]],
    columns: Sequence[str],
    other_columns: Sequence[str],
    file: str,
    *,
    one_column: bool,
) -> None:
    pairs = list(zip(best, others, strict=True))
    differing = [(first, second) for first, second in pairs if first and second and not first & second]
    if not differing:
        return
    first, second = (sorted(names)[0] for names in differing[0])
    flag = f", or score {other_columns[0]} by --prediction-column {other_columns[0]}" if one_column else ""
    raise UserError(
        f"The best classes of {file} by {_names(columns)} and by {_names(other_columns)} differ in {len(differing)} of "
        f"{len(pairs)} rows (first {first!r} and {second!r}): remove the columns that are not meant{flag}."
    )
