"""The methods that can be trained, and what each asks. No torch here: a driver, a sweep or `--help` starts at once."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from clipcovid.config import (
    AugmentConfig,
    ClipConfig,
    EmbeddingsConfig,
    OptimConfig,
    TrainConfig,
    UserError,
    override,
    restore,
)
from clipcovid.data.captions import TEMPLATE, captioned, read_captions
from clipcovid.identity import CAPTIONS
from clipcovid.io.files import read_object, write_json, write_parquet
from clipcovid.models.presets import DECODERS, TEXT_ENCODERS
from clipcovid.models.published import check_clip, check_encoder, check_file, check_hub_model, check_timm
from clipcovid.models.recognition import clip_defaults
from clipcovid.prompts import PromptsConfig, build_prompts

PROMPTS, CAPTION_TABLE = "prompts.json", "captions.parquet"  # files of a checkpoint
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
class ClipTrainConfig(TrainConfig):
    """What all that begin with a CLIP ask."""

    clip: ClipConfig = ClipConfig()
    """The CLIP."""

    @property
    def derived_defaults(self) -> dict[str, Any]:
        """The model is what a folder of weights says it is."""
        return super().derived_defaults | clip_defaults(self.clip)

    def check_initial_weights(self) -> None:
        """What can be known of the initial weights before anything starts."""
        check_clip(self.clip)


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

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"cnn-{self.arch}"

    def check_initial_weights(self) -> None:
        """What can be known of the initial weights before anything starts."""
        check_timm(self.arch, self.weights)


@dataclass(frozen=True, kw_only=True)
class HybridConfig(ClassifyConfig, ClipTrainConfig):
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
        """What can be known of the initial weights before anything starts."""
        check_clip(self.clip)
        check_timm(self.arch, self.weights)


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(EmbeddingsConfig, ClassifyConfig, ClipTrainConfig):
    """What all that learn from the embeddings of a frozen CLIP ask."""

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
class ProbeConfig(FewShotConfig):
    """A linear or MLP head on the embeddings of a frozen encoder."""

    task: ClassVar[str] = "probe"
    head: Literal["linear", "mlp"] = "linear"
    """linear: logistic regression. mlp: one hidden layer."""
    hidden: int = 256
    """Width of the MLP's hidden layer."""
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Strengths of the L2 penalty that are all trained, and of which the validation split chooses one."""
    optim: OptimConfig = OptimConfig(
        epochs=100, batch_size=1024, lr=0.01, weight_decay=0, clip_norm=0, keep="last", precision="fp32"
    )
    """How it is trained: to the end, where the penalty, not the epoch, keeps it from overfitting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalties or min(self.penalties) < 0 or self.hidden < 1:
            raise UserError("--penalties must be numbers of 0 or more, and --hidden at least 1.")

    @property
    def title(self) -> str:
        """What runs are named after."""
        return super().title.replace(self.task, f"probe-{self.head}", 1)


@dataclass(frozen=True, kw_only=True)
class CoopConfig(FewShotConfig):
    """Learned prompts: the words before each class's name, as vectors, of a frozen CLIP (CoOp, Zhou et al. 2022)."""

    task: ClassVar[str] = "coop"
    prompts: tyro.conf.OmitArgPrefixes[PromptsConfig] = PromptsConfig(template="{}")
    """What follows the learned words: the first text of each class."""
    words: int = 16
    """How many words are learned."""
    init: str = ""
    """Words to start from ("a chest X-ray of"), as many as they are. Default: random vectors."""
    per_class: bool = False
    """Each class learns words of its own, rather than all the same."""
    optim: OptimConfig = OptimConfig(epochs=50, batch_size=256, lr=2e-3, weight_decay=0)
    """How it is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.words < 1:
            raise UserError(f"--words {self.words} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class TipAdapterConfig(FewShotConfig):
    """Zero-shot CLIP with a memory of the training images (Tip-Adapter-F, Zhang et al. 2022)."""

    task: ClassVar[str] = "tip_adapter"
    prompts: tyro.conf.OmitArgPrefixes[PromptsConfig] = PromptsConfig()
    """The texts that stand for the classes."""
    optim: OptimConfig = OptimConfig(epochs=20, batch_size=256, lr=1e-3, weight_decay=0)
    """How the memory is trained; what it does untrained is shown beside."""


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
class FinetuneConfig(ClipTrainConfig):
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

    def __post_init__(self) -> None:
        _no_accumulation(self.optim)

    @property
    def smallest_batch(self) -> int:
        """Contrastive losses learn from the other images of the batch."""
        return 32

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"finetune-{self.method}"

    @property
    def default_lr(self) -> float:
        """The learning rate where none is given."""
        return 2e-4 if self.clip.pretrained == "none" else 1e-5

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Also the captions, unless the classes' prompts are."""
        return (*super().text_columns, *(() if self.captions == "labels" else ("caption",)))

    def resolve_manifest(self, manifest: Any, *, learning: bool = True) -> Any:
        """With the captions that are asked for, to learn from; predictions need none."""
        if not learning or self.captions == "labels":
            return manifest
        return captioned(manifest, self.captions, self.caption_template)


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
    def required_columns(self) -> tuple[str, ...]:
        """The masks."""
        return tuple(f"{region}_mask" for region in self.regions)

    @property
    def train_columns(self) -> tuple[str, ...]:
        """The masks, or the boxes."""
        return ("boxes",) if self.supervision == "boxes" else self.required_columns

    def check_initial_weights(self) -> None:
        """What can be known of the initial weights before anything starts."""
        check_encoder(self.encoder, self.weights)


@dataclass(frozen=True, kw_only=True)
class CaptionedConfig(TrainConfig):
    """What all that learn from captions ask."""

    captions: str = "template"
    """template: the data set's fields in the caption template. dataset: its captions. both: the one before the other. Or
    a table with image_id, caption."""
    caption_template: str = TEMPLATE
    """Each {field} stands for a column of the manifest; what is in […] is left out where a field in it is unknown."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The caption."""
        return ("caption",)

    def resolve_manifest(self, manifest: Any, *, learning: bool = True) -> Any:
        """With the captions that are asked for."""
        return captioned(manifest, self.captions, self.caption_template, strict=learning)


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(CaptionedConfig, ClipTrainConfig):
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
        _no_accumulation(self.optim)
        for name in ("width", "context", "vocabulary"):
            if getattr(self, name) < 8:
                raise UserError(f"--{name} {getattr(self, name)} must be at least 8.")

    @property
    def smallest_batch(self) -> int:
        """Contrastive losses learn from the other images of the batch."""
        return 32

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
        return f"caption-{clip_defaults(self.clip).get('clip.model', self.clip.model)}"

    def check_initial_weights(self) -> None:
        """What can be known of the initial weights before anything starts."""
        if self.towers == "clip":
            check_clip(self.clip)
            return
        check_timm(self.image_encoder, self.weights)
        if self.text_encoder not in TEXT_ENCODERS:
            check_hub_model(self.text_encoder, "--text", weights=self.text_tower_weights != "none")
        elif self.text_tower_weights != "none":
            raise UserError(f"--text {self.text_encoder} has no published weights: add --text-weights none.")


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig(EmbeddingsConfig, CaptionedConfig, ClipTrainConfig):
    """A decoder that writes a caption from the embedding of a frozen encoder."""

    task: ClassVar[str] = "captioner"
    clip: ClipConfig = ClipConfig()
    """The encoder: published, a checkpoint, or a run of ours (finetune, caption)."""
    decoder: str = "mini"
    """mini or small: of random weights, with a tokenizer trained on the training captions. Or a GPT-2 of Hugging Face: a
    folder, or a model of its hub."""
    prefix: int = 8
    """How many words' room the embedding gets before the caption (ClipCap, Mokady et al. 2021)."""
    context: int = 96
    """The most tokens of a caption."""
    vocabulary: int = 8000
    """The most tokens of a tokenizer trained on the training captions."""
    beams: int = 4
    """Captions followed at once by beam search. 1: greedy search, which is shown beside it in any case."""
    dropout: float = 0.1
    """Of the decoder."""
    input: Literal["packed", "raw"] = "packed"
    """packed: embeddings of the prepared pixels. raw: of the original files at the encoder's own size."""
    optim: OptimConfig = OptimConfig(epochs=20, lr=5e-4)
    """How it is trained."""
    augment: AugmentConfig = field(default=NO_AUGMENT)
    """Not used: embeddings are made beforehand."""

    def __post_init__(self) -> None:
        if min(self.prefix, self.beams) < 1 or min(self.context, self.vocabulary) < 8 or not 0 <= self.dropout < 1:
            raise UserError("--prefix and --beams must be at least 1, --context and --vocabulary 8, --dropout below 1.")

    @property
    def title(self) -> str:
        """What runs are named after."""
        return f"captioner-{Path(self.decoder).name}"

    def check_initial_weights(self) -> None:
        """What can be known of the initial weights before anything starts."""
        check_clip(self.clip)
        if self.decoder not in DECODERS:
            check_hub_model(self.decoder, "--decoder")


@dataclass(frozen=True)
class Method:
    """Where a task is, and what its predictions are."""

    config: Any
    place: str
    kind: str = "classification"
    embedded: bool = False
    """Whether it reads the embeddings of a frozen encoder, not images."""

    def load(self) -> Any:
        """The task's class; imports torch."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


METHODS = {
    "finetune": Method(FinetuneConfig, "clipcovid.methods.finetune:Finetune"),
    "probe": Method(ProbeConfig, "clipcovid.methods.probe:Probe", embedded=True),
    "coop": Method(CoopConfig, "clipcovid.methods.coop:Coop", embedded=True),
    "tip_adapter": Method(TipAdapterConfig, "clipcovid.methods.tip_adapter:TipAdapter", embedded=True),
    "cnn": Method(CnnConfig, "clipcovid.methods.classifier:Cnn"),
    "hybrid": Method(HybridConfig, "clipcovid.methods.classifier:Hybrid"),
    "captioner": Method(CaptionerConfig, "clipcovid.methods.captioner:ClipCap", "captions", embedded=True),
    "caption": Method(CaptionConfig, "clipcovid.methods.dual_encoder:Caption", "captions"),
    "segment": Method(SegmentConfig, "clipcovid.methods.segment:Segment", "segmentation"),
}


AnyMethod = Annotated[
    Annotated[CnnConfig, tyro.conf.subcommand("cnn")]
    | Annotated[ProbeConfig, tyro.conf.subcommand("probe")]
    | Annotated[CoopConfig, tyro.conf.subcommand("coop")]
    | Annotated[TipAdapterConfig, tyro.conf.subcommand("tip_adapter")]
    | Annotated[FinetuneConfig, tyro.conf.subcommand("finetune")]
    | Annotated[HybridConfig, tyro.conf.subcommand("hybrid")]
    | Annotated[CaptionConfig, tyro.conf.subcommand("caption")]
    | Annotated[CaptionerConfig, tyro.conf.subcommand("captioner")]
    | Annotated[SegmentConfig, tyro.conf.subcommand("segment")],
    tyro.conf.arg(name=""),
]
"""A field that takes any method with all its flags, as a subcommand."""


CHECKPOINT_FILES = (  # what is written into `checkpoint/`, as a regular expression of paths in a run's folder
    r"checkpoint/((hf|text|decoder)/)?((model|gallery|known)\.safetensors|(gallery|known|prompts|(\w+_)?config|tokenizer|vocab"
    r"|special_tokens_map|added_tokens)\.json|(vocab|merges)\.txt|chat_template\.jinja"
    r"|(captions|training_images)\.parquet)"
)


def read_checkpoint(run: Path) -> tuple[Any, dict[str, Any], Path]:
    """A run's config, the rest of its checkpoint's `config.json`, and the checkpoint's folder; what is none: `UserError`."""
    folder = run / "checkpoint" if (run / "checkpoint").is_dir() else run
    path = folder / "config.json"
    about = read_object(path)
    if about.get("task") not in METHODS or not (folder / "model.safetensors").is_file():
        raise UserError(f"{run} holds no checkpoint: give the folder of a finished training run.")
    check_file(folder / "model.safetensors")
    return with_saved_texts(restore(METHODS[about["task"]].config, about.pop("config")), folder), about, folder


def save_texts(config: Any, classes: Sequence[str], folder: Path) -> Any:
    """Write the texts that a config names into `folder`; gives the config that reads them there.

    So a training goes on with the texts that it began with, and its checkpoint predicts with them, whatever becomes of the
    files that were given.
    """
    if isinstance(getattr(config, "prompts", None), PromptsConfig):
        write_json(folder / PROMPTS, build_prompts(config.prompts, tuple(classes)))
    if getattr(config, "captions", "labels") not in CAPTIONS:
        write_parquet(folder / CAPTION_TABLE, read_captions(config.captions), {})
    return with_saved_texts(config, folder)


def with_saved_texts(config: Any, folder: Path) -> Any:
    """A config that reads the texts which `save_texts` left in `folder`; as it is, where there are none."""
    own = {"prompts.prompts": folder / PROMPTS, "captions": folder / CAPTION_TABLE}
    return override(config, {key: str(path.resolve()) for key, path in own.items() if path.is_file()})


def _no_accumulation(optim: OptimConfig) -> None:
    if optim.accumulate > 1:
        raise UserError(
            "--optim.accumulate would take negatives away from a contrastive loss: use --grad-checkpointing or more "
            "--compute.workers for large batches."
        )
