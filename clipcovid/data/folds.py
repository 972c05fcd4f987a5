"""Cross-validation: folds of patients, of equal class shares. No torch and no Ray here."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import Manifest
from clipcovid.data.splits import split_units

VAL_FOLDS = 8  # an eighth of what is not tested chooses the epoch


def parse_fold(text: str) -> tuple[int, int]:
    """(k, n) of `k/n`, k from 1 to n; anything else is a `UserError`."""
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second) and int(second) >= 2):
        raise UserError(f"--fold {text!r} must be K/N, e.g. 1/5 for the first of five.")
    return int(first), int(second)


def apply_fold(manifest: Manifest, fold: str, seed: int, required_columns: Sequence[str] = ("label",)) -> Manifest:
    """The manifest with the k-th of n patient folds as its test split, and train and val drawn from the others.

    The data set's own splits are put aside, and images that lack one of `required_columns` are left out. Each image is in one
    of the n test folds, of which each has its share of every class. Too few patients are a `UserError`.
    """
    number, count = parse_fold(fold)
    table, _ = manifest.rows_with("all", required_columns)
    group = split_units(table)
    fewest = group.groupby(table["label"]).nunique().reindex(manifest.classes, fill_value=0)
    if "label" in required_columns and (fewest[fewest > 0] < count).any():
        raise UserError(
            f"{count} folds need {count} patients of each class; {manifest.dataset} has {fewest.min()} of "
            f"{fewest.idxmin()}."
        )
    if group.nunique() < 2 * count:
        raise UserError(f"{count} folds need {2 * count} patients; {manifest.dataset} has {group.nunique()}.")
    _, test = grouped_folds(table["label"], group, count, seed)[number - 1]
    rest = table.index.difference(table.index[test])
    left = group.loc[rest].nunique()
    _, val = grouped_folds(table["label"].loc[rest], group.loc[rest], min(VAL_FOLDS, left), seed)[0]
    splits = np.full(len(table), "train", object)
    splits[test], splits[rest[val]] = "test", "val"
    if len(table) == len(manifest.table):
        return manifest.with_columns(split=splits)
    return dataclasses.replace(manifest, table=table.assign(split=splits))


def grouped_folds(labels: pd.Series, group: pd.Series, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions (train, test) of each of `count` folds, which keep groups together and have about equal label shares."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with (
        warnings.catch_warnings()
    ):  # of classes too rare for each fold, which `apply_fold` refuses where the class matters
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return list(folds.split(np.zeros(len(labels)), labels.to_numpy(), group.to_numpy()))
