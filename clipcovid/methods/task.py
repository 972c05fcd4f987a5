"""What training and prediction ask of a task: its examples, its model, its loss, and its predictions.

A task holds its config and nothing that it learned: what its setup makes of the training split is a value, its state, which
is passed to what needs it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from clipcovid.config import ImagesConfig, TrainConfig
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest
from clipcovid.data.packed import PackedImages
from clipcovid.evaluate import metrics
from clipcovid.evaluate.probabilities import probability_table
from clipcovid.io.files import atomic_write, write_json
from clipcovid.methods.checkpoints import read_checkpoint
from clipcovid.methods.registry import METHODS
from clipcovid.models.state_dicts import load_weights

Batch = dict[str, Any]
"""`image` uint8 (n, h, w) or (n, h, w, 3), or `embedding` (n, d); `label` int64 (n,), -1 unknown; `weight` float32 (n,);
`row`, positions among the examples. Tensors on the model's device, texts and rows as lists."""
Output = torch.Tensor | np.ndarray | Future[np.ndarray]
Predictor = Callable[[Batch], Output]
"""From a batch to probabilities (n, k), or to what else the task scores, a row an image; in a future, if it still is made."""


ValidateFn = Callable[[Predictor], dict[str, float]]
"""From a predictor to its validation scores."""
ConfigT = TypeVar("ConfigT", bound=TrainConfig)
StateT = TypeVar("StateT")


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The images of a split that a task can use, in the manifest's order, and a reader of batches of them."""

    rows: pd.DataFrame
    """Their manifest rows."""
    read: Callable[[np.ndarray], Batch]
    """Positions (n,) in `rows` → a batch of NumPy arrays and lists."""
    notes: dict[str, int] = field(default_factory=dict)
    """Remarks for the report, each with the number of images that it is true of."""

    def __len__(self) -> int:
        return len(self.rows)


class Task(ABC, Generic[ConfigT, StateT]):
    """A kind of learning. Built anew in every process from a config, the class names and how the images were packed."""

    monitor: ClassVar[tuple[str, str]] = ("macro_f1", "max")
    """The validation score that says which epoch is best, and which way is better."""
    validation_metrics: ClassVar[dict[str, str]] = {
        "macro_f1": "max",
        "accuracy": "max",
        "macro_auroc": "max",
        "loss": "min",
    }
    """The validation scores that every epoch has, and which way each is better."""

    validate_every: int = 1
    """Epochs from one validation to the next."""

    def __init__(self, config: ConfigT, classes: Sequence[str], images: ImagesConfig) -> None:
        self.config, self.classes, self.images = config, tuple(classes), images

    def setup(self, data: Path, manifest: Manifest, embeddings: Embeddings | None = None) -> StateT:
        """The state before training: what reading examples takes, made from the training split; None for most tasks.

        `embeddings`: the images' embeddings, for a task that reads them.
        """
        return cast(StateT, None)

    @abstractmethod
    def build(self, train: Examples, state: StateT) -> torch.nn.Module:
        """The module to train, on the CPU, its weights loaded as the config says or drawn from its seed."""

    @abstractmethod
    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """The module that the checkpoint in `folder` fits into; loads no other weights."""

    @abstractmethod
    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """`loss`, a mean over the batch, and further scalars to show. Calls `module(…)` itself, for DDP's sake."""

    @abstractmethod
    def predictor(self, module: torch.nn.Module) -> Predictor:
        """Predicts with the module as it is now; whatever is the same for all batches is computed here, once."""

    def examples(
        self, data: Path, manifest: Manifest, split: str, state: StateT, *, training: bool = False
    ) -> Examples:
        """The split's eligible images, decoded and packed before. `training`: to learn from, not to predict."""
        rows, notes = manifest.rows_with(split, self.config.train_columns if training else self.config.required_columns)
        read = self.reader(PackedImages(data, manifest), rows, state, training=training)
        return Examples(rows=rows, notes=notes, read=read)

    def reader(
        self, packed: PackedImages, rows: pd.DataFrame, state: StateT, *, training: bool = False
    ) -> Callable[[np.ndarray], Batch]:
        """A reader of batches of these rows of the manifest, by their positions among them."""
        positions = packed.manifest.positions(rows["image_id"])
        targets = target_reader(rows, self.classes, self.class_weighting if training else "none")
        return lambda indices: {"image": packed.images(positions[indices])} | targets(indices)

    @property
    def class_weighting(self) -> str:
        """How classes weigh in the loss."""
        return str(getattr(self.config, "class_weights", "none"))

    def validation_scores(self, examples: Examples, outputs: np.ndarray) -> dict[str, float]:
        """Validation scores of predictions (n, k); the same code as the test's."""
        labels = examples.rows["label"].tolist()
        scores = metrics.classification_metrics(labels, outputs.astype(np.float64), list(self.classes))
        targets = [self.classes.index(label) for label in labels]
        likelihood = np.clip(outputs[np.arange(len(targets)), targets], 1e-12, 1)
        monitored = {name: scores[name] for name in ("macro_f1", "accuracy", "macro_auroc") if name in scores}
        return monitored | {"loss": float(-np.log(likelihood).mean())}

    def predictions_table(self, examples: Examples, outputs: np.ndarray, state: StateT) -> pd.DataFrame:
        """The predictions table's columns of predictions (n, k)."""
        return probability_table(examples.rows["image_id"], outputs, self.classes)

    def select_on_validation(
        self, module: torch.nn.Module, train: Examples, state: StateT, validate: ValidateFn
    ) -> tuple[dict[str, Any], StateT]:
        """Last choices on the validation split, once trained, and the state to predict with.

        The module may be changed; what was chosen goes into the checkpoint's `config.json`.
        """
        return {}, state

    def test_predictor(self, module: torch.nn.Module, state: StateT) -> Predictor:
        """The predictor, once trained, whose outputs `predictions_table` reads."""
        return self.predictor(module)

    def variants(self, module: torch.nn.Module, state: StateT) -> dict[str, Predictor]:
        """The final predictors by name; "" is the method itself, the others are baselines shown beside it."""
        return {"": self.test_predictor(module, state)}

    def save(self, module: torch.nn.Module, state: StateT, folder: Path) -> None:
        """Write the checkpoint's weights, and as much of the state as predictions need."""
        save_weights(module, folder)

    def load(self, folder: Path) -> tuple[torch.nn.Module, StateT]:
        """The module and the state as `save` left them."""
        return self.load_weights(self.build_untrained(folder), folder), cast(StateT, None)

    def load_weights(self, module: torch.nn.Module, folder: Path) -> torch.nn.Module:
        """The module with the weights of the checkpoint in `folder`, in evaluation mode."""
        load_weights(module, folder / "model.safetensors", f"the {self.config.task} of its config", "the checkpoint")
        return module.eval()


def target_reader(rows: pd.DataFrame, classes: Sequence[str], class_weighting: str) -> Callable[[np.ndarray], Batch]:
    """A reader of `label`, `weight` and `row`. Weights average to 1: their loss is a plain mean on any number of workers."""
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers.get(label, -1) for label in rows["label"]], np.int64)
    weights = np.ones(len(rows), np.float32)
    if class_weighting == "balanced":
        counts = np.bincount(labels[labels >= 0], minlength=len(classes))
        weights = (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[labels].astype(np.float32)
    return lambda indices: {
        "label": labels[indices],
        "weight": weights[indices],
        "row": [int(index) for index in indices],
    }


def save_weights(module: torch.nn.Module, folder: Path) -> None:
    """Write `model.safetensors`: every parameter and buffer, contiguous, on the CPU."""
    state = {
        key: value.detach().clone(memory_format=torch.contiguous_format).cpu()
        for key, value in module.state_dict().items()
    }
    with atomic_write(folder / "model.safetensors") as partial:
        save_file(state, partial)


def make_task(config: TrainConfig, classes: Sequence[str], images: ImagesConfig) -> Task[Any, Any]:
    """The task of a config, by its type."""
    task: Task[Any, Any] = METHODS[config.task].load()(config, classes, images)
    return task


def save_checkpoint(
    task: Task[Any, StateT],
    module: torch.nn.Module,
    state: StateT,
    folder: Path,
    *,
    choices: dict[str, Any],
    encoder: dict[str, Any] | None = None,
) -> None:
    """Write the weights, and `config.json` with all that is needed to load and to judge them.

    `choices`: those of `Task.select_on_validation`. `encoder`: the identity of the encoder whose embeddings the task reads.
    """
    task.save(module, state, folder)
    metadata = {"task": task.config.task, "classes": list(task.classes), "images": asdict(task.images)}
    metadata |= {"chosen": choices} | ({"encoder": encoder} if encoder else {})
    write_json(folder / "config.json", metadata | {"config": asdict(task.config)})


def load_checkpoint(run: Path) -> tuple[Task[Any, Any], torch.nn.Module, Any]:
    """The task, module and state of a run folder, or of its `checkpoint/`; a folder without one is a `UserError`."""
    config, metadata, folder = read_checkpoint(run)
    task = make_task(config, metadata["classes"], ImagesConfig(**metadata["images"]))
    return task, *task.load(folder)
