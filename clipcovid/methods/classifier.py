"""Classifiers with a softmax: loss and predictions of all of them, and the image classifiers' models."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from clipcovid.methods.task import Batch, Predictor, Task
from clipcovid.models.clip import build_untrained_clip, class_embeddings, load_clip, write_open_clip_config
from clipcovid.models.cnn import TimmClassifier, build_cnn
from clipcovid.models.hybrid import Hybrid as HybridNetwork
from clipcovid.prompts import build_prompts


class Classify(Task):
    """Cross entropy of the module's logits (n, k) for the batch's labels."""

    column = "image"
    """What of a batch the module takes."""

    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Weighted by class where asked; a mean over the batch of weights that average to 1 over the training split."""
        logits = module(batch[self.column]).float()
        each = F.cross_entropy(logits, batch["label"], reduction="none", label_smoothing=self.config.label_smoothing)
        right = (logits.detach().argmax(dim=-1) == batch["label"]).float().mean()
        return {"loss": (batch["weight"] * each).mean(), "accuracy": right}

    def predictor(self, module: torch.nn.Module) -> Predictor:
        """The softmax of the logits."""
        return lambda batch: module(batch[self.column]).float().softmax(dim=-1)


def _network(task: Classify, weights: str, outputs: int, image_size: int = 0) -> TimmClassifier:
    return build_cnn(
        task.config.arch,
        weights,
        outputs=outputs,
        channels=3 if task.images.mode == "rgb" else 1,
        image_size=image_size,
        packed_size=task.images.size,
        seed=task.config.seed,
    )


class Cnn(Classify):
    """A timm classifier."""

    def build(self) -> torch.nn.Module:
        """With a fresh head for the classes."""
        return _network(self, self.config.weights, len(self.classes), self.config.image_size)

    def predictor(self, module: torch.nn.Module) -> Predictor:
        """The softmax of the logits, or where asked the mean with that of the mirror image."""
        plain: Any = super().predictor(module)
        if not self.config.tta:
            return plain
        return lambda batch: (plain(batch) + plain({"image": batch["image"].flip(dims=(2,))})) / 2

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """The same architecture at random."""
        return _network(self, "none", len(self.classes), self.config.image_size)


class Hybrid(Classify):
    """A CNN's features joined with a frozen CLIP's."""

    def build(self) -> torch.nn.Module:
        """With the CLIP that the config names, and the embeddings of the classes' prompts."""
        self.clip = load_clip(self.config.clip, seed=self.config.seed)
        texts = torch.from_numpy(class_embeddings(self.clip, build_prompts(self.config.prompts, self.classes)))
        return HybridNetwork(self.clip, _network(self, self.config.weights, texts.shape[1]), texts, self.config.join)

    def save(self, module: torch.nn.Module, folder: Path) -> None:
        """The weights of both, and the frozen CLIP's architecture."""
        super().save(module, folder)
        write_open_clip_config(folder, self.clip)

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """The same architectures at random."""
        clip = build_untrained_clip(folder)
        texts = torch.zeros(len(self.classes), clip.model_cfg["embed_dim"])
        return HybridNetwork(clip, _network(self, "none", texts.shape[1]), texts, self.config.join)
