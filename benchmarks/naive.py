"""The loop that anybody would write first, on the same folds and with the same metric code as ours: what is gained.

    python benchmarks/naive.py classify --run outputs/crossval-cnn-resnet18 --data data/cxr3
    python benchmarks/naive.py segment --run outputs/crossval-segment --data data/seg100
    python benchmarks/naive.py caption --data data/medpix2

classify: a ResNet18 of timm, AdamW at a constant rate, random mirroring and shifts, trained on all patients that are not
tested; a cross-validation of ours minus it, with paired 95% intervals by patient.
segment: a U-Net of segmentation-models-pytorch, Dice + cross entropy, Adam, no augmentation, threshold 0.5, trained on all
patients that are not tested; compared likewise.
caption: ResNet18 and a two-layer transformer, multi-positive loss, no augmentation, the last epoch's weights.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console

from clipcovid.cli import run_job
from clipcovid.config import ImagesConfig, OptimConfig, UserError
from clipcovid.data.folds import apply_fold
from clipcovid.data.manifest import read_manifest
from clipcovid.data.packed import PackedImages
from clipcovid.evaluate.captions import BASELINES
from clipcovid.evaluate.console import print_scores
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.predictions import read_predictions
from clipcovid.evaluate.probabilities import probability_table
from clipcovid.evaluate.scores import Scores
from clipcovid.evaluate.segmentation import REGIONS
from clipcovid.io.files import write_json
from clipcovid.methods.caption.config import DualEncoderConfig
from clipcovid.methods.configs import NO_AUGMENT
from clipcovid.methods.segment.config import SegmentConfig
from clipcovid.methods.task import make_task
from clipcovid.training.checkpoint import TrainingCheckpoint
from clipcovid.training.loop import DeviceContext, fit, predict


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossvalBenchmark:
    """What a cross-validation of ours is compared with."""

    run: Path
    """The folder of a `clipcovid crossval` run."""
    data: Path
    """The prepared data set that it was run on, at this or another size."""
    folds: int = 5
    """How many folds it has."""
    size: int = 128
    """Side of the input, in pixels."""
    epochs: int = 12
    """Passes over the training images."""
    batch_size: int = 32
    """Images in a step."""
    lr: float = 1e-3
    """Adam's."""
    seed: int = 0
    """Of weights and order; the folds are those of the run's own seed 0."""


class ClassificationBenchmark(CrossvalBenchmark):
    """A ResNet18 on the folds of a cross-validation of ours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationBenchmark(CrossvalBenchmark):
    """A U-Net on the folds of a cross-validation of ours."""

    epochs: int = 40
    batch_size: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptioningBenchmark:
    """A dual encoder on a data set's own splits."""

    data: Path
    """A prepared folder with captions."""
    out: Path = Path("outputs/naive")
    """Where the scores go."""
    size: int = 128
    """Side of the input, in pixels."""
    epochs: int = 20
    """Passes over the training images."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A training each."""


def classify(config: ClassificationBenchmark) -> None:
    """Train on each fold, pool what it predicts, and compare."""
    ours, about = _read_predictions(config)
    theirs, seconds = _over_folds(config, _class_probabilities, ("label",))
    theirs = ours[["image_id", "label", "patient_id"]].merge(theirs, on="image_id", validate="1:1")
    _compare(config, ours, theirs, about, seconds)


def _compare(
    config: CrossvalBenchmark,
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    metadata: dict[str, Any],
    seconds: Sequence[float],
) -> None:
    """Print and write the naive scores, and ours minus those, on the same images."""
    kind, classes, name = get_kind(metadata["task"]), metadata["classes"], metadata["method"]
    ours, theirs = (table.sort_values("image_id", ignore_index=True) for table in (ours, theirs))
    scores = kind.score(theirs, classes)
    print_scores(scores, Console())
    differences = kind.differences({"naive": theirs, name: ours}, classes)[name]
    for metric, gap in differences.items():
        if "low" in gap:
            print(f"{name} − naive, {metric}: {gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})")
    write_json(config.run / "naive.json", {"pairs": differences, "seconds": seconds, "naive": scores.to_json()})


def _read_predictions(config: CrossvalBenchmark) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The predictions to compare with, and what they are; of other images than the data's: `UserError`."""
    ours, about = read_predictions(config.run / "predictions" / "crossval.parquet")
    if not ours["image_id"].isin(read_manifest(config.data).table["image_id"]).all():
        raise UserError(
            f"--data {config.data} lacks images that {config.run} was tested on: give the set it was run on."
        )
    return ours, about


def _over_folds(config: CrossvalBenchmark, train: Callable[..., pd.DataFrame], needs: Sequence[str]) -> Any:
    """What `train` predicts for each fold's test images, one below the other, and the seconds that each fold took."""
    manifest, tables, seconds = read_manifest(config.data), [], []
    for number in range(1, config.folds + 1):
        began = time.time()
        tables.append(train(config, apply_fold(manifest, f"{number}/{config.folds}", 0, needs)))
        seconds.append(time.time() - began)
        print(f"fold {number}: {seconds[-1]:.0f} s", flush=True)
    return pd.concat(tables, ignore_index=True), seconds


def _class_probabilities(config: ClassificationBenchmark, manifest: Any) -> pd.DataFrame:
    import timm

    packed = PackedImages(config.data, manifest)
    rows = pd.concat([manifest.rows_with(split, ("label",))[0] for split in ("train", "val")], ignore_index=True)
    tested, _ = manifest.rows_with("test", ("label",))
    torch.manual_seed(config.seed)
    net = timm.create_model("resnet18", num_classes=len(manifest.classes), in_chans=1).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr)

    def pixels(some: pd.DataFrame) -> torch.Tensor:
        values = torch.from_numpy(packed.images(manifest.positions(some["image_id"]))).float().unsqueeze(1) / 255 - 0.5
        values = F.interpolate(values, size=config.size, mode="bilinear", antialias=True)
        return values.contiguous(memory_format=torch.channels_last)

    images, margin = pixels(rows), config.size // 16
    labels = torch.tensor([manifest.classes.index(label) for label in rows["label"]])
    for _ in range(config.epochs):
        order = torch.randperm(len(rows))
        for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
            take = order[start : start + config.batch_size]
            batch = images[take]
            batch = torch.where(torch.rand(len(take), 1, 1, 1) < 0.5, batch, batch.flip(-1))
            top, left = torch.randint(-margin, margin + 1, (2,)).tolist()
            loss = F.cross_entropy(net(batch.roll((top, left), (2, 3))), labels[take])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        found = torch.cat([net(batch) for batch in pixels(tested).split(64)]).softmax(dim=-1)
    return probability_table(tested["image_id"], found.numpy(), manifest.classes)


def segment(config: SegmentationBenchmark) -> None:
    """Train on each fold, pool what it predicts, and compare."""
    ours, about = _read_predictions(config)
    regions = [region for region in REGIONS if region in set(ours["region"])]
    target = "both" if len(regions) == 2 else regions[0]
    settings: Any = {"target": target, "weights": "none", "image_size": config.size, "augment": NO_AUGMENT}
    task_config = SegmentConfig(data=config.data, **settings)
    theirs, seconds = _over_folds(config, partial(_masks, task_config=task_config), task_config.required_columns)
    theirs["patient_id"] = theirs["image_id"].map(read_manifest(config.data).table.set_index("image_id")["patient_id"])
    _compare(config, ours, theirs, about, seconds)


def _masks(config: SegmentationBenchmark, manifest: Any, task_config: SegmentConfig) -> pd.DataFrame:
    import segmentation_models_pytorch as smp

    task: Any = make_task(task_config, manifest.classes, ImagesConfig(**manifest.info["images"]))
    packed = PackedImages(config.data, manifest)
    rows = pd.concat(
        [manifest.rows_with(split, task_config.required_columns)[0] for split in ("train", "val")], ignore_index=True
    )
    read = task.reader(packed, rows, None)
    torch.manual_seed(config.seed)
    net = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=len(task_config.regions))
    net = net.to(memory_format=torch.channels_last)
    dice, optimizer = smp.losses.DiceLoss("multilabel"), torch.optim.Adam(net.parameters(), lr=config.lr)

    def logits(images: np.ndarray | torch.Tensor) -> torch.Tensor:
        values = torch.as_tensor(images).float().unsqueeze(1) / 255
        values = F.interpolate(values, size=config.size, mode="bilinear", antialias=True)
        found: torch.Tensor = net(values.to(memory_format=torch.channels_last))
        return found

    for _ in range(config.epochs):
        order = torch.randperm(len(rows)).numpy()
        for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
            batch = read(order[start : start + config.batch_size])
            truth = F.interpolate(torch.from_numpy(batch["masks"]).float() / 255, size=config.size, mode="area").round()
            maps = logits(batch["image"])
            loss = dice(maps, truth) + F.binary_cross_entropy_with_logits(maps, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    tested, _ = manifest.rows_with("test", task_config.required_columns)
    last = task.reader(packed, tested, None)
    thresholds = [0.5] * len(task_config.regions)
    found = []
    with torch.no_grad():
        for row in range(len(tested)):
            batch = last(np.array([row]))
            found += task.score_image(logits(batch["image"]).sigmoid().numpy()[0], batch["metadata"][0], thresholds)
    return pd.DataFrame(found)


def caption(config: CaptioningBenchmark) -> None:
    """Train with each seed, and score as ours is scored."""
    optim = OptimConfig(
        epochs=config.epochs, batch_size=64, lr=3e-4, weight_decay=0.01, warmup=0, clip_norm=0, keep="last"
    )
    found = []
    for seed in config.seeds:
        settings: Any = {"arch": "resnet18", "text": "mini", "weights": "none", "image_size": config.size}
        one = DualEncoderConfig(data=config.data, optim=optim, augment=NO_AUGMENT, seed=seed, **settings)
        found.append(_captions(one))
        print_scores(found[-1], Console())
    names = [name for name in found[0].metrics if all(name in scores.metrics for scores in found)]
    means = {name: float(np.mean([scores.metrics[name] for scores in found])) for name in names}
    own = [scores.baselines[BASELINES["hypothesis_own"]] for scores in found]
    means |= {f"own/{name}": float(np.mean([body[name] for body in own])) for name in own[0]}
    write_json(config.out / "naive.json", means)
    for name, value in means.items():
        print(f"mean of {len(found)} seeds, {name}: {value:.3f}")


def _captions(config: DualEncoderConfig) -> Scores:
    manifest = config.resolve_manifest(read_manifest(config.data))
    task: Any = make_task(config, manifest.classes, ImagesConfig(**manifest.info["images"]))
    device_context = DeviceContext(device=torch.device("cpu"), precision="fp32")
    state = task.setup(config.data, manifest)
    train = task.examples(config.data, manifest, "train", state, training=True)
    val, test = (task.examples(config.data, manifest, split, state) for split in ("val", "test"))
    module = task.build(train, state)
    with TemporaryDirectory() as folder:
        checkpoint = TrainingCheckpoint(Path(folder), {"naive": config.seed})
        fit(
            task,
            module,
            train,
            val,
            config=config,
            device_context=device_context,
            checkpoint=checkpoint,
            report=lambda line: None,
        )
    _, state = task.select_on_validation(module, train, state, lambda predictor: {})
    table = task.predictions_table(test, predict(task.test_predictor(module, state), test, device_context), state)
    patients = test.rows.set_index("image_id")["patient_id"]
    return get_kind("captions").score(table.assign(patient_id=table["image_id"].map(patients)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    what: Annotated[
        Annotated[ClassificationBenchmark, tyro.conf.subcommand("classify")]
        | Annotated[SegmentationBenchmark, tyro.conf.subcommand("segment")]
        | Annotated[CaptioningBenchmark, tyro.conf.subcommand("caption")],
        tyro.conf.arg(name=""),
    ]
    """The task, with its flags."""


def main(config: Config) -> None:
    """Run the one that is asked for."""
    if isinstance(config.what, ClassificationBenchmark):
        classify(config.what)
    elif isinstance(config.what, SegmentationBenchmark):
        segment(config.what)
    else:
        caption(config.what)


if __name__ == "__main__":
    run_job(Config, main, __doc__)
