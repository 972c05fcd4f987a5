"""Tip-Adapter: zero-shot CLIP and a memory of training images, by the nearness of their embeddings."""

import itertools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clipcovid.data.embeddings import Embeddings
from clipcovid.methods.classification import ClassificationTask
from clipcovid.methods.few_shot import FewShotTask, read_all
from clipcovid.methods.task import Batch, Examples, Predictor, ValidateFn
from clipcovid.methods.tip_adapter.config import TipAdapterConfig
from clipcovid.models.clip import load_clip
from clipcovid.models.clip_model import class_embeddings
from clipcovid.prompts import build_prompts

CACHE_WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SHARPNESSES = (1.0, 2.0, 5.5, 10.0, 20.0, 50.0)
INITIAL_WEIGHT_AND_SHARPNESS = 1.0, 5.5  # the paper's


class CacheModel(torch.nn.Module):
    """Logits (n, k) of image embeddings (n, d): CLIP's own, plus `weight` · Σ exp(−`sharpness` · (1 − cosine)) over the
    memory's images of each class.

    Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", 2022; the keys are learned
    (Tip-Adapter-F), and `plain` are those before. Each class's sum is divided by its number of images and multiplied by
    their mean, so that classes of which the memory has more weigh no more.
    """

    plain: torch.Tensor
    values: torch.Tensor
    texts: torch.Tensor
    logit_scale: torch.Tensor
    weight: torch.Tensor
    sharpness: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, texts: torch.Tensor, logit_scale: float) -> None:
        """`keys` (m, d) and `texts` (k, d): rows of L2 norm 1. `values` (m, k): one-hot."""
        super().__init__()
        self.keys = torch.nn.Parameter(keys.clone())
        self.register_buffer("plain", keys)
        self.register_buffer("values", values)
        self.register_buffer("texts", texts)
        self.register_buffer("logit_scale", torch.tensor(logit_scale))
        for name, value in zip(("weight", "sharpness"), INITIAL_WEIGHT_AND_SHARPNESS, strict=True):
            self.register_buffer(name, torch.tensor([value, value]))

    def forward(self, features: torch.Tensor, initial_keys: bool = False) -> torch.Tensor:
        """Logits (n, k); `initial_keys`: with the keys from before training, which have a weight and sharpness too."""
        images, row = F.normalize(features.float(), dim=-1), int(initial_keys)
        with torch.autocast(images.device.type, enabled=False):  # see cosine_logits
            near = torch.exp(-self.sharpness[row] * (1 - images @ (self.plain if initial_keys else self.keys).T))
            return self.logit_scale * images @ self.texts.T + self.weight[row] * near @ self.values


class TipAdapterTask(ClassificationTask[TipAdapterConfig, Embeddings], FewShotTask[TipAdapterConfig]):
    """Cross entropy of CLIP with a memory, whose keys are learned."""

    column = "embedding"

    def build(self, train: Examples, state: Embeddings) -> CacheModel:
        """A memory of the training examples beside the CLIP that the config names."""
        memory = read_all(train)
        clip = load_clip(self.config.clip, seed=self.config.seed)
        texts = torch.from_numpy(class_embeddings(clip, build_prompts(self.config.prompts, self.classes)))
        keys = F.normalize(torch.from_numpy(memory["embedding"]), dim=-1)
        values = F.one_hot(torch.from_numpy(memory["label"]), len(self.classes)).float()
        counts = values.sum(dim=0)
        values = values * (counts[counts > 0].mean() / counts.clamp(min=1))
        return CacheModel(keys, values, texts, clip.logit_scale)

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """A memory as large as the checkpoint's."""
        saved = load_file(folder / "model.safetensors")
        keys, values, texts = (torch.zeros_like(saved[name]) for name in ("keys", "values", "texts"))
        return CacheModel(keys, values, texts, 0.0)

    def predictor(self, module: Any, initial_keys: bool = False) -> Predictor:
        """The softmax of the logits; `initial_keys`: with the keys as they were before training."""

        def predict(batch: Batch) -> torch.Tensor:
            logits: torch.Tensor = module(batch["embedding"], initial_keys=initial_keys)
            return logits.softmax(dim=-1)

        return predict

    def select_on_validation(
        self, module: Any, train: Examples, state: Embeddings, validate: ValidateFn
    ) -> tuple[dict[str, Any], Embeddings]:
        """Choose weight and sharpness, before and after training, by the validation split; of equal ones the least."""
        choices = {}
        for plain, name in ((True, "training-free"), (False, "trained")):
            predictor, scores = self.predictor(module, plain), {}
            for pair in itertools.product(CACHE_WEIGHTS, SHARPNESSES):
                module.weight[int(plain)], module.sharpness[int(plain)] = pair
                scores[pair] = validate(predictor)[self.monitor[0]]
            best = max(scores, key=lambda pair: (scores[pair], -pair[0], -pair[1]))
            module.weight[int(plain)], module.sharpness[int(plain)] = best
            choices[name] = {"weight": best[0], "sharpness": best[1]}
        return choices, state

    def variants(self, module: Any, state: Embeddings) -> dict[str, Predictor]:
        """Trained, and as it was before training."""
        return {"": self.predictor(module), "training-free": self.predictor(module, initial_keys=True)}
