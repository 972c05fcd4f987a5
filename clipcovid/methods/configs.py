"""The parts of configs that several methods share."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from clipcovid.config import AugmentConfig, ClipConfig, EmbeddingsConfig, TrainConfig, UserError
from clipcovid.data.captions import TEMPLATE, with_captions
from clipcovid.data.manifest import Manifest
from clipcovid.models.availability import check_clip_available
from clipcovid.models.weight_detection import default_clip_model

NO_AUGMENT = AugmentConfig(rotate=0, shift=0, scale=0, intensity=0, noise=0)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainConfig):
    """Options shared by the classifiers with a softmax."""

    class_weights: Literal["none", "balanced"] = "none"
    """balanced: classes weigh alike in the loss, however many images they have."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"--label-smoothing {self.label_smoothing} must be from 0 to below 1.")


@dataclass(frozen=True, kw_only=True)
class ClipTrainConfig(TrainConfig):
    """Options shared by the methods that start from a CLIP."""

    clip: ClipConfig = ClipConfig()
    """The CLIP."""

    @property
    def derived_defaults(self) -> dict[str, Any]:
        """The model is what a folder of weights says it is."""
        return super().derived_defaults | default_clip_model(self.clip)

    def check_initial_weights(self) -> None:
        """Raise `UserError` if the initial weights are missing or unreadable, without loading them."""
        check_clip_available(self.clip)


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(EmbeddingsConfig, ClassifierConfig, ClipTrainConfig):
    """Options shared by the methods that learn from the embeddings of a frozen CLIP."""

    task: ClassVar[str]
    clip: ClipConfig = ClipConfig()
    """The encoder: published, a checkpoint, or a fine-tuned run of ours."""
    shots: tuple[str, ...] = ("all",)
    """Training images a class, or all; several (1 2 4 8 16 all) draw a curve, a run for each number and draw."""
    draw: int = 0
    """Which random choice of the shots."""
    input: Literal["packed", "raw"] = "packed"
    """packed: embeddings of the prepared pixels. raw: of the original files at the encoder's own size."""
    augment: AugmentConfig = field(default=NO_AUGMENT)
    """Not used: embeddings are made beforehand."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shots or not all(shots == "all" or (shots.isdigit() and int(shots)) for shots in self.shots):
            raise UserError(f"--shots {' '.join(self.shots)} must be numbers of 1 or more, or all.")

    @property
    def title(self) -> str:
        """What runs are named after."""
        return self.task + (f"-{'-'.join(self.shots)}-shot" if self.shots != ("all",) else "")


@dataclass(frozen=True, kw_only=True)
class CaptionedConfig(TrainConfig):
    """Options shared by the methods that learn from captions."""

    captions: str = "template"
    """template: the data set's fields in the caption template. dataset: its captions. both: the one before the other. Or
    a table with image_id, caption."""
    caption_template: str = TEMPLATE
    """Each {field} stands for a column of the manifest; what is in […] is left out where a field in it is unknown."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The caption."""
        return ("caption",)

    def resolve_manifest(self, manifest: Manifest, *, training: bool = True) -> Manifest:
        """With the captions that are asked for."""
        return with_captions(manifest, self.captions, self.caption_template, strict=training)


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(ClipTrainConfig):
    """The settings of all methods that train two towers on pairs; their defaults and flags are each method's."""

    if TYPE_CHECKING:
        loss: str
        positives: Literal["none", "caption", "label"]
        grad_checkpointing: bool

    def __post_init__(self) -> None:
        if self.optim.accumulate > 1:
            raise UserError(
                "--optim.accumulate would take negatives away from a contrastive loss: use --grad-checkpointing or more "
                "--compute.workers for large batches."
            )

    @property
    def min_batch_size(self) -> int:
        """Contrastive losses learn from the other images of the batch."""
        return 32
