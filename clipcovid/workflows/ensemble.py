"""An ensemble of finished runs: a run of its own, made of their predictions of val and test alone."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from clipcovid.errors import UserError
from clipcovid.evaluate import plots
from clipcovid.evaluate.bootstrap import patient_groups
from clipcovid.evaluate.ensemble import EnsembleConfig, FittedRule, fit_ensemble
from clipcovid.evaluate.kinds.classification import KIND
from clipcovid.evaluate.load_predictions import MethodPredictions, check_same_run, load_method_predictions
from clipcovid.evaluate.metrics import encode_labels
from clipcovid.evaluate.predictions import TRAINED_ON, write_predictions
from clipcovid.evaluate.probabilities import class_probabilities, probability_table
from clipcovid.evaluate.scores import Scores
from clipcovid.identity import ensemble_identity
from clipcovid.io.files import write_json
from clipcovid.runs import SUCCESS_MARKER, Run, finish_run, start_run
from clipcovid.workflows.report import report_run

RULES = {
    "mean": "the mean of temperature-scaled probabilities",
    "weights": "a weighted mean of temperature-scaled probabilities",
    "stacking": "a logistic regression on log-probabilities",
}


def ensemble_runs(config: EnsembleConfig) -> Run:
    """Fit the config's rule on the runs' validation predictions, and write those of val and test as a run of its own.

    Runs that lack one of them, that are no classifications, or do not predict the same images of the same split and classes
    are refused by a `UserError`.
    """
    validations, tests = _load(config)
    classes = list(tests[0].metadata["classes"])
    members = {"val": _members(validations, classes), "test": _members(tests, classes)}
    identity = ensemble_identity(config, tests[0].metadata, members)
    method = f"ensemble-{config.rule}"
    run = start_run(config, method=method, identity=identity)
    (run.folder / SUCCESS_MARKER).unlink(missing_ok=True)
    fitted, tables = _predict(config, validations, tests, members, classes)
    names = [test.name for test in tests]
    write_json(run.folder / "ensemble.json", {"rule": config.rule, **fitted.to_json(names)})
    fitted_on = len(tables["val"]) - int(tables["val"].get(TRAINED_ON, pd.Series(dtype=bool)).sum())
    scores = {
        split: _score(run, table, methods, classes, _notes(config, split, fitted_on, fitted, names))
        for (split, table), methods in zip(tables.items(), (validations, tests), strict=True)
    }
    write_json(run.folder / "metrics.json", {split: entry.to_json() for split, entry in scores.items()})
    finish_run(run)
    metadata = tests[0].metadata
    tags = {"split": metadata["split_hash"], "manifest": metadata["manifest_hash"], "members": ", ".join(names)}
    report_run(run, config, tags, scores=scores["test"], title="Ensemble")
    return run


def _load(config: EnsembleConfig) -> tuple[list[MethodPredictions], list[MethodPredictions]]:
    """The runs' predictions of val and of test, in the same order."""
    for run in config.runs:
        if not (run / "predictions" / "val.parquet").exists():
            raise UserError(
                f"{run} has no predictions of val, on which an ensemble is fitted: name trained runs; zeroshot writes them "
                "with --split val and the same --name."
            )
    validations, tests = (
        load_method_predictions(config.runs, split, keep_training_images=True) for split in ("val", "test")
    )
    if tests[0].metadata["task"] != KIND.name:
        raise UserError(f"An ensemble joins {KIND.title}; {tests[0].source} predicts {tests[0].metadata['task']}.")
    for validation, test in zip(validations, tests, strict=True):
        check_same_run(validation, test)
    return validations, tests


def _members(methods: Sequence[MethodPredictions], classes: Sequence[str]) -> np.ndarray:
    """Each method's probabilities, (m, n, k)."""
    return np.stack([class_probabilities(method.table, classes) for method in methods])


def _predict(
    config: EnsembleConfig,
    validations: Sequence[MethodPredictions],
    tests: Sequence[MethodPredictions],
    members: dict[str, np.ndarray],
    classes: Sequence[str],
) -> tuple[FittedRule, dict[str, pd.DataFrame]]:
    """The fitted rule, and the predictions tables of val and test; what a member learned from is fitted on by none."""
    tables = {split: _facts(methods) for split, methods in (("val", validations), ("test", tests))}
    unseen = ~tables["val"][TRAINED_ON].to_numpy()
    usable = tables["val"][unseen]
    if usable.empty:
        raise UserError("The runs learned from all of the validation images: there is none to fit an ensemble on.")
    truth = encode_labels(usable["label"].tolist(), classes)
    if config.rule == "stacking" and (absent := [name for name in classes if name not in set(usable["label"])]):
        raise UserError(
            f"--rule stacking learns classes from validation images, and none is of {', '.join(absent)}: use --rule mean "
            "or weights."
        )
    fitted, out_of_fold = fit_ensemble(
        config.rule,
        truth,
        members["val"][:, unseen],
        patient_groups(usable),
        folds=config.folds,
        seed=config.seed,
    )
    outputs = {split: fitted.predict(array) for split, array in members.items()}
    outputs["val"][unseen] = out_of_fold
    for split, table in tables.items():
        probabilities = probability_table(table["image_id"], outputs[split], classes).drop(columns="image_id")
        table = pd.concat([table, probabilities], axis=1)
        tables[split] = table if table[TRAINED_ON].any() else table.drop(columns=TRAINED_ON)
    return fitted, tables


def _facts(methods: Sequence[MethodPredictions]) -> pd.DataFrame:
    """image_id, label, patient_id, and whether any of the methods learned from the image."""
    table = methods[0].table[["image_id", "label", "patient_id"]].reset_index(drop=True)
    learned = frozenset().union(*(method.trained_on for method in methods))
    return table.assign(**{TRAINED_ON: table["image_id"].isin(learned)})


def _score(
    run: Run,
    table: pd.DataFrame,
    methods: Sequence[MethodPredictions],
    classes: Sequence[str],
    notes: Sequence[str],
) -> Scores:
    """Write a split's predictions and figures; gives the scores, beside baselines as the members' own are."""
    about = {key: methods[0].metadata[key] for key in ("task", "manifest_hash", "split_hash", "split")}
    path = run.folder / "predictions" / f"{about['split']}.parquet"
    write_predictions(path, table, method=run.method, identity=run.identity, classes=classes, **about)
    if TRAINED_ON in table:
        learned = int(table[TRAINED_ON].sum())
        notes = [
            *notes,
            f"{learned} of {len(table)} images are among those that a member learned from: they are not scored.",
        ]
        table = table[~table.pop(TRAINED_ON)].reset_index(drop=True)
    scores = KIND.score(table, classes)
    stored = [method.stored_scores for method in methods]
    if same := [entry for entry in stored if isinstance(entry, KIND.scores_type) and entry.n == scores.n]:
        scores = dataclasses.replace(scores, baselines=KIND.common_baselines(same))
    figures = KIND.figures(table, scores, classes, split=about["split"])
    plots.save_figures({f"{about['split']}_{name}": figure for name, figure in figures.items()}, run.folder / "figures")
    return dataclasses.replace(scores, notes=[*notes, *scores.notes])


def _notes(config: EnsembleConfig, split: str, fitted_on: int, fitted: FittedRule, names: Sequence[str]) -> list[str]:
    """What was fitted on how many images, and how validation images were predicted."""
    coefficients = fitted.to_json(names).get("coefficients", [])
    count = f" with {sum(map(len, coefficients))} coefficients" if coefficients else ""
    notes = [f"This is {RULES[config.rule]}{count} of {', '.join(names)}, fitted on {fitted_on:,} validation images."]
    if split == "val":
        notes.append("Each of these is predicted by a rule that was fitted on other patients' images.")
    return notes
