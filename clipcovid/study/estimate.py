"""What a plan will take: arithmetic of its models, images and epochs, corrected by what finished steps really took.

A forward pass costs the model's published number of operations, a training step three times as much, and a core computes
`CORE_GFLOPS`. Once steps of a study in the same `out` are done, estimates are multiplied by what those took over what was
expected of them; before that they may well be wrong by a factor of three.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from clipcovid.config import resolve_schedule
from clipcovid.data.manifest import MASK_COLUMNS, read_manifest
from clipcovid.data.packing import count_masks
from clipcovid.data.prepare import PrepareConfig
from clipcovid.data.sources import list_source
from clipcovid.io.files import read_json_object
from clipcovid.methods.registry import METHODS
from clipcovid.study.outcomes import PLAN_FILE, STEPS_FILE, Outcomes
from clipcovid.study.plan import CROSSVAL, PREPARED, Step

MODELS = {  # billions of operations of a forward pass at 224 px (of a CLIP: of its image tower), and millions of weights
    "tiny": (0.25, 1),
    "ViT-B-32": (4.4, 151),
    "ViT-B-16": (17.6, 150),
    "ViT-L-14": (81, 428),
    "RN50": (6, 102),
    "resnet18": (1.8, 12),
    "resnet34": (3.7, 22),
    "resnet50": (4.1, 26),
    "densenet121": (2.9, 8),
    "vgg16": (15.5, 138),
    "convnext_tiny": (4.5, 29),
    "efficientnet_b0": (0.4, 5),
    "vit_base_patch16_224": (17.6, 86),
    "unet": (4.2, 14),
}
UNKNOWN_MODEL = (5.0, 50)
CORE_GFLOPS = 25.0  # billions of operations a second, of a server's core
GPU_GFLOPS = 5000.0
START_S, RAY_START_S = 8.0, 10.0  # seconds until a job begins, and after it is done; more where it starts Ray
SECONDS_PER_IMAGE = {"prepare": 0.02, "apply-masks": 0.005, "audit": 0.2}  # seconds of a core an image
FIXED_S = {"compare": 20.0, "report": 30.0, "zeroshot": 3.0, "ensemble": 5.0}
PROMPTS_PER_S = 500.0  # candidates of `tune-prompts`
EMBEDDING_TRAINING_S = 5.0  # seconds of a training on embeddings
PRUNED_SHARE = 0.5  # the share of a sweep's epochs that are left where bad trials are stopped early
MIN_WORK_S = 3.0  # expected seconds below which a step's time is all start, and says nothing of the machine
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}  # of the splits that `prepare` makes


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """The images of a data set, prepared or to be."""

    splits: dict[str, float]
    masks: int
    size: int
    channels: int

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.splits.values())


@dataclass
class Estimates:
    """The seconds and bytes that steps will take on so many cores and GPUs."""

    steps: Sequence[Step]
    out: Path
    """Where finished steps of studies are looked for."""
    cores: float
    gpus: int = 0
    _counted: dict[Path, ImageCounts] = field(default_factory=dict)

    def seconds(self, step: Step) -> float:
        """What the step will take, corrected by what was measured."""
        ray = step.computes and step.compute.workers != 0
        return START_S + ray * RAY_START_S + self.work(step) * self.correction(step.command)

    def seconds_of(self, steps: Sequence[Step]) -> float | None:
        """What steps will take one after the other; None while data that they read are not prepared."""
        return sum(map(self.seconds, steps)) if self.are_prepared(steps) else None

    def are_prepared(self, steps: Sequence[Step]) -> bool:
        """Whether all data that steps read, or make, are prepared, so that images need not be looked for."""
        folders = [step.folder if step.prepares else step.training_config.data for step in steps]
        folders += [folder for step in steps for folder in getattr(step.config, "external", ())]
        return all((folder / PREPARED).exists() for folder in folders if folder)

    def correction(self, command: str) -> float:
        """The median of what finished steps of a command, else of all, took over what was expected; 1 where there is none."""
        ratios = self.measured.get(command) or [ratio for ratios in self.measured.values() for ratio in ratios]
        return statistics.median(ratios) if ratios else 1.0

    @cached_property
    def measured(self) -> dict[str, list[float]]:
        """Command → how much longer its finished steps took than was expected of them."""
        ratios: dict[str, list[float]] = {}
        for path in sorted(self.out.glob(f"*/{STEPS_FILE}")):
            commands = {
                step["name"]: step["command"][1]
                for step in read_json_object(path.with_name(PLAN_FILE)).get("steps", [])
            }
            for name, outcome in Outcomes.read(path.parent).steps.items():
                if outcome.state == "done" and outcome.work >= MIN_WORK_S and name in commands:
                    ratios.setdefault(commands[name], []).append(max(1.0, outcome.seconds - START_S) / outcome.work)
        return ratios

    def work(self, step: Step) -> float:
        """The seconds of arithmetic that are expected of a step, before any correction."""
        config = step.config
        if step.command in FIXED_S:
            return FIXED_S[step.command] + self._external_s(step)
        if step.command in SECONDS_PER_IMAGE:
            return SECONDS_PER_IMAGE[step.command] * self.images(step).total / self.cores
        if step.command == "tune-prompts":
            return float(config.candidates / PROMPTS_PER_S)
        if step.command == "embed":
            return self._compute_s(self.images(step).total * _model(step)[0])
        trainings = {CROSSVAL: "folds", "sweep": "trials"}.get(step.command, "")
        return self._training_s(step) * getattr(config, trainings, 1) * (PRUNED_SHARE if step.command == "sweep" else 1)

    def _external_s(self, step: Step) -> float:
        """Of a comparison: that all methods predict the external sets."""
        images = sum(self._images(folder).total for folder in getattr(step.config, "external", ()))
        return self._compute_s(
            images * sum(_model(other)[0] for other in self.steps if other.name in step.input_folders)
        )

    def _training_s(self, step: Step) -> float:
        """Of one training: forward and backward passes of its epochs, validation, and the test."""
        images = self.images(step)
        if METHODS[step.training_config.task].uses_embeddings:
            return EMBEDDING_TRAINING_S
        config = resolve_schedule(step.training_config, max(1, round(images.splits["train"])))
        passes = config.optim.epochs * (3 * images.splits["train"] + images.splits["val"]) + images.splits["test"]
        size = 224 if config.task == "finetune" else getattr(config, "image_size", 0) or images.size
        return self._compute_s(passes * _model(step)[0] * (size / 224) ** 2)

    def _compute_s(self, gflop: float) -> float:
        return gflop / (self.gpus * GPU_GFLOPS or self.cores * CORE_GFLOPS)

    def disk(self, step: Step) -> float:
        """Bytes that a step leaves on the disk."""
        if step.prepares:
            images = self.images(step)
            return (images.total * images.channels + images.masks) * images.size**2
        if step.command == "embed":
            return self.images(step).total * 512 * 2  # float16
        weights = _model(step)[1] * 4e6 if step.is_method and hasattr(step.training_config, "optim") else 0.0
        copies = 2 if getattr(step.training_config, "hf", False) else 1
        return 2e6 + weights * copies * getattr(step.config, "folds", 1)

    def images(self, step: Step) -> ImageCounts:
        """The images that a step reads; of a folder that is not prepared yet, those that preparing it will find."""
        return self._images(step.folder if step.prepares else step.training_config.data)

    def _images(self, folder: Path) -> ImageCounts:
        if folder not in self._counted:
            prepares = [step.config for step in self.steps if step.prepares and step.folder == folder]
            if (folder / PREPARED).exists() or not prepares:
                self._counted[folder] = _prepared_images(folder)
            elif isinstance(prepares[0], PrepareConfig):
                self._counted[folder] = _listed_images(prepares[0])
            else:
                self._counted[folder] = self._images(prepares[0].data)
        return self._counted[folder]


def _prepared_images(folder: Path) -> ImageCounts:
    manifest = read_manifest(folder)
    images = manifest.info["images"]
    return ImageCounts(
        splits={split: float((manifest.table["split"] == split).sum()) for split in SHARES},
        masks=count_masks(manifest.table),
        size=images["size"],
        channels=3 if images["mode"] == "rgb" else 1,
    )


def _listed_images(config: PrepareConfig) -> ImageCounts:
    """The images that a source lists, before any is opened; phantoms are not drawn for that."""
    if config.source == "phantom":
        count, masks, splits = config.phantom.images, config.phantom.images * len(MASK_COLUMNS), {}
    else:
        listing = list_source(
            config.source, config.root, config.columns, config.phantom, config.out, config.image_folder, config.version
        )
        table = listing.table
        count, masks = len(table), count_masks(table)
        splits = {split: float((table["split"] == split).sum()) for split in SHARES}
    known = sum(splits.values()) == count
    return ImageCounts(
        splits=splits if known else {split: share * count for split, share in SHARES.items()},
        masks=masks,
        size=config.images.size,
        channels=3 if config.images.mode == "rgb" else 1,
    )


def _model(step: Step) -> tuple[float, float]:
    """The entry of `MODELS` of what a step computes with, by the architecture that its config names."""
    config: Any = step.training_config
    clip = config.clip.model if hasattr(config, "clip") else ""
    names = [getattr(config, "arch", ""), clip if getattr(config, "towers", "clip") == "clip" else ""]
    found = [MODELS.get(name, UNKNOWN_MODEL) for name in names if name] or [UNKNOWN_MODEL]
    return sum(cost for cost, _ in found), sum(weights for _, weights in found)


def unknown_models(steps: Sequence[Step]) -> list[str]:
    """The architectures of a plan that are not among `MODELS`, of which an average is taken."""
    named = [getattr(step.training_config, "arch", "") for step in steps if step.computes]
    named += [
        step.training_config.clip.model for step in steps if step.computes and hasattr(step.training_config, "clip")
    ]
    return sorted({name for name in named if name and name not in MODELS})
