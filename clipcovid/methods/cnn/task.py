"""A timm classifier: the task."""

from pathlib import Path
from typing import Any

import torch

from clipcovid.methods.classification import Classify, build_network
from clipcovid.methods.task import Predictor


class Cnn(Classify):
    """A timm classifier."""

    def build(self) -> torch.nn.Module:
        """With a fresh head for the classes."""
        return build_network(self, self.config.weights, len(self.classes), self.config.image_size)

    def predictor(self, module: torch.nn.Module) -> Predictor:
        """The softmax of the logits, or where asked the mean with that of the mirror image."""
        plain: Any = super().predictor(module)
        if not self.config.tta:
            return plain
        return lambda batch: (plain(batch) + plain({"image": batch["image"].flip(dims=(2,))})) / 2

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """The same architecture at random."""
        return build_network(self, "none", len(self.classes), self.config.image_size)
