"""A timm classifier: the task."""

from pathlib import Path
from typing import Any

import torch

from clipcovid.methods.classification import ClassificationTask, build_network
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.task import Examples, Predictor


class CnnTask(ClassificationTask[CnnConfig, None]):
    """A timm classifier."""

    def build(self, train: Examples, state: None) -> torch.nn.Module:
        """The network with a fresh head for the classes."""
        return self._network(self.config.weights)

    def _network(self, weights: str) -> torch.nn.Module:
        config = self.config
        return build_network(self, config.arch, weights, outputs=len(self.classes), image_size=config.image_size)

    def predictor(self, module: torch.nn.Module) -> Predictor:
        """The softmax of the logits, or where asked the mean with that of the mirror image."""
        plain: Any = super().predictor(module)
        if not self.config.tta:
            return plain
        return lambda batch: (plain(batch) + plain({"image": batch["image"].flip(dims=(2,))})) / 2

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """The same architecture at random."""
        return self._network("none")
