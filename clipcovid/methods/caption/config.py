"""The dual encoder of images and captions: the config."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from clipcovid.config import ClipConfig, OptimConfig, UserError
from clipcovid.methods.configs import CaptionedConfig, ContrastiveConfig
from clipcovid.methods.method import Method
from clipcovid.models.availability import check_clip_available, check_hub_model_available, check_timm_available
from clipcovid.models.presets import TEXT_ENCODERS
from clipcovid.models.weight_detection import default_clip_model


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig(CaptionedConfig, ContrastiveConfig):
    """Two encoders, of images and of captions, trained to find the one by the other."""

    task: ClassVar[str] = "caption"
    towers: Literal["own", "clip"] = "own"
    """own: --arch and --text. clip: both towers of --clip.model."""
    arch: str = ""
    """The image encoder: any timm architecture. Default: resnet50, or from random weights resnet18."""
    text: str = ""
    """The text encoder: a model of Hugging Face's hub, a folder of one, or of random weights mini, small or base.
    Default: emilyalsentzer/Bio_ClinicalBERT, or from random weights mini."""
    weights: str = "pretrained"
    """The image encoder's: pretrained (timm's), a weights file, or none. none is for both encoders."""
    text_weights: Literal["", "pretrained", "none"] = ""
    """The text encoder's: pretrained, or none. Default: none where --weights is none, else pretrained."""
    clip: ClipConfig = ClipConfig()
    """The CLIP of --towers clip."""
    width: int = 256
    """Of the space that images and captions are projected into."""
    projection: Literal["linear", "mlp"] = "linear"
    """How they are projected into it."""
    image_size: int = 0
    """Side of the image encoder's input in pixels. 0: the prepared images' size."""
    context: int = 128
    """The most tokens of a caption; what is longer is cut off, and counted."""
    vocabulary: int = 8000
    """The most tokens of a tokenizer trained on the training captions (mini, small, base)."""
    freeze: Literal["none", "image", "text"] = "none"
    """The encoder that keeps its weights; its projection is trained all the same."""
    loss: Literal["soft", "clip", "multi-positive", "siglip"] = "multi-positive"
    """clip: each image against all other captions. multi-positive: all its positives share the target. siglip: sigmoids.
    soft: the targets are the similarities of the images and of the captions among themselves."""
    positives: Literal["none", "caption", "label"] = "caption"
    """Which pairs count as matching too: none but the image's own, equal captions, or equal labels. clip knows only none."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass: a third slower, much less memory."""
    optim: OptimConfig = OptimConfig()
    """How it is trained. --optim.lr-scale clip.visual.trunk=0.1 clip.text.transformer=0.1 spares pretrained encoders."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "context", "vocabulary"):
            if getattr(self, name) < 8:
                raise UserError(f"--{name} {getattr(self, name)} must be at least 8.")

    @property
    def default_lr(self) -> float:
        """The learning rate where none is given."""
        return 1e-3 if "none" in (self.weights, self.towers == "clip" and self.clip.pretrained) else 1e-4

    @property
    def derived_defaults(self) -> dict[str, Any]:
        """Also the names of the encoders."""
        return super().derived_defaults | {"arch": self.image_encoder, "text": self.text_encoder}

    @property
    def image_encoder(self) -> str:
        """The architecture's name."""
        return self.arch or ("resnet18" if self.weights == "none" else "resnet50")

    @property
    def text_encoder(self) -> str:
        """Its name or folder."""
        return self.text or ("mini" if self.text_tower_weights == "none" else "emilyalsentzer/Bio_ClinicalBERT")

    @property
    def text_tower_weights(self) -> str:
        """pretrained or none."""
        return self.text_weights or ("none" if self.weights == "none" else "pretrained")

    @property
    def title(self) -> str:
        """What runs are named after."""
        if self.towers == "own":
            return f"caption-{self.image_encoder}"
        return f"caption-{default_clip_model(self.clip).get('clip.model', self.clip.model)}"

    def check_initial_weights(self) -> None:
        """Raise `UserError` if the initial weights are missing or unreadable, without loading them."""
        if self.towers == "clip":
            check_clip_available(self.clip)
            return
        check_timm_available(self.image_encoder, self.weights)
        if self.text_encoder not in TEXT_ENCODERS:
            check_hub_model_available(self.text_encoder, "--text", weights=self.text_tower_weights != "none")
        elif self.text_tower_weights != "none":
            raise UserError(f"--text {self.text_encoder} has no published weights: add --text-weights none.")


METHOD = Method(DualEncoderConfig, task="DualEncoderTask", kind="captions")
