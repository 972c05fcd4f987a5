"""A CNN joined with a frozen CLIP: the task."""

from pathlib import Path

import torch

from clipcovid.methods.classification import Classify, build_network
from clipcovid.models.clip import load_clip, write_open_clip_config
from clipcovid.models.clip_model import build_untrained_clip, class_embeddings
from clipcovid.models.hybrid import Hybrid as HybridNetwork
from clipcovid.prompts import build_prompts


class Hybrid(Classify):
    """A CNN's features joined with a frozen CLIP's."""

    def build(self) -> torch.nn.Module:
        """With the CLIP that the config names, and the embeddings of the classes' prompts."""
        self.clip = load_clip(self.config.clip, seed=self.config.seed)
        texts = torch.from_numpy(class_embeddings(self.clip, build_prompts(self.config.prompts, self.classes)))
        return HybridNetwork(
            self.clip, build_network(self, self.config.weights, texts.shape[1]), texts, self.config.join
        )

    def save(self, module: torch.nn.Module, folder: Path) -> None:
        """The weights of both, and the frozen CLIP's architecture."""
        super().save(module, folder)
        write_open_clip_config(folder, self.clip)

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """The same architectures at random."""
        clip = build_untrained_clip(folder)
        texts = torch.zeros(len(self.classes), clip.model_cfg["embed_dim"])
        return HybridNetwork(clip, build_network(self, "none", texts.shape[1]), texts, self.config.join)
