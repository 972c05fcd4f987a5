"""A CNN joined with a frozen CLIP: the config."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import tyro

from clipcovid.config import ClipConfig
from clipcovid.methods.configs import ClassifierConfig, ClipTrainConfig
from clipcovid.methods.method import Method
from clipcovid.models.availability import check_clip_available, check_timm_available
from clipcovid.prompts import PromptsConfig


@dataclass(frozen=True, kw_only=True)
class HybridConfig(ClassifierConfig, ClipTrainConfig):
    """A CNN whose features are joined with those of a frozen CLIP."""

    task: ClassVar[str] = "hybrid"
    clip: ClipConfig = ClipConfig()
    """The frozen CLIP."""
    prompts: tyro.conf.OmitArgPrefixes[PromptsConfig] = PromptsConfig()
    """The texts that stand for the classes."""
    join: Literal["add", "concat"] = "add"
    """add: the sum of both embeddings, against the embeddings of the classes' texts. concat: a linear layer on both."""
    arch: str = "resnet18"
    """The CNN: any timm architecture."""
    weights: str = "pretrained"
    """The CNN's: pretrained, a weights file, or none."""

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"hybrid-{self.join}"

    def check_initial_weights(self) -> None:
        """Raise `UserError` if the initial weights are missing or unreadable, without loading them."""
        check_clip_available(self.clip)
        check_timm_available(self.arch, self.weights)


METHOD = Method(HybridConfig, task="HybridTask")
