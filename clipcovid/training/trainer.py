"""From a training config to a finished run folder: the loop in this process, or on Ray Train's workers."""

import importlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from clipcovid.config import ImagesConfig, TrainConfig, UserError, override, resolve_defaults, resolve_schedule
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.folds import apply_fold
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.data.training_images import TrainingImages, read_run_identity, read_training_images
from clipcovid.errors import TrainingStopped
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.report import score_split, stored_scores
from clipcovid.evaluate.scores import Scores
from clipcovid.identity import run_identity, weight_paths
from clipcovid.io.files import atomic_write, remove_job_files, write_json
from clipcovid.methods.checkpoints import save_texts
from clipcovid.methods.registry import METHODS
from clipcovid.ray_backend.cluster import cluster_nodes, connect
from clipcovid.ray_backend.resources import ResourcePlan, plan_resources, resolve_precision
from clipcovid.ray_backend.train import train_on_workers
from clipcovid.runs import Run, find_finished_run, finish_run, start_run

if TYPE_CHECKING:
    import torch

    from clipcovid.methods.task import Examples, Predictor, Task
    from clipcovid.training.checkpoint import TrainingProgress
    from clipcovid.training.loop import DeviceContext

ConfigT = TypeVar("ConfigT", bound=TrainConfig)

OnEpoch = Callable[[dict[str, float]], None]
SCORED_SPLITS = ("val", "test")
STATE_FILES = (
    r"state/((state|best)\.pt|(val|test)(-[^/]+)?\.parquet|failed\.txt|ray/try-\d+(/.*)?)"  # of an unfinished run
)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A training run and what came of it."""

    run: Run
    manifest: Manifest
    """The data's, with the splits that were used."""
    scores: Scores
    """The test split's."""
    created: bool
    """False where it had been finished before."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """All that a worker needs to know."""

    config: TrainConfig
    run: Run
    manifest: Manifest
    plan: ResourcePlan
    embeddings: Embeddings | None
    training_images: TrainingImages | None
    """Those of the weights it starts from."""
    began: float


def training_manifest(config: TrainConfig, manifest: Manifest | None = None) -> Manifest:
    """The data's manifest, with the config's fold as its splits where one is asked for; too few classes: `UserError`.

    `manifest`: the data's as it was read, where it has been read already.
    """
    manifest = config.resolve_manifest(manifest or read_manifest(config.data))
    if config.fold:
        manifest = apply_fold(manifest, config.fold, config.seed, config.required_columns)
    for split in ("train", *SCORED_SPLITS):
        rows, _ = manifest.rows_with(split, config.train_columns if split == "train" else config.required_columns)
        if split in SCORED_SPLITS:
            get_kind(METHODS[config.task].kind).check_images(rows)
        if "label" in config.required_columns and split == "train" and rows["label"].nunique() < 2:
            raise UserError(
                f"The train split of {config.data} has images of {rows['label'].nunique()} class: training needs labelled "
                "ones of two or more to learn from."
            )
    return manifest


def check_initial_overlap(
    config: TrainConfig, manifest: Manifest, log: Callable[[str], None] = print
) -> TrainingImages | None:
    """The training images of all weights that the config starts from; None if no list was kept with them.

    Weights that know images by which this run chooses or is tested (but for those whose pixels it learns from itself) are
    a `UserError`. Lists are kept by our own runs; for those of older versions the split has to tell.
    """
    train, val, test = (manifest.table[manifest.table["split"] == split] for split in ("train", *SCORED_SPLITS))
    own, lists = TrainingImages.from_splits({"train": train, "val": val}), list[TrainingImages]()
    if len(test) and own.contains(test).all():
        raise UserError(
            f"All {len(test)} test images of {config.data} have the pixels of images to learn from: prepare it so that equal "
            "images are in one split."
        )
    for place in weight_paths(config).values():
        images = read_training_images(place)
        if images is None:
            _check_split(place, config, manifest, log)
            continue
        lists.append(images)
        tested = int((images.contains(test) & ~own.contains(test)).sum())
        chosen = int((images.contains(val, ["train"]) & ~own.contains(val, ["train"])).sum())
        if tested or chosen:
            raise UserError(
                f"{place} learned from another split of these X-rays: by their pixels, {tested} of this run's {len(test)} "
                f"test images and {chosen} of its {len(val)} validation images were among its training images. Train it on "
                f"the same split (--fold {config.fold or 'none'}, --seed {config.seed}), and give that."
            )
    return TrainingImages.union(lists) if lists else None


def _check_split(path: Path, config: TrainConfig, manifest: Manifest, log: Callable[[str], None]) -> None:
    """What the split's hash can tell of the weights of an older version, which kept no list of images."""
    about = read_run_identity(path)
    if not about:
        return
    told = f"{path} is of an older version and keeps no list of the images that it learned from"
    if about.get("split_hash") == manifest.split_hash:
        log(f"note: {told}; it learned from this very split.")
    elif about.get("pack_hash") == manifest.info["pack_hash"]:
        raise UserError(
            f"{told}; its split is another, and if it was one of these X-rays, some of this run's test images were among its "
            f"training images. Train it anew on the same split (--fold {config.fold or 'none'}, --seed {config.seed})."
        )
    else:
        log(f"note: {told}; whether some of these are among them is not known.")


def resolve_training_schedule(config: ConfigT, manifest: Manifest) -> ConfigT:
    """The config with the epochs and the batch size that follow from the number of images it learns from."""
    rows, _ = manifest.rows_with("train", config.train_columns)
    return resolve_schedule(config, len(rows))


def train_model(
    config: TrainConfig,
    *,
    manifest: Manifest | None = None,
    embeddings: Embeddings | None = None,
    on_run: Callable[[Run], OnEpoch] | None = None,
    log: Callable[[str], None] = print,
    fork_from: Path | None = None,
) -> TrainResult:
    """Train as the config says, going on where a killed run was; predict and score the val and test splits.

    `on_run` makes, for the run, what is told each validation's line as it comes; its failures are warnings. A finished run
    is not done again. Errors of the user's, the workers' too, are `UserError`s. `fork_from`: the `state/` of another
    training of the same model, which a new run goes on from.
    """
    began, requested = time.time(), config.optim
    manifest = training_manifest(config, manifest)
    config = resolve_defaults(resolve_training_schedule(config, manifest))
    identity = run_identity(config, manifest)
    if done := find_finished_run(config, method=config.title, identity=identity, job="train"):
        log(f"{done.finished_note} A new run needs another --name or config.")
        return TrainResult(run=done, manifest=manifest, scores=stored_scores(done)["test"], created=False)
    training_images = check_initial_overlap(config, manifest, log)
    config.check_initial_weights()
    run = start_run(config, method=config.title, identity=identity, job="train")
    config = save_texts(config, manifest.classes, run.folder / "checkpoint")
    config = override(config, {field: str(path.resolve()) for field, path in weight_paths(config).items()})
    resources = _start_cluster(config)
    log(f"Training {run.name}: {resources}.")
    if not (requested.epochs and requested.batch_size):
        log(
            f"note: {config.optim.epochs} epochs of batches of {config.optim.batch_size}, by the number of training images; "
            "--optim.epochs and --optim.batch-size set others."
        )
    if fork_from and not (run.folder / "state" / "state.pt").exists():
        from clipcovid.training.checkpoint import TrainingCheckpoint

        TrainingCheckpoint(run.folder / "state", run.identity).fork_from(fork_from)
    job = _Job(
        config=config,
        run=run,
        manifest=manifest,
        plan=resources,
        embeddings=embeddings,
        training_images=training_images,
        began=began,
    )
    report = _warn_on_error(on_run(run)) if on_run else None
    if resources.workers:
        train_on_workers(job, _train, report)
    else:
        _train(job, report=report or (lambda metrics: None), log=log)
    return TrainResult(run=run, manifest=manifest, scores=_score(config, run, manifest), created=True)


def _start_cluster(config: TrainConfig) -> ResourcePlan:
    """Join the cluster, or start one; what the training will use of it, or `UserError` where that can't be."""
    if config.compute.workers != 0:  # whoever waits for a cluster can import meanwhile: one to four seconds less
        threading.Thread(target=importlib.import_module, args=("torch",)).start()
    connect(config.compute)
    resources = plan_resources(config.compute, cluster_nodes(), gpu=True, max_per_node=1, oversubscribe=False)
    if resources.workers and config.optim.batch_size % resources.workers:
        raise UserError(
            f"--optim.batch-size {config.optim.batch_size} can't be shared evenly among {resources.workers} workers: make it "
            "a multiple of --compute.workers."
        )
    return resources


def _warn_on_error(watch: OnEpoch) -> OnEpoch:
    """A watcher whose failures are warnings."""

    def report(metrics: dict[str, float]) -> None:
        try:
            watch(metrics)
        except Exception as error:  # whatever a tracking server does, training goes on
            print(f"warning: an epoch could not be tracked ({type(error).__name__}: {str(error)[:200]}).")

    return report


def _train(job: _Job, *, report: OnEpoch, log: Callable[[str], None]) -> None:
    """Train, then predict the splits that are scored: the work of every worker, of which the first one writes."""
    import torch

    from clipcovid.distributed import all_gather_object, rank
    from clipcovid.methods.task import make_task
    from clipcovid.training.checkpoint import TrainingCheckpoint
    from clipcovid.training.loop import DeviceContext, fit, predict

    config, folder = job.config, job.run.folder
    if not (folder / "config.json").exists():
        raise UserError(f"A worker does not see {folder}: --out must be a folder that all nodes share.")
    torch.set_num_threads(job.plan.threads)
    device = torch.device(job.plan.device)
    precision = resolve_precision(config.optim.precision, job.plan.device)
    context = DeviceContext(device=device, precision=precision, batch_size=job.plan.batch_size)
    task = make_task(config, job.manifest.classes, ImagesConfig(**job.manifest.info["images"]))
    problem = ""
    try:
        state = task.setup(config.data, job.manifest, job.embeddings)
        train = task.examples(config.data, job.manifest, "train", state, training=True)
        examples = {split: task.examples(config.data, job.manifest, split, state) for split in SCORED_SPLITS}
        module = task.build(train, state).to(device)
    except UserError as error:
        problem = str(error)
    if problems := [text for text in all_gather_object(problem) if text]:  # those without one would wait for the others
        raise TrainingStopped(problems[0])
    if rank() == 0:
        for note, images in train.notes.items():
            log(f"{images} training {note}.")
        log(f"Ready to train after {time.time() - job.began:.1f} s, in {precision}.")
    checkpoint = TrainingCheckpoint(folder / "state", job.run.identity)
    progress = fit(
        task,
        module,
        train,
        examples["val"],
        config=config,
        device_context=context,
        checkpoint=checkpoint,
        report=report,
        log=log,
    )
    say = log if rank() == 0 else None

    def validate(predictor: "Predictor") -> dict[str, float]:
        return task.validation_scores(examples["val"], predict(predictor, examples["val"], context, say))

    choices, state = task.select_on_validation(module, train, state, validate)
    _predict(task, module, state, examples, context, folder / "state", say)
    if rank() == 0:
        _save(job, task, module, state, {"train": train.rows, "val": examples["val"].rows}, progress, choices)
    all_gather_object(None)  # all are done


def _predict(
    task: "Task[Any, Any]",
    module: "torch.nn.Module",
    state: Any,
    examples: dict[str, "Examples"],
    context: "DeviceContext",
    folder: Path,
    log: Callable[[str], None] | None,
) -> None:
    """Write each variant's predictions of each split.

    `log`: the first worker's, which is the one that writes; None for the others.
    """
    from clipcovid.training.loop import predict

    for variant, predictor in task.variants(module, state).items():
        for split in SCORED_SPLITS:
            outputs = predict(predictor, examples[split], context, log)
            if log:
                name = f"{split}-{variant}" if variant else split
                with atomic_write(folder / f"{name}.parquet") as partial:
                    task.predictions_table(examples[split], outputs, state).to_parquet(partial)


def _save(
    job: _Job,
    task: "Task[Any, Any]",
    module: "torch.nn.Module",
    state: Any,
    rows: dict[str, pd.DataFrame],
    progress: "TrainingProgress",
    choices: dict[str, Any],
) -> None:
    """Write the checkpoint, the images that it learned from (the manifest's `rows` by split), and the history."""
    from clipcovid.methods.task import save_checkpoint

    checkpoint = job.run.folder / "checkpoint"
    save_checkpoint(task, module, state, checkpoint, choices=choices, encoder=_encoder(job))
    inherited = [job.training_images] if job.training_images else []
    TrainingImages.union([TrainingImages.from_splits(rows), *inherited]).write(checkpoint)
    summary = {"best_epoch": progress.best_epoch, "best": progress.best, "monitor": task.monitor[0], "chosen": choices}
    write_json(job.run.folder / "history.json", summary | {"epochs": progress.history})


def _encoder(job: _Job) -> dict[str, Any]:
    """The identity of the encoder whose embeddings are read; nothing for a method that reads images."""
    if not METHODS[job.config.task].uses_embeddings:
        return {}
    return {key: value for key, value in job.run.identity.items() if key in ("clip.weights", "clip.seed")}


def _score(config: TrainConfig, run: Run, manifest: Manifest) -> Scores:
    """Score what the workers predicted, and finish the run; the test split's scores.

    Test images that have the pixels of one that was learned from are not scored.
    """
    from clipcovid.evaluate import plots

    images = read_training_images(run.folder)
    test = manifest.table[manifest.table["split"] == "test"]
    learned = set(test.loc[images.contains(test), "image_id"]) if images else set()
    plots.save_figures({"curves": plots.learning_curves_figure(run.history())}, run.folder / "figures")
    for path in sorted((run.folder / "state").glob("*.parquet")):
        split, _, variant = path.stem.partition("-")
        if split in SCORED_SPLITS:
            seen = learned if split == "test" else ()
            table = pd.read_parquet(path)
            score_split(run, manifest, table, config, split=split, variant=variant, trained_on=seen)
    finish_run(run)
    remove_job_files(run.folder, STATE_FILES)  # a finished run goes on no more
    return stored_scores(run)["test"]
