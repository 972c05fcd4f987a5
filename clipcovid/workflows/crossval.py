"""Cross-validation of a training method over patient-grouped folds, and the scores of the pooled test predictions."""

import dataclasses

import pandas as pd
from rich.console import Console

from clipcovid.config import TrainConfig, UserError, override
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.evaluate.console import print_folds
from clipcovid.evaluate.predictions import TRAINED_ON, read_predictions
from clipcovid.evaluate.report import score_split
from clipcovid.identity import crossval_identity
from clipcovid.io.files import write_json
from clipcovid.methods.checkpoints import save_texts
from clipcovid.runs import Run, find_finished_run, finish_run, start_run
from clipcovid.terminal import Countdown
from clipcovid.tracking.datasets import describe_data
from clipcovid.tracking.runs import live_tracker
from clipcovid.training.trainer import TrainResult, resolve_training_schedule, train_model, training_manifest
from clipcovid.workflows.register import refuse_register_flag
from clipcovid.workflows.report import ChildRun, report_run
from clipcovid.workflows.train import embeddings_for

CROSSVAL = "crossval"


def cross_validate(config: TrainConfig, folds: int) -> Run:
    """Train the method on each of `folds` patient-grouped folds, and score the test predictions of all of them together.

    Each fold is a run of its own under the run's folder, so a killed cross-validation goes on where it was. The pooled
    table has every labelled image once, predicted by the model that had not seen its patient; its `split` is `crossval`.
    """
    if config.fold or folds < 2:
        raise UserError("Cross-validation needs two --folds or more, and makes its own: leave --fold out.")
    refuse_register_flag(config, "Cross-validation")
    source = read_manifest(config.data)
    manifest = config.resolve_manifest(source)
    everything = dataclasses.replace(manifest, table=manifest.rows_with("all", config.required_columns)[0])
    first = override(config, {"fold": f"1/{folds}"})
    config = override(
        resolve_training_schedule(first, training_manifest(first, source)), {"fold": ""}
    )  # all folds alike
    identity = crossval_identity(config, everything, folds)
    names = {"method": config.title, "stem": f"{CROSSVAL}-{config.title}", "job": CROSSVAL}
    if not find_finished_run(config, identity=identity, **names):
        config.check_initial_weights()
    run = start_run(config, identity=identity, **names)
    config = save_texts(config, manifest.classes, run.folder)
    embeddings = embeddings_for(config, source)
    with live_tracker(config, describe_data(everything, config.data, ("all",))) as watch:
        watch(run)
        results, children = _train_folds(config, folds, run, source, embeddings)
    table, trained_on = _pooled_predictions(results)
    scores = score_split(run, everything, table, config, split="all", name=CROSSVAL, trained_on=trained_on)
    assert scores is not None, "each fold has images that it did not learn from"
    scores = dataclasses.replace(scores, folds=[result.scores.metrics for result in results])
    write_json(run.folder / "metrics.json", {CROSSVAL: scores.to_json()})
    finish_run(run)
    print_folds(scores.kind, scores.folds, Console())
    report_run(run, config, manifest=everything, splits=("all",), scores=scores, children=children)
    return run


def _train_folds(
    config: TrainConfig, folds: int, run: Run, source: Manifest, embeddings: Embeddings | None
) -> tuple[list[TrainResult], list[ChildRun]]:
    """The training of each fold in the run's folder `folds`, and the runs that MLflow shows of them.

    `source`: the data's manifest as it was read.
    """
    results, children, countdown = [], [], Countdown("fold", folds)
    for number in range(1, folds + 1):
        print(f"Fold {number} of {folds}:")
        single = override(config, {"fold": f"{number}/{folds}", "name": f"fold-{number}"})
        placed = override(single, {"out": run.folder / "folds"})
        result = train_model(placed, manifest=source, embeddings=embeddings)
        results.append(result)
        children.append(ChildRun(run=result.run, config=single, manifest=result.manifest))
        print(countdown.line(number))
    return results, children


def _pooled_predictions(results: list[TrainResult]) -> tuple[pd.DataFrame, set[str]]:
    """The test predictions of all folds, and the ids of the images that the initial weights were trained on."""
    tables, trained_on = [], set[str]()
    for result in results:
        table, _ = read_predictions(result.run.folder / "predictions" / "test.parquet")
        trained_on |= set(table["image_id"][table.pop(TRAINED_ON)]) if TRAINED_ON in table else set()
        tables.append(table)
    return pd.concat(tables, ignore_index=True).drop(columns=["label", "patient_id"]), trained_on
