"""A CNN joined with a frozen CLIP: the task."""

from pathlib import Path
from typing import Any

import torch

from clipcovid.methods.classification import ClassificationTask, build_network
from clipcovid.methods.hybrid.config import HybridConfig
from clipcovid.methods.task import Examples
from clipcovid.models.clip import load_clip, write_open_clip_config
from clipcovid.models.clip_model import Clip, build_untrained_clip, class_embeddings
from clipcovid.models.hybrid import CnnClipHybrid as HybridNetwork
from clipcovid.prompts import build_prompts


class HybridTask(ClassificationTask[HybridConfig, None]):
    """A CNN's features joined with a frozen CLIP's."""

    def build(self, train: Examples, state: None) -> torch.nn.Module:
        """With the CLIP that the config names, and the embeddings of the classes' prompts."""
        clip = load_clip(self.config.clip, seed=self.config.seed)
        texts = torch.from_numpy(class_embeddings(clip, build_prompts(self.config.prompts, self.classes)))
        return self._network(clip, texts, self.config.weights)

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """The same architectures at random."""
        clip = build_untrained_clip(folder)
        return self._network(clip, torch.zeros(len(self.classes), clip.model_cfg["embed_dim"]), "none")

    def _network(self, clip: Clip, texts: torch.Tensor, weights: str) -> torch.nn.Module:
        cnn = build_network(self, self.config.arch, weights, outputs=texts.shape[1])
        return HybridNetwork(clip, cnn, texts, self.config.join)

    def save(self, module: Any, state: None, folder: Path) -> None:
        """The weights of both, and the frozen CLIP's architecture."""
        super().save(module, state, folder)
        write_open_clip_config(folder, module.clip)
