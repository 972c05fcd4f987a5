"""Predictions of a trained run on any prepared data set, over all the workers that the cluster has room for."""

import dataclasses
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from clipcovid.config import ComputeConfig, EmbeddingsConfig, TrainConfig, UserError, quote_names
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.data.training_images import seen_in_training
from clipcovid.errors import collect_mapping
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.report import score_split, stored_scores, write_split_predictions
from clipcovid.evaluate.scores import Scores
from clipcovid.identity import clip_weights_identity, prediction_identity
from clipcovid.inference.embed import EmbedConfig, embed
from clipcovid.io.files import atomic_write, remove_job_files
from clipcovid.methods.checkpoints import read_checkpoint
from clipcovid.methods.registry import METHODS
from clipcovid.ray_backend.cluster import cluster_nodes, connect
from clipcovid.ray_backend.resources import ResourcePlan, plan_resources, resolve_precision
from clipcovid.ray_backend.shards import read_shards, sharded_map, split_rows
from clipcovid.runs import Run, find_finished_run, finish_run, start_run

if TYPE_CHECKING:
    from clipcovid.training.loop import DeviceContext

ROWS_PER_SHARD = 256  # images that are predicted, and kept, at once


@dataclass(frozen=True, kw_only=True)
class PredictConfig(EmbeddingsConfig):
    """Options of predicting a prepared data set with a trained run."""

    run: Path
    """The folder of a finished training, or of a zero-shot run."""
    data: Path
    """A prepared folder: the one trained on, or any other."""
    split: Literal["train", "val", "test", "all"] = "test"
    """The split to predict."""
    map: tuple[str, ...] = ()
    """The model's class for each of the data's that it does not know, e.g. Pneumonia=Non-COVID; Other= leaves those out."""
    out: Path = Path("outputs")
    """Where run folders and the MLflow store go."""
    name: str = ""
    """The run folder's name. Default: the method and the identity's hash."""
    compute: ComputeConfig = ComputeConfig()
    """What to ask of the cluster."""


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """A run of predictions."""

    run: Run
    manifest: Manifest
    """The data's, with labels as the model's classes."""
    scores: Scores | None
    """Of the images that the model did not learn from; None where there are no such images with labels."""
    created: bool
    """False where it had been done before."""
    unscored_reason: str = ""
    """Why there are no scores."""


def predict_split(config: PredictConfig, log: Callable[[str], None] = print) -> PredictResult:
    """Predict a split with a trained run, and score it where it has labels; a killed one goes on where it was.

    Classes that the model does not know, and runs without a checkpoint, are `UserError`s.
    """
    task, metadata, checkpoint = read_checkpoint(config.run)
    source = read_manifest(config.data)
    learned, note = seen_in_training(config.run, source)
    if note:
        log(f"note: {note}")
    manifest = _model_manifest(source, config, task, metadata, log)

    def predict_rows(run: Run, rows: pd.DataFrame) -> tuple[pd.DataFrame, None]:
        if METHODS[task.task].uses_embeddings:
            return _predict_embeddings(config, task, metadata, source, rows, log), None
        return _predict_images(config, task, run, manifest, rows, log), None

    return write_prediction_run(
        config,
        train_config=task,
        method=task.title,
        trained_run=checkpoint.parent if checkpoint.name == "checkpoint" else checkpoint,
        identity=prediction_identity(checkpoint, task, metadata, manifest, config.split),
        manifest=manifest,
        is_trained_on=learned,
        predict_rows=predict_rows,
        log=log,
    )


def write_prediction_run(
    config: PredictConfig,
    *,
    train_config: TrainConfig | None = None,
    method: str,
    trained_run: Path,
    identity: dict[str, Any],
    manifest: Manifest,
    is_trained_on: pd.Series,
    predict_rows: Callable[[Run, pd.DataFrame], tuple[pd.DataFrame, np.ndarray | None]],
    log: Callable[[str], None],
) -> PredictResult:
    """The run of a split's predictions, which is made where it is not finished.

    `train_config`: that of the checkpoint; None for a classification without one. `trained_run`: the folder of the run that
    predicts. `manifest`: with the model's classes; `is_trained_on`, bool by position in it: the images that the model learned
    from. `predict_rows`: the predictions table of some rows, and maybe their similarities (n, k) to the classes' texts.
    """
    stem = f"predict-{trained_run.resolve().name}-{config.data.resolve().name}"
    finished = find_finished_run(config, method=method, identity=identity, stem=stem, job="predict")
    run = finished or start_run(config, method=method, identity=identity, stem=stem, job="predict")
    kind = get_kind(METHODS[train_config.task].kind if train_config else "classification")
    rows, required = manifest.rows(config.split), train_config.required_columns if train_config else ("label",)
    if labelled := bool((rows[list(required)] != "").all(axis=1).any()):
        rows, _ = manifest.rows_with(config.split, required)
        kind.check_images(rows)
    trained_on = set(manifest.table.loc[is_trained_on, "image_id"]) & set(rows["image_id"])
    reason = "" if labelled else "No image of this split has what its predictions could be scored by"
    if labelled and len(trained_on) == len(rows):
        reason = f"The model learned from all {len(rows)} of these images, by their pixels"
    scores = stored_scores(run).get(config.split)
    predicted = PredictResult(run=run, manifest=manifest, scores=scores, created=False, unscored_reason=reason)
    if finished:
        log(finished.finished_note)
        return predicted
    table, similarities = predict_rows(run, rows)
    scores, split = None, config.split
    if labelled:
        of_data = dataclasses.replace(train_config, data=config.data) if train_config else None
        scores = score_split(
            run, manifest, table, of_data, split=split, similarities=similarities, trained_on=trained_on
        )
    else:
        write_split_predictions(run, manifest, table, kind=kind.name, split=split, trained_on=trained_on)
    finish_run(run)
    remove_job_files(run.folder, r"state/\d{5}\.(parquet|npy)")
    return dataclasses.replace(predicted, scores=scores, created=True)


def _model_manifest(
    source: Manifest, config: PredictConfig, task: TrainConfig, metadata: dict[str, Any], log: Callable[[str], None]
) -> Manifest:
    """The data's manifest as the model reads it, with the model's classes; images packed otherwise are logged."""
    manifest = map_labels(source, metadata["classes"], config.map) if "label" in task.required_columns else source
    manifest = task.resolve_manifest(manifest, training=False)
    trained_on, packed = metadata["images"], manifest.info["images"]
    if changed := [key for key in ("mode", "fit") if trained_on[key] != packed[key]]:
        changes = ", ".join(f"{key} {packed[key]} instead of {trained_on[key]}" for key in changed)
        log(f"note: these images were prepared otherwise than those that the model learned from: {changes}.")
    return manifest


def map_labels(manifest: Manifest, classes: Sequence[str], mapping: Sequence[str], flag: str = "--map") -> Manifest:
    """The manifest with labels of the model's classes; one that is not known, nor mapped once, is a `UserError`.

    `flag`: the option that gave the mapping.
    """
    found = []
    for entry in mapping:
        pairs = [(name, entry[len(name) + 1 :]) for name in manifest.classes if entry.startswith(f"{name}=")]
        pair = next((pair for pair in pairs if pair[1] in ("", *classes)), None)
        if pair is None:
            raise UserError(
                f"{flag} {entry!r} must be DATA-CLASS=MODEL-CLASS: the data has {quote_names(manifest.classes)}, the model "
                f"{quote_names(classes)}."
            )
        found.append(pair)
    named = {name: name for name in classes} | collect_mapping(found, flag) | {"": ""}
    if unknown := [name for name in manifest.classes if name not in named]:
        raise UserError(
            f"The model knows {quote_names(classes)}, but not {quote_names(unknown)} of {manifest.dataset}: say what each "
            "of them is "
            f"with {flag} {' '.join(shlex.quote(f'{name}=…') for name in unknown)} (nothing after the = leaves it out)."
        )
    return manifest.with_columns(classes, label=manifest.table["label"].map(named))


def _predict_images(
    config: PredictConfig,
    task: TrainConfig,
    run: Run,
    manifest: Manifest,
    rows: pd.DataFrame,
    log: Callable[[str], None],
) -> pd.DataFrame:
    """The predictions table of these rows by a method that reads images, from shards in the run's `state/`."""
    connect(config.compute)
    resources = plan_resources(
        config.compute, cluster_nodes(), gpu=True, max_per_node=1, items=math.ceil(len(rows) / ROWS_PER_SHARD)
    )
    pooled = get_kind(METHODS[task.task].kind).needs_whole_split  # so what is kept is the model's own output
    log(f"Predicting {len(rows):,} images: {resources}.")
    shards = sharded_map(
        run.folder / "state",
        split_rows(manifest.positions(rows["image_id"]), ROWS_PER_SHARD),
        PredictionActor,
        resources,
        label="Predicting",
        settings={
            "run": config.run.resolve(),
            "data": config.data.resolve(),
            "manifest": manifest,
            "resources": resources,
        },
        suffix=".npy" if pooled else ".parquet",
    )
    if not pooled:
        return read_shards(shards)
    from clipcovid.methods.task import Examples, load_checkpoint

    outputs = np.concatenate([np.load(shard) for shard in shards])
    trained, _, state = load_checkpoint(config.run)
    return trained.predictions_table(Examples(rows=rows, read=lambda indices: {}), outputs, state)


def _predict_embeddings(
    config: PredictConfig,
    task: Any,
    metadata: dict[str, Any],
    source: Manifest,
    rows: pd.DataFrame,
    log: Callable[[str], None],
) -> pd.DataFrame:
    """The predictions table of these rows by a small head or decoder on embeddings, computed in this process.

    An encoder whose weights are not those that the run learned from is a `UserError`.
    """
    check_encoder(config.run, task, metadata)
    changes = {name: getattr(config, name) for name in ("data", "embeddings", "out", "compute")}
    embeddings = embed(EmbedConfig.from_config(task, **changes), log, manifest=source)
    values = embeddings.load(rows["image_id"]).astype(np.float32)
    from clipcovid.methods.task import Examples, load_checkpoint
    from clipcovid.models.clip_model import default_device
    from clipcovid.training.loop import predict

    task, module, state = load_checkpoint(config.run)
    context = device_context(default_device(), task.config.optim.precision)
    examples = Examples(rows=rows, read=lambda indices: {"embedding": values[indices]})
    predictor = task.test_predictor(module.to(context.device), state)
    return task.predictions_table(examples, predict(predictor, examples, context), state)


def check_encoder(run: Path, config: Any, metadata: dict[str, Any]) -> None:
    """Refuse a run whose encoder, which its checkpoint only names, has other weights now than those it learned from."""
    weights = clip_weights_identity(config.clip, config.seed)
    if metadata.get("encoder", weights) != weights:
        raise UserError(
            f"{run} learned from embeddings of other weights than those that are in {config.clip.pretrained} now: bring back "
            "the encoder as it was, or train the run anew."
        )


def device_context(device: str, precision: str, **settings: int) -> "DeviceContext":
    """What a process predicts on: `cpu` or `cuda`, in a precision that may be `auto`."""
    import torch

    from clipcovid.training.loop import DeviceContext

    return DeviceContext(device=torch.device(device), precision=resolve_precision(precision, device), **settings)


class PredictionActor:
    """An actor that holds a trained model."""

    def __init__(self, *, run: Path, data: Path, manifest: Manifest, resources: ResourcePlan) -> None:
        import torch

        from clipcovid.data.packed import PackedImages
        from clipcovid.methods.task import load_checkpoint

        torch.set_num_threads(resources.threads)
        self.task, module, self.state = load_checkpoint(run)
        precision = self.task.config.optim.precision
        self.context = device_context(resources.device, precision, batch_size=resources.batch_size)
        self.module = module.to(self.context.device)
        self.predictor = self.task.test_predictor(self.module, self.state)
        self.packed = PackedImages(data, manifest)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Predict the rows of an item, and keep their part of the table in its file."""
        from clipcovid.methods.task import Examples
        from clipcovid.training.loop import predict

        rows = self.packed.manifest.table.iloc[item["rows"]].reset_index(drop=True)
        examples = Examples(rows=rows, read=self.task.reader(self.packed, rows, self.state))
        outputs = predict(self.predictor, examples, self.context)
        with atomic_write(Path(item["path"])) as partial:
            if item["path"].endswith(".npy"):
                with partial.open("wb") as file:
                    np.save(file, outputs)
            else:
                self.task.predictions_table(examples, outputs, self.state).to_parquet(partial)
        return {"images": len(rows)}
