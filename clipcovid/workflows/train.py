"""What every training job does: make what it reads, train, print the scores, show the run in MLflow."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from clipcovid.config import UserError, override
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.evaluate import predictions
from clipcovid.evaluate.console import print_folds, print_scores, print_shots
from clipcovid.evaluate.predictions import TRAINED_ON
from clipcovid.identity import crossval_identity, run_identity
from clipcovid.inference.embed import EmbedConfig, embed
from clipcovid.io.files import write_json
from clipcovid.methods.registry import METHODS, FewShotConfig, save_texts
from clipcovid.runs import Run, finish_run, score_split, start_run
from clipcovid.terminal import Countdown
from clipcovid.tracking import live, track, ui_command
from clipcovid.training.trainer import TrainResult, sized_config, train_model, training_manifest

Part = tuple[Run, Any]
"""A run that is one of another's folds or draws, and its config, but for where it is."""


def train(config: Any) -> TrainResult:
    """Train as the config says, print the test split's scores, and show the run in MLflow."""
    training_manifest(config)  # what can't be learned from is known before it is embedded
    embeddings = embeddings_for(config)
    with live(config) as watch:
        trained = train_model(config, embeddings=embeddings, watch=watch)
        show(trained.run, trained.scores, config, trained.manifest)
    return trained


def train_or_curve(config: FewShotConfig) -> None:
    """Train one of those that read embeddings, or with several numbers of shots a curve of them."""
    if len(config.shots) > 1:
        few_shot(config)
    else:
        train(config)


CROSSVAL = "crossval"
DRAWS = 3  # of the images of each number of shots


def few_shot(config: FewShotConfig) -> Run:
    """A training for each number of shots and draw; their test scores and the curve in a run of its own.

    The runs take a second each, so they train in this process unless told otherwise.
    """
    from clipcovid.evaluate import plots  # matplotlib: other trainings start without it

    manifest, embeddings = training_manifest(config), embeddings_for(config)
    run = start_run(config, method=f"{config.task}-curve", identity=run_identity(config, manifest), job="few-shot")
    config = save_texts(config, manifest.classes, run.folder)
    if config.compute.workers is None:
        config = override(config, {"compute.workers": 0})
    draws = [(shots, draw) for shots in config.shots for draw in range(1 if shots == "all" else DRAWS)]
    bodies, parts, countdown = {}, list[Part](), Countdown("training", len(draws))
    with live(config) as watch:
        watch(run)
        for done, (shots, draw) in enumerate(draws, 1):
            single = override(config, {"shots": (shots,), "draw": draw, "name": ""})
            within = override(single, {"out": run.folder / "runs"})
            trained = train_model(within, embeddings=embeddings, log=lambda text: None)
            bodies[f"{shots}-shot-{draw}"] = body = trained.scores
            parts.append((trained.run, single))
            print(countdown.line(done, f"{shots} shots", f"accuracy {body['metrics']['accuracy']:.3f}"))
    scores = [{"shots": name.partition("-")[0]} | body["metrics"] for name, body in bodies.items()]
    write_json(run.folder / "metrics.json", bodies)
    plots.save({"shots": plots.shots(scores)}, run.folder / "figures")
    finish_run(run)
    print_shots(scores, Console())
    track_run(run, config, manifest, parts)
    return run


def embeddings_for(config: Any) -> Embeddings | None:
    """The embeddings that the method reads, made where they are missing; None for what reads images."""
    return embed(EmbedConfig.of(config)) if METHODS[config.task].embedded else None


def show(run: Run, scores: dict[str, Any], config: Any, manifest: Manifest, parts: Sequence[Part] = ()) -> None:
    """Print a split's scores and where the run is, and show it in MLflow with its parts beneath it."""
    print_scores(scores, Console())
    track_run(run, config, manifest, parts)


def track_run(run: Run, config: Any, manifest: Manifest, parts: Sequence[Part] = ()) -> None:
    """Say where the run is, and show it in MLflow with its parts beneath it."""
    print(f"Run: {run.folder}")
    hashes = {"manifest": manifest.content_hash, "split": manifest.split_hash, "dataset": manifest.dataset}
    shown = track(run, config, tags=hashes)
    if shown and all(track(part, its, tags=hashes, parent=run) for part, its in parts):
        print(f"MLflow: {ui_command(config.out)}")


def cross_validate(config: Any, folds: int) -> Run:
    """Train the method on each of `folds` patient-grouped folds, and score the test predictions of all of them together.

    Each fold is a run of its own under the run's folder, so a killed cross-validation goes on where it was. The pooled
    table has every labelled image once, predicted by the model that had not seen its patient; its `split` is `crossval`.
    """
    if config.fold or folds < 2:
        raise UserError("Cross-validation needs two --folds or more, and makes its own: leave --fold out.")
    manifest = config.resolve_manifest(read_manifest(config.data))
    everything = dataclasses.replace(manifest, table=manifest.eligible("all", config.required_columns)[0])
    first = override(config, {"fold": f"1/{folds}"})
    config = override(sized_config(first, training_manifest(first)), {"fold": ""})  # all folds alike
    config.check_initial_weights()
    named = crossval_identity(config, everything, folds)
    run = start_run(config, method=config.title, identity=named, stem=f"{CROSSVAL}-{config.title}", job=CROSSVAL)
    config = save_texts(config, manifest.classes, run.folder)
    embeddings, tables, bodies, learned = embeddings_for(config), [], [], set[str]()
    parts, countdown = list[Part](), Countdown("fold", folds)
    with live(config) as watch:
        watch(run)
        for number in range(1, folds + 1):
            print(f"Fold {number} of {folds}:")
            single = override(config, {"fold": f"{number}/{folds}", "name": f"fold-{number}"})
            trained = train_model(override(single, {"out": run.folder / "folds"}), embeddings=embeddings)
            bodies.append(trained.scores)
            parts.append((trained.run, single))
            print(countdown.line(number))
            table, _ = predictions.read_predictions(trained.run.folder / "predictions" / "test.parquet")
            learned |= set(table["image_id"][table.pop(TRAINED_ON)]) if TRAINED_ON in table else set()
            tables.append(table)
    table = pd.concat(tables, ignore_index=True).drop(columns=["label", "patient_id"])
    pooled = score_split(run, everything, table, config, split="all", name=CROSSVAL, trained_on=learned)
    assert pooled is not None, "each fold has images that it did not learn from"
    pooled["folds"] = [body["metrics"] for body in bodies]
    write_json(run.folder / "metrics.json", {CROSSVAL: pooled})
    finish_run(run)
    print_folds(pooled["folds"], Console())
    show(run, pooled, config, manifest, parts)
    return run
