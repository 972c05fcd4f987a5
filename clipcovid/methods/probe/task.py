"""Linear and MLP probes: heads on the embeddings of a frozen encoder, for all strengths of the penalty at once."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clipcovid.config import ImagesConfig
from clipcovid.data.embeddings import Embeddings
from clipcovid.methods.few_shot import FewShotTask, read_all
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.methods.task import Batch, Examples, Predictor, ValidateFn


class ProbeHeads(torch.nn.Module):
    """As many heads as penalties, trained side by side. Features are standardised as on the training split."""

    mean: torch.Tensor
    std: torch.Tensor
    chosen: torch.Tensor

    def __init__(self, heads: int, features: int, classes: int, hidden: int, seed: int) -> None:
        """`hidden`: width of the hidden layer, 0 for linear heads."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        widths = [features, hidden, classes] if hidden else [features, classes]
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for wide, narrow in itertools.pairwise(widths):
            # a convex problem starts at 0
            initial = torch.randn(wide, narrow, generator=generator) / wide**0.5 * bool(hidden)
            self.weights.append(initial.expand(heads, -1, -1).clone())
            self.biases.append(torch.zeros(heads, 1, narrow))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("chosen", torch.tensor(-1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (heads, n, k) of features (n, d)."""
        values = ((features.float() - self.mean) / self.std).expand(len(self.weights[0]), -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.baddbmm(bias, F.gelu(values) if layer else values, weight)
        return values


class ProbeTask(FewShotTask[ProbeConfig]):
    """Heads on embeddings; the validation split chooses the penalty."""

    def __init__(self, config: ProbeConfig, classes: Sequence[str], images: ImagesConfig) -> None:
        super().__init__(config, classes, images)
        self.penalties = torch.tensor(config.penalties).view(-1, 1)

    def build(self, train: Examples, state: Embeddings) -> ProbeHeads:
        """Heads whose features are standardised by the training examples."""
        features = read_all(train)["embedding"]
        module = self._heads(features.shape[1])
        module.mean.copy_(torch.from_numpy(features.mean(axis=0)))
        module.std.copy_(torch.from_numpy(np.maximum(features.std(axis=0), 1e-6)))
        return module

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """Heads as wide as the checkpoint's."""
        return self._heads(len(load_file(folder / "model.safetensors")["mean"]))

    def _heads(self, features: int) -> ProbeHeads:
        hidden = self.config.hidden if self.config.head == "mlp" else 0
        return ProbeHeads(len(self.config.penalties), features, len(self.classes), hidden, self.config.seed)

    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The sum over heads of cross entropy + penalty / 2 · ‖W‖², as in logistic regression with C = 1 / (n · penalty)."""
        logits = module(batch["embedding"])
        labels = batch["label"].expand(len(logits), -1)
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=self.config.label_smoothing
        )
        entropy = (batch["weight"] * losses.view(labels.shape)).mean(dim=1)
        weights = [weight for name, weight in module.named_parameters() if "weights." in name]
        penalties = self.penalties.to(entropy.device)
        decay = sum((penalties / 2 * weight.square().flatten(1).sum(1, keepdim=True)).sum() for weight in weights)
        return {"loss": entropy.sum() + decay, "cross_entropy": entropy.min()}

    def predictor(self, module: Any) -> Predictor:
        """The chosen head's probabilities; before one is chosen, the mean of all heads'."""
        chosen = int(module.chosen)

        def predict(batch: Batch) -> torch.Tensor:
            probabilities = module(batch["embedding"]).softmax(dim=-1)
            return probabilities.mean(dim=0) if chosen < 0 else probabilities[chosen]

        return predict

    def select_on_validation(
        self, module: Any, train: Examples, state: Embeddings, validate: ValidateFn
    ) -> tuple[dict[str, Any], Embeddings]:
        """Choose the penalty by the validation split; of equal ones the strongest."""
        penalties, scores = self.config.penalties, []
        for head in range(len(penalties)):
            module.chosen.fill_(head)
            scores.append(validate(self.predictor(module))[self.monitor[0]])
        best = max(range(len(scores)), key=lambda head: (scores[head], penalties[head]))
        module.chosen.fill_(best)
        return {"penalty": penalties[best]}, state
