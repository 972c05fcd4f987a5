"""CLIP fine-tuned on captions: the config."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import tyro

from clipcovid.config import ClipConfig, OptimConfig, UserError
from clipcovid.data.captions import TEMPLATE, with_captions
from clipcovid.data.manifest import Manifest
from clipcovid.methods.configs import ContrastiveConfig
from clipcovid.methods.method import Method
from clipcovid.prompts import PromptsConfig


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022), scaled by 1/√r (rsLoRA, Kalajdzievski 2023)."""

    r: int = 4
    """Rank of the update of each weight matrix."""
    alpha: float = 8.0
    """The update is multiplied by alpha / √r."""
    dropout: float = 0.0
    """Dropout before the adapters of linear layers."""
    targets: tuple[str, ...] = ("attn", "c_fc", "c_proj")
    """Modules that get adapters, by the last part of their names; attn is query, key, value and output."""

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha <= 0 or not self.targets or not 0 <= self.dropout < 1:
            raise UserError("--lora: r >= 1, alpha > 0, 0 <= dropout < 1 and at least one target are needed.")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ContrastiveConfig):
    """CLIP trained further on pairs of images and captions."""

    task: ClassVar[str] = "finetune"
    method: Literal["full", "lora", "vision", "text"] = "full"
    """What is trained: all of it, low-rank adapters in both towers, or one tower alone."""
    clip: ClipConfig = ClipConfig()
    """The CLIP to start from; its precision is not used in training (see --optim.precision)."""
    lora: LoraConfig = LoraConfig()
    """The adapters, with --method lora."""
    captions: str = "labels"
    """labels: the prompts of an image's class. dataset: the data set's captions. template: its fields in the caption
    template. both: template and data set. Or a table with image_id, caption."""
    caption_template: str = TEMPLATE
    """Each {field} stands for a column of the manifest; what is in […] is left out where a field in it is unknown."""
    prompts: tyro.conf.OmitArgPrefixes[PromptsConfig] = PromptsConfig()
    """The texts that stand for the classes: for zero-shot validation, and for --captions labels."""
    loss: Literal["clip", "multi-positive", "siglip"] = "multi-positive"
    """clip: each image against all other captions. multi-positive: all its positives share the target. siglip: sigmoids."""
    positives: Literal["none", "caption", "label"] = "caption"
    """Which pairs count as matching too: none but the image's own, equal captions, or equal labels. clip knows only none."""
    wise_ft: bool = False
    """Mix the weights before and after training (WiSE-FT, Wortsman et al. 2022), in the share that validates best."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass: a third slower, much less memory."""
    hf: bool = True
    """Write the checkpoint as a Hugging Face CLIPModel too, where that can express it."""
    optim: OptimConfig = OptimConfig(weight_decay=0.2)
    """How it is trained."""

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"finetune-{self.method}"

    @property
    def default_lr(self) -> float:
        """The learning rate where none is given."""
        return 2e-4 if self.clip.pretrained == "none" else 1e-5

    @property
    def identity_columns(self) -> tuple[str, ...]:
        """Also the captions, unless the classes' prompts are."""
        return (*super().identity_columns, *(() if self.captions == "labels" else ("caption",)))

    def resolve_manifest(self, manifest: Manifest, *, training: bool = True) -> Manifest:
        """With the captions that are asked for, to learn from; predictions need none."""
        if not training or self.captions == "labels":
            return manifest
        return with_captions(manifest, self.captions, self.caption_template)


METHOD = Method(FinetuneConfig, task="FinetuneTask", compares_initial=True)
