"""Classifiers with a softmax: loss and predictions of all of them."""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from clipcovid.methods.configs import ClassifierConfig
from clipcovid.methods.task import Batch, Predictor, StateT, Task
from clipcovid.models.cnn import TimmClassifier, build_cnn

ClassifierConfigT = TypeVar("ClassifierConfigT", bound=ClassifierConfig)


class ClassificationTask(Task[ClassifierConfigT, StateT]):
    """Cross entropy of the module's logits (n, k) for the batch's labels."""

    column = "image"
    """The batch's entry that the module reads."""

    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Weighted by class where asked; a mean over the batch of weights that average to 1 over the training split."""
        logits = module(batch[self.column]).float()
        losses = F.cross_entropy(logits, batch["label"], reduction="none", label_smoothing=self.config.label_smoothing)
        accuracy = (logits.detach().argmax(dim=-1) == batch["label"]).float().mean()
        return {"loss": (batch["weight"] * losses).mean(), "accuracy": accuracy}

    def predictor(self, module: torch.nn.Module) -> Predictor:
        """The softmax of the logits."""
        return lambda batch: module(batch[self.column]).float().softmax(dim=-1)


def build_network(
    task: Task[Any, Any], arch: str, weights: str, *, outputs: int, image_size: int = 0
) -> TimmClassifier:
    """The timm network of a task that reads packed images; the arguments are those of `build_cnn`."""
    return build_cnn(
        arch,
        weights,
        outputs=outputs,
        channels=3 if task.images.mode == "rgb" else 1,
        image_size=image_size,
        packed_size=task.images.size,
        seed=task.config.seed,
    )
