"""The columns of a classification's table: prob_<class>, sim_<class>, ranking, predicted."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.evaluate import metrics
from clipcovid.evaluate.calibration import improper_rows

PROBABILITY_PREFIX = "prob_"
SIMILARITY_PREFIX = "sim_"


def probability_table(image_ids: pd.Series, outputs: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """image_id and prob_<class>, float64 rows that sum to 1, from a model's probabilities (n, k) of any precision."""
    values = outputs.astype(np.float64)
    table = pd.DataFrame(
        values / values.sum(axis=1, keepdims=True), columns=[PROBABILITY_PREFIX + name for name in classes]
    )
    table.insert(0, "image_id", image_ids.to_numpy())
    return table


def class_probabilities(table: pd.DataFrame, classes: Sequence[str], prefix: str = PROBABILITY_PREFIX) -> np.ndarray:
    """The columns prob_<class>, (n, k) float64 in the order of `classes`; a column too few or too many: `UserError`."""
    names = [name.removeprefix(prefix) for name in map(str, table.columns) if name.startswith(prefix)]
    if set(names) != set(classes):
        raise UserError(
            f"The {prefix}<class> columns are those of {', '.join(names) or 'no class'}; "
            f"the classes are {', '.join(classes)}."
        )
    return table[[prefix + name for name in classes]].to_numpy(dtype=np.float64)


def check_probabilities(matrix: np.ndarray, classes: Sequence[str], source: object, way_out: str) -> None:
    """Refuse rows of `matrix` (n, k) that are negative or do not sum to 1 by a `UserError`; rows with NaN are passed over."""
    wrong = improper_rows(matrix)
    if wrong.any():
        first = int(wrong.argmax())
        raise UserError(
            f"{int(wrong.sum())} of {len(matrix)} rows of {source} are no probabilities of {', '.join(classes)}: row "
            f"{first + 1} sums to {matrix[first].sum():.4g} with a lowest of {matrix[first].min():.4g}, where 1 and no "
            f"negative were expected; {way_out}."
        )


def get_predictions(table: pd.DataFrame, classes: Sequence[str]) -> metrics.Predictions:
    """Probabilities (n, k) from prob_<class>; else n names: the best by sim_<class> or ranking, or those in predicted."""
    if has_columns(table, PROBABILITY_PREFIX):
        return class_probabilities(table, classes)
    ranked = rankings(table, classes)
    if ranked is not None:
        return [next(iter(ranking), "") for ranking in ranked]
    if "predicted" not in table:
        raise UserError(
            f"The table predicts nothing: it has no {PROBABILITY_PREFIX}<class> columns, but {', '.join(map(str, table))}."
        )
    return table["predicted"].tolist()


def has_columns(table: pd.DataFrame, prefix: str) -> bool:
    """Whether any column begins with `prefix`."""
    return any(str(name).startswith(prefix) for name in table.columns)


def rankings(table: pd.DataFrame, classes: Sequence[str]) -> list[Sequence[str]] | None:
    """The classes of each row, the best first, from sim_<class> (equal ones in the order of `classes`) or ranking."""
    if has_columns(table, SIMILARITY_PREFIX):
        similarities = class_probabilities(table, classes, SIMILARITY_PREFIX)
        metrics.predicted_indices(similarities, classes, len(table))  # checks finiteness
        return [[classes[i] for i in row] for row in np.argsort(-similarities, axis=1, kind="stable")]
    return table["ranking"].tolist() if "ranking" in table else None
