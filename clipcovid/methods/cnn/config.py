"""A timm image classifier: the config."""

from dataclasses import dataclass
from typing import ClassVar

from clipcovid.methods.configs import ClassifierConfig
from clipcovid.methods.method import Method
from clipcovid.models.availability import check_timm_available


@dataclass(frozen=True, kw_only=True)
class CnnConfig(ClassifierConfig):
    """An image classifier of timm: a CNN or a vision transformer."""

    task: ClassVar[str] = "cnn"
    arch: str = "resnet18"
    """Any timm architecture: resnet18, resnet50, vgg16, vit_base_patch16_224, densenet121, convnext_tiny, …"""
    weights: str = "pretrained"
    """pretrained: timm's published weights. A weights file (.safetensors, .pt, .pth). none: random."""
    image_size: int = 0
    """Side of the model's input in pixels. 0: the prepared images' size, or the only one that the architecture takes."""
    tta: bool = False
    """Predict with the mean of an image's probabilities and its mirror image's (test-time augmentation)."""

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"cnn-{self.arch}"

    def check_initial_weights(self) -> None:
        """Raise `UserError` if the initial weights are missing or unreadable, without loading them."""
        check_timm_available(self.arch, self.weights)


METHOD = Method(CnnConfig, task="CnnTask")
