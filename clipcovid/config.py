"""Configuration: the frozen dataclasses that jobs share, and functions of any config."""

import dataclasses
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from clipcovid.errors import RESEARCH_ONLY as RESEARCH_ONLY  # as every job finds them here
from clipcovid.errors import UserError, collect_mapping
from clipcovid.errors import quote_names as quote_names
from clipcovid.errors import summarize_error as summarize_error

Scalar = str | int | float | bool | None
ConfigT = TypeVar("ConfigT")


class RunConfig(Protocol):
    """Protocol of the config of a job that writes a run: where its folder goes, and what it is called."""

    @property
    def out(self) -> Path:
        """Where run folders and the MLflow store go."""

    @property
    def name(self) -> str:
        """The run folder's name; "" for the default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """How images are decoded and brought to one size. All of it goes into the pack hash."""

    size: int = 224
    """Side of the square that images are resized to, in pixels."""
    mode: Literal["gray", "rgb"] = "gray"
    """gray: one channel, for X-rays. rgb: three channels, for photographs and colour figures."""
    fit: Literal["squash", "crop", "pad"] = "squash"
    """squash: stretch to the square. crop: shorter side to size, then the centre. pad: longer side, black borders."""
    max_pixels: int = 100_000_000
    """Images with more pixels than this are refused as decompression bombs."""
    mask_value: tuple[str, ...] = ()
    """What is foreground in masks of several values: whole numbers, or colours such as 0xff0000. Default: what is not black,
    where a mask has two values."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask_value", tuple(map(str, self.mask_value)))  # JSON made a list of it
        if wrong := [value for value in self.mask_value if not re.fullmatch(r"\d+|0x[0-9a-fA-F]{6}", value)]:
            raise UserError(f"--mask-value {wrong[0]!r} is neither a whole number nor a colour such as 0xff0000.")
        if not 16 <= self.size <= 4096:
            raise UserError(f"--size {self.size} is not between 16 and 4096 pixels.")
        if self.max_pixels < 1:
            raise UserError(f"--max-pixels {self.max_pixels} must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Which CLIP, and its weights."""

    model: str = "ViT-B-32"
    """An open_clip architecture (ViT-B-32, RN50, …), hf-hub:org/name, or tiny (a CPU-size model of our own)."""
    pretrained: str = "openai"
    """An open_clip weights tag, a .safetensors or .pt file, a folder (run, open_clip or Hugging Face), or none for random."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Weights and arithmetic. auto: bf16 where the GPU or the CPU (AMX, AVX512-BF16) computes in it, else fp32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """The resources to ask of the cluster. Nothing here changes a result's identity."""

    address: str = "auto"
    """auto: the running Ray cluster (RAY_ADDRESS, or one on this machine), else a local one. local: always a local one."""
    workers: int | None = None
    """Parallel workers (actors, tasks or training processes). 0: work in this process, without Ray. Default: chosen from
    what the cluster has."""
    cpus_per_worker: float | None = None
    """CPU cores reserved for a worker. Default: the cluster's cores shared out."""
    gpus_per_worker: float | None = None
    """GPUs reserved for a worker, fractions allowed. Default: 1 where the cluster has GPUs, else 0."""
    threads: int | None = None
    """Compute threads in a worker. Default: its cores, rounded up; in training fewer while other work wants the cores."""
    batch_size: int | None = None
    """Images in a forward pass without gradients. Default: 256 on a GPU, 32 on a CPU."""

    def __post_init__(self) -> None:
        for name, minimum in (("workers", 0), ("threads", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"--compute.{name.replace('_', '-')} {value} must be at least {minimum}.")
        for name in ("cpus_per_worker", "gpus_per_worker"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"--compute.{name.replace('_', '-')} {value} must not be negative.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingsConfig:
    """The setting of every job that reads embeddings, which are made first where they are missing."""

    embeddings: Path | None = None
    """The folder that embeddings are kept in. Default: embeddings/ in --data, or in --out where --data can't be written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How a model is trained."""

    epochs: int = 0
    """Passes over the training split. 0: 10, or up to 50 where that is fewer than 500 steps."""
    batch_size: int = 0
    """Images in a step, over all workers together. 0: 64, or fewer where an epoch would be fewer than 16 steps."""
    accumulate: int = 1
    """Parts that a worker computes its share of a batch in, one after the other, to save memory."""
    lr: float = 0.0
    """Peak learning rate of AdamW. 0: the method's own, larger from random weights than from trained ones."""
    lr_scale: tuple[str, ...] = ()
    """Multipliers of the learning rate by the start of parameter names, e.g. head=10 visual=0.1; the longest start wins."""
    layer_decay: float = 1.0
    """The learning rate of each layer as a share of the one above it; 1 trains all layers alike."""
    weight_decay: float = 0.05
    """AdamW's decay; biases, norms and other vectors are spared."""
    beta2: float = 0.98
    """AdamW's second moment decay."""
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises, before it falls as a cosine to zero."""
    clip_norm: float = 1.0
    """The gradient's norm is cut to this. 0: never."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then what is scored and kept, e.g. 0.99. 0: none."""
    patience: int = 0
    """Epochs without a better validation score after which training stops. 0: never."""
    keep: Literal["best", "last"] = "best"
    """best: the weights of the epoch that validates best. last: the last epoch's, where few validation images are noisy."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic under autocast; weights stay fp32. auto: bf16 where the GPU or the CPU computes in it."""

    def __post_init__(self) -> None:
        for name, minimum in (("epochs", 0), ("batch_size", 0), ("accumulate", 1)):
            if getattr(self, name) < minimum:
                raise UserError(f"--optim.{name.replace('_', '-')} {getattr(self, name)} must be at least {minimum}.")
        if not (self.lr >= 0 and 0 <= self.warmup < 1 and 0 <= self.ema < 1 and 0 < self.layer_decay <= 1):
            raise UserError("--optim: lr >= 0, 0 <= warmup < 1, 0 <= ema < 1 and 0 < layer-decay <= 1 are needed.")
        collect_mapping(map(_parse_lr_scale, self.lr_scale), "--optim.lr-scale")


def _parse_lr_scale(entry: str) -> tuple[str, float]:
    """Name and factor, at least 0, of a NAME=MULTIPLIER."""
    name, _, multiplier = entry.partition("=")
    try:
        factor = float(multiplier)
    except ValueError:
        factor = -1
    if not name or not factor >= 0:
        raise UserError(f"--optim.lr-scale {entry!r} must be NAME=MULTIPLIER, e.g. head=10.")
    return name, factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training images, drawn for each image anew in each epoch. 0 switches each off."""

    rotate: float = 10.0
    """Up to this many degrees either way."""
    shift: float = 0.05
    """Up to this share of the side, in x and y."""
    scale: float = 0.1
    """Up to this share larger or smaller."""
    flip: bool = False
    """Mirror half of the images: off for chest X-rays, whose heart is on one side."""
    intensity: float = 0.15
    """Up to this share of change in brightness, contrast and gamma."""
    noise: float = 0.02
    """Standard deviation of Gaussian noise, as a share of white, drawn between 0 and this for each image."""

    def __post_init__(self) -> None:
        for name in ("rotate", "shift", "scale", "intensity", "noise"):
            if not 0 <= getattr(self, name) < (180 if name == "rotate" else 1):
                raise UserError(f"--augment.{name} {getattr(self, name)} is out of range.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of every training."""

    task: ClassVar[str]
    """The method's name."""
    data: Path
    """A prepared folder."""
    fold: str = ""
    """K/N: the K-th of N patient-grouped folds is the test split, and the rest is split anew. Default: the data's splits."""
    optim: OptimConfig = OptimConfig()
    """How it is trained."""
    augment: AugmentConfig = AugmentConfig()
    """How training images are varied."""
    out: Path = Path("outputs")
    """Where run folders and the MLflow store go."""
    name: str = ""
    """The run folder's name. Default: the method and the identity's hash."""
    register: str = ""
    """NAME or NAME@ALIAS: the trained model becomes a version of this one in MLflow's registry, to be served."""
    seed: int = 0
    """Seed of weights, order and augmentation: the same config gives the same model."""
    compute: ComputeConfig = ComputeConfig()
    """What to ask of the cluster."""

    @property
    def title(self) -> str:
        """What runs are named after."""
        return self.task

    @property
    def derived_defaults(self) -> dict[str, Any]:
        """Dotted key → value of the defaults that follow from other fields."""
        return {} if self.optim.lr else {"optim.lr": self.default_lr}

    @property
    def min_batch_size(self) -> int:
        """The least batch size that is chosen for a small training split, if none is given."""
        return 8

    @property
    def default_lr(self) -> float:
        """The learning rate where none is given."""
        return 1e-3 if getattr(self, "weights", "") == "none" else 1e-4

    def check_initial_weights(self) -> None:
        """Raise `UserError` where the initial weights can't be had, as far as that is known without loading them."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The manifest's columns without which an image can't be scored."""
        return ("label",)

    @property
    def train_columns(self) -> tuple[str, ...]:
        """The manifest columns that an image needs to be trained on."""
        return self.required_columns

    @property
    def identity_columns(self) -> tuple[str, ...]:
        """The manifest columns that go into the run's identity."""
        return (*self.required_columns, *self.train_columns)

    def resolve_manifest(self, manifest: Any, *, training: bool = True) -> Any:
        """The manifest as the method reads it. With `training`, a manifest that it can't learn from is a `UserError`."""
        return manifest


def resolve_defaults(config: ConfigT) -> ConfigT:
    """A copy with the defaults that follow from other fields: its `derived_defaults`, dotted key → value.

    Whoever uses or records a config resolves it last: a default that was filled in before would stay when `override` changes
    what it follows from.
    """
    derived: dict[str, Any] = getattr(config, "derived_defaults", {})
    return override(config, derived) if derived else config


def resolve_schedule(config: ConfigT, images: int) -> ConfigT:
    """A copy of a training's config with the epochs and the batch size that follow from the number of training images."""
    training = typing.cast(TrainConfig, config)
    epochs, batch_size = training.optim.epochs, training.optim.batch_size
    if not batch_size:
        largest = 2 ** max(0, (images // 16).bit_length() - 1)  # the largest power of two that makes 16 steps an epoch
        batch_size = min(64, max(training.min_batch_size, largest))
    if not epochs:
        epochs = min(50, max(10, -(-500 // max(1, images // batch_size))))
    return override(config, {"optim.epochs": epochs, "optim.batch_size": batch_size})


def flatten_resolved(config: Any) -> dict[str, Scalar]:
    """Dotted key → scalar for every field of a (nested) config, `resolve_defaults`; tuples become comma-separated text."""
    return {
        key: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for key, value in flatten_fields(resolve_defaults(config)).items()
    }


def flatten_fields(config: Any) -> dict[str, Any]:
    """Dotted key → value for every field of a (nested) config, as it is."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{key}": inner for key, inner in flatten_fields(value).items()}
        else:
            flat[field.name] = value
    return flat


def override(config: ConfigT, changes: Mapping[str, Any]) -> ConfigT:
    """A copy of `config` with dotted keys replaced, e.g. `{"optim.lr": 1e-4}`; an unknown key is a `UserError`."""
    values: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    keys = flatten_fields(config)
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if key not in keys:
            raise UserError(f"{type(config).__name__} has no key {key!r}; it has: {', '.join(sorted(keys))}.")
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            values[head] = value
    for head, inner in nested.items():
        values[head] = override(getattr(config, head), inner)
    return typing.cast(ConfigT, dataclasses.replace(typing.cast(Any, config), **values))


def config_from_dict(config_type: type[ConfigT], fields: Mapping[str, Any]) -> ConfigT:
    """The config whose `dataclasses.asdict` went through JSON; a field that it does not have is a `UserError`."""
    types = typing.get_type_hints(config_type)
    values: dict[str, Any] = {}
    for key, value in fields.items():
        field_type = types.get(key)
        if field_type is None:
            raise UserError(f"{config_type.__name__} has no field {key!r}: was it written by another version?")
        if isinstance(field_type, type) and dataclasses.is_dataclass(field_type):
            value = config_from_dict(field_type, value)
        elif Path in (field_type, *typing.get_args(field_type)) and value is not None:
            value = Path(value)
        elif isinstance(value, list):
            value = tuple(value)
        values[key] = value
    return config_type(**values)


def check_encodable_names(names: Iterable[str], noun: str) -> None:
    """Refuse names with letters beyond ASCII where Python takes names of files for another encoding than UTF-8."""
    encoding = sys.getfilesystemencoding()
    foreign = next((name for name in names if not name.isascii()), "") if encoding != "utf-8" else ""
    if foreign:
        raise UserError(
            f"{noun} {foreign!a} is not ASCII, and this process takes names for {encoding}: set PYTHONUTF8=1."
        )
