"""Segmentation of lungs and infections: the config."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from clipcovid.config import OptimConfig, TrainConfig, UserError
from clipcovid.methods.method import Method
from clipcovid.models.availability import check_smp_encoder_available


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(TrainConfig):
    """A segmentation network for lungs, infections or both."""

    task: ClassVar[str] = "segment"
    target: Literal["infection", "lung", "both"] = "infection"
    """What to segment: images without its masks are left out."""
    arch: Literal["unet", "unetplusplus", "deeplabv3plus", "segformer"] = "unet"
    """The decoder."""
    encoder: str = "resnet18"
    """The encoder: any of segmentation-models-pytorch, or tu- and a timm model, e.g. tu-convnext_tiny."""
    weights: str = "imagenet"
    """The encoder's: imagenet, a weights file (.safetensors, .pt, .pth), or none: random."""
    image_size: int = 0
    """Side of the model's input in pixels. 0: the prepared images' size."""
    loss: Literal["dice-bce", "dice-focal", "tversky", "dice-boundary"] = "dice-bce"
    """dice-bce: soft Dice and cross entropy. tversky: misses weigh more than false alarms. dice-boundary: edges weigh too."""
    supervision: Literal["masks", "boxes", "mask-boxes"] = "masks"
    """What is learned from: masks, the data set's boxes, or boxes around the parts of the masks, as if there were no more."""
    box_labels: tuple[str, ...] = ()
    """The findings whose boxes count. Default: all."""
    box_fill: float = 0.6
    """The least share of a box that is taken to be foreground."""
    tta: bool = False
    """Once trained, predict with the mean over mirrored and zoomed copies of each image: six passes instead of one."""
    components: int = 0
    """Keep only so many connected parts of a mask, the largest ones. 0: all."""
    within_lungs: bool = False
    """Cut the infection where the predicted lungs end, with --target both."""
    optim: OptimConfig = OptimConfig(epochs=20, batch_size=8, lr=1e-3)
    """How it is trained: the decoder starts from random weights, whatever the encoder's."""

    def __post_init__(self) -> None:
        if self.within_lungs and self.target != "both":
            raise UserError("--within-lungs needs the lungs too: use --target both.")
        if self.supervision != "masks" and (self.target == "both" or self.augment.rotate):
            raise UserError(
                f"--supervision {self.supervision} learns one region, and a rotated box is no longer a box: "
                "give --target infection or lung, and --augment.rotate 0."
            )
        if not 0 <= self.box_fill <= 1:
            raise UserError(f"--box-fill {self.box_fill} must be a share from 0 to 1.")
        if self.components < 0:
            raise UserError(f"--components {self.components} must not be negative.")

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"segment-{self.target}-{self.arch}"

    @property
    def regions(self) -> tuple[str, ...]:
        """What is segmented, in the order of the model's outputs."""
        return ("lung", "infection") if self.target == "both" else (self.target,)

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The masks."""
        return tuple(f"{region}_mask" for region in self.regions)

    @property
    def train_columns(self) -> tuple[str, ...]:
        """The masks, or the boxes."""
        return ("boxes",) if self.supervision == "boxes" else self.required_columns

    def check_initial_weights(self) -> None:
        """Raise `UserError` if the initial weights are missing or unreadable, without loading them."""
        check_smp_encoder_available(self.encoder, self.weights)


METHOD = Method(SegmentConfig, task="SegmentationTask", kind="segmentation")
