"""The methods that can be trained, and what each asks. No torch here: a driver, a sweep or `--help` starts at once."""

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from clipcovid.config import AugmentConfig, ClipConfig, OptimConfig, TrainConfig, UserError, restore
from clipcovid.data.captions import TEMPLATE
from clipcovid.labels import PromptsConfig
from clipcovid.models.weights import file_hash, weights_of

NO_AUGMENT = AugmentConfig(rotate=0, shift=0, scale=0, intensity=0, noise=0)


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(TrainConfig):
    """What all classifiers with a softmax ask."""

    class_weights: Literal["none", "balanced"] = "none"
    """balanced: classes weigh alike in the loss, however many images they have."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"--label-smoothing {self.label_smoothing} must be from 0 to below 1.")


@dataclass(frozen=True, kw_only=True)
class CnnConfig(ClassifyConfig):
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
    optim: OptimConfig = OptimConfig()
    """How it is trained."""

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"cnn-{self.arch}"

    def weights_identity(self) -> dict[str, str]:
        """What tells the initial weights from others."""
        return _file_or_name("weights", self.weights)


@dataclass(frozen=True, kw_only=True)
class HybridConfig(ClassifyConfig):
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

    def weights_identity(self) -> dict[str, str]:
        """What tells the initial weights from others."""
        return _clip_weights(self) | _file_or_name("weights", self.weights)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ClassifyConfig):
    """A linear or MLP head on the embeddings of a frozen encoder."""

    task: ClassVar[str] = "probe"
    clip: ClipConfig = ClipConfig()
    """The encoder: published, a checkpoint, or a fine-tuned run of ours."""
    head: Literal["linear", "mlp"] = "linear"
    """linear: logistic regression. mlp: one hidden layer."""
    hidden: int = 256
    """Width of the MLP's hidden layer."""
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Strengths of the L2 penalty that are all trained, and of which the validation split chooses one."""
    shots: tuple[str, ...] = ("all",)
    """Training images a class, or all; several (1 2 4 8 16 all) draw a curve, a run for each number and draw."""
    draw: int = 0
    """Which random choice of the shots."""
    input: Literal["packed", "raw"] = "packed"
    """packed: embeddings of the prepared pixels. raw: of the original files at the encoder's own size."""
    optim: OptimConfig = OptimConfig(epochs=100, batch_size=1024, lr=0.01, weight_decay=0, clip_norm=0, keep="last")
    """How it is trained: to the end, where the penalty, not the epoch, keeps it from overfitting."""
    augment: AugmentConfig = field(default=NO_AUGMENT)
    """Not used: embeddings are made beforehand."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalties or min(self.penalties) < 0 or self.hidden < 1:
            raise UserError("--penalties must be numbers of 0 or more, and --hidden at least 1.")
        if not self.shots or not all(shots == "all" or (shots.isdigit() and int(shots)) for shots in self.shots):
            raise UserError(f"--shots {' '.join(self.shots)} must be numbers of 1 or more, or all.")

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"probe-{self.head}" + (f"-{'-'.join(self.shots)}-shot" if self.shots != ("all",) else "")

    def weights_identity(self) -> dict[str, str]:
        """What tells the initial weights from others."""
        return _clip_weights(self)


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
class FinetuneConfig(TrainConfig):
    """CLIP trained further on pairs of images and captions."""

    task: ClassVar[str] = "finetune"
    method: Literal["full", "lora", "vision", "text"] = "full"
    """What is trained: all of it, low-rank adapters in both towers, or one tower alone."""
    clip: ClipConfig = ClipConfig()
    """The CLIP to start from; its precision is not used in training (see --optim.precision)."""
    lora: LoraConfig = LoraConfig()
    """The adapters, with --method lora."""
    captions: str = "labels"
    """labels: the prompts of an image's class. dataset: the data set's captions. template: its fields in --caption-template.
    both: template and data set. Or a table with image_id, caption."""
    caption_template: str = TEMPLATE
    """{field} stands for a column of the manifest; what is in […] is left out where a field in it is unknown."""
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
    optim: OptimConfig = OptimConfig(lr=1e-5, weight_decay=0.2)
    """How it is trained."""

    def __post_init__(self) -> None:
        if self.optim.accumulate > 1:
            raise UserError(
                "--optim.accumulate would take negatives away from a contrastive loss: use --grad-checkpointing or more "
                "--compute.workers for large batches."
            )

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"finetune-{self.method}"

    def weights_identity(self) -> dict[str, str]:
        """What tells the initial weights from others."""
        return _clip_weights(self) | (_file_or_name("captions", self.captions))


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
    optim: OptimConfig = OptimConfig()
    """How it is trained."""

    def __post_init__(self) -> None:
        if self.within_lungs and self.target != "both":
            raise UserError("--within-lungs needs the lungs too: use --target both.")
        if self.supervision != "masks" and (self.target == "both" or self.augment.rotate):
            raise UserError(
                f"--supervision {self.supervision} learns one region, and turned boxes are none: give --target infection or "
                "lung, and --augment.rotate 0."
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
    def needs(self) -> tuple[str, ...]:
        """The masks."""
        return tuple(f"{region}_mask" for region in self.regions)

    @property
    def learns_from(self) -> tuple[str, ...]:
        """The masks, or the boxes."""
        return ("boxes",) if self.supervision == "boxes" else self.needs

    def weights_identity(self) -> dict[str, str]:
        """What tells the initial weights from others."""
        return _file_or_name("weights", self.weights)


@dataclass(frozen=True)
class Method:
    """Where a task is, and what its predictions are."""

    config: Any
    place: str
    kind: str = "classification"

    def load(self) -> Any:
        """The task's class; imports torch."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


METHODS = {
    "finetune": Method(FinetuneConfig, "clipcovid.tasks.finetune:Finetune"),
    "probe": Method(ProbeConfig, "clipcovid.tasks.probe:Probe"),
    "cnn": Method(CnnConfig, "clipcovid.tasks.classify:Cnn"),
    "hybrid": Method(HybridConfig, "clipcovid.tasks.classify:Hybrid"),
    "segment": Method(SegmentConfig, "clipcovid.tasks.segment:Segment", "segmentation"),
}


def read_checkpoint(run: Path) -> tuple[Any, dict[str, Any], Path]:
    """A run's config, the rest of its checkpoint's `config.json`, and the checkpoint's folder; what is none: `UserError`."""
    folder = run / "checkpoint" if (run / "checkpoint").is_dir() else run
    path = folder / "config.json"
    about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if about.get("task") not in METHODS or not (folder / "model.safetensors").is_file():
        raise UserError(f"{run} holds no checkpoint: give the folder of a finished training run.")
    return restore(METHODS[about["task"]].config, about.pop("config")), about, folder


def _clip_weights(config: Any) -> dict[str, str]:
    return {f"clip.{key}": value for key, value in weights_of(config.clip, config.seed).items()}


def _file_or_name(key: str, value: str) -> dict[str, str]:
    """A file is known by its content, anything else by its name."""
    return {key: file_hash(Path(value)) if Path(value).is_file() else value}
