"""Tip-Adapter-F: the config."""

from dataclasses import dataclass
from typing import ClassVar

import tyro

from clipcovid.config import OptimConfig
from clipcovid.methods.configs import FewShotConfig
from clipcovid.methods.method import Method
from clipcovid.prompts import PromptsConfig


@dataclass(frozen=True, kw_only=True)
class TipAdapterConfig(FewShotConfig):
    """Zero-shot CLIP with a memory of the training images (Tip-Adapter-F, Zhang et al. 2022)."""

    task: ClassVar[str] = "tip_adapter"
    prompts: tyro.conf.OmitArgPrefixes[PromptsConfig] = PromptsConfig()
    """The texts that stand for the classes."""
    optim: OptimConfig = OptimConfig(epochs=20, batch_size=256, lr=1e-3, weight_decay=0)
    """How the memory is trained; what it does untrained is shown beside."""


METHOD = Method(TipAdapterConfig, task="TipAdapterTask", uses_embeddings=True)
