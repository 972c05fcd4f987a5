"""Ensembles: one prediction made of several methods' predictions, by a rule that is fitted on validation images alone.

Linear pooling of calibrated probabilities: Ranjan & Gneiting, Combining probability forecasts, J. R. Statist. Soc. B 72
(2010). Stacking: Wolpert, Stacked generalization, Neural Networks 5 (1992).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import tyro

from clipcovid.data.folds import grouped_folds
from clipcovid.errors import UserError
from clipcovid.evaluate.temperature import fit_temperature, log_probabilities, scale_probabilities

Rule = Literal["mean", "weights", "stacking"]
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty that stacking chooses from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Which runs to join, and how."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders with predictions of val and test, of one kind of classes and the same images: two or more."""
    rule: Rule = "mean"
    """mean: of the probabilities after temperature scaling. weights: a weighted mean of them, with weights of 0 or more that
    sum to 1. stacking: a multinomial logistic regression on their logarithms."""
    folds: int = 5
    """Folds of validation patients: each fold is predicted by a rule that was fitted on the others."""
    seed: int = 0
    """Seed of the folds."""
    out: Path = Path("outputs")
    """Where run folders and the MLflow store are."""
    name: str = ""
    """The ensemble's folder in `out`. Default: ensemble, the rule and a hash of what is joined."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise UserError(f"--folds {self.folds} must be at least 2.")
        if len({run.resolve() for run in self.runs}) < 2:
            raise UserError("An ensemble joins several runs: name the folders of two or more.")
        if files := [str(run) for run in self.runs if run.suffix == ".parquet"]:
            raise UserError(f"{files[0]} is a file; an ensemble needs val and test: name the run's folder.")


class FittedRule(Protocol):
    """Protocol of a rule that was fitted."""

    def predict(self, members: np.ndarray) -> np.ndarray:
        """Probabilities (n, k) from those of the members (m, n, k)."""

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """What was fitted, by the members' names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightedMean:
    """A weighted mean of temperature-scaled probabilities."""

    temperatures: list[float | None]
    """Of each member; None where it is not scaled."""
    weights: np.ndarray
    """Of each member, (m,), at least 0, with a sum of 1."""

    def predict(self, members: np.ndarray) -> np.ndarray:
        """Probabilities (n, k) from those of the members (m, n, k)."""
        return np.tensordot(self.weights, _scaled(members, self.temperatures), axes=1)

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Temperature and weight of each member."""
        numbers = zip(names, self.temperatures, self.weights.tolist(), strict=True)
        return {"members": {name: {"temperature": heat, "weight": weight} for name, heat, weight in numbers}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stacking:
    """A multinomial logistic regression on the logarithms of temperature-scaled probabilities."""

    temperatures: list[float | None]
    penalty: float
    """scikit-learn's C, the inverse of the L2 penalty's strength."""
    model: Any
    """scikit-learn's LogisticRegression; features are member by member, class by class."""

    def predict(self, members: np.ndarray) -> np.ndarray:
        """Probabilities (n, k) from those of the members (m, n, k); 0 of a class that no image fitted on was of."""
        probabilities = np.zeros(members.shape[1:])
        probabilities[:, self.model.classes_] = self.model.predict_proba(_features(members, self.temperatures))
        return probabilities

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Temperatures, C, and the coefficients (classes, members x classes; of two classes those of the second)."""
        heats = {name: {"temperature": heat} for name, heat in zip(names, self.temperatures, strict=True)}
        fitted = {"coefficients": self.model.coef_.tolist(), "intercepts": self.model.intercept_.tolist()}
        return {"members": heats, "C": self.penalty, **fitted}


def fit_ensemble(
    rule: Rule, truth: np.ndarray, members: np.ndarray, patients: Sequence[str], *, folds: int, seed: int
) -> tuple[FittedRule, np.ndarray]:
    """The rule fitted on validation images, and the images' probabilities (n, k) by rules fitted on other patients' images.

    `truth` (n,) int64: the true class. `members` (m, n, k): each method's probabilities. `patients` (n,): their ids, "" where
    unknown. Stacking takes the penalty of the least log loss of these out-of-fold predictions. Too few patients: `UserError`.
    """
    splits = _folds(truth, patients, folds, seed, each_class=rule == "stacking")
    fold_temperatures = [_temperatures(truth[fitted_on], members[:, fitted_on]) for fitted_on, _ in splits]
    tried = []
    for penalty in PENALTIES if rule == "stacking" else (1.0,):
        out_of_fold = np.empty(members.shape[1:])
        for (fitted_on, held_out), temperatures in zip(splits, fold_temperatures, strict=True):
            fitted = _fit(rule, truth[fitted_on], members[:, fitted_on], temperatures, penalty)
            out_of_fold[held_out] = fitted.predict(members[:, held_out])
        true = out_of_fold[np.arange(len(truth)), truth]
        tried.append((-np.log(true + np.finfo(np.float64).eps).mean(), penalty, out_of_fold))
    _, penalty, best = min(tried, key=lambda one: one[0])
    return _fit(rule, truth, members, _temperatures(truth, members), penalty), best


def fit_weights(truth: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The weights (m,), at least 0 with a sum of 1, of the mean with the least log loss, a convex problem."""
    from scipy.optimize import minimize

    count = len(members)
    true = members[:, np.arange(len(truth)), truth] + np.finfo(np.float64).eps

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = weights @ true
        return float(-np.log(mixed).mean()), -(true / mixed).mean(axis=1)

    found = minimize(
        loss,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.success, found.message
    weights: np.ndarray = np.clip(found.x, 0, 1)
    return weights / weights.sum()


def _temperatures(truth: np.ndarray, members: np.ndarray) -> list[float | None]:
    return [fit_temperature(truth, member) for member in members]


def _fit(
    rule: Rule, truth: np.ndarray, members: np.ndarray, temperatures: list[float | None], penalty: float
) -> FittedRule:
    if rule == "stacking":
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=penalty, max_iter=2000).fit(_features(members, temperatures), truth)
        return Stacking(temperatures=temperatures, penalty=penalty, model=model)
    equal = np.full(len(members), 1 / len(members))
    weights = fit_weights(truth, _scaled(members, temperatures)) if rule == "weights" else equal
    return WeightedMean(temperatures=temperatures, weights=weights)


def _folds(
    truth: np.ndarray, patients: Sequence[str], folds: int, seed: int, *, each_class: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions (fitted on, held out) of each fold; with `each_class` as many as the rarest class has patients, at most."""
    groups = pd.Series([patient or f"image {row}" for row, patient in enumerate(patients)])
    labels = pd.Series(truth)
    count = groups.nunique()
    if each_class:
        count = min(groups[labels == label].nunique() for label in labels.unique())
    if count < 2:
        raise UserError(
            "The validation split has too few patients to fit an ensemble on: it needs two"
            + (", of each class; --rule mean needs no more than two in all." if each_class else ".")
        )
    return grouped_folds(labels, groups, min(folds, count), seed)


def _scaled(members: np.ndarray, temperatures: Sequence[float | None]) -> np.ndarray:
    """Temperature-scaled probabilities, (m, n, k)."""
    return np.stack([scale_probabilities(*pair) for pair in zip(members, temperatures, strict=True)])


def _features(members: np.ndarray, temperatures: Sequence[float | None]) -> np.ndarray:
    """Log-probabilities of all members side by side, (n, m x k)."""
    return np.hstack([log_probabilities(member) for member in _scaled(members, temperatures)])
