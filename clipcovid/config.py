"""Configuration: frozen dataclasses, and the command line made from them."""

import dataclasses
import errno
import io
import re
import signal
import sys
import tempfile
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from clipcovid import environment
from clipcovid.terminal import terminal_width, wrapped

Scalar = str | int | float | bool | None
ConfigT = TypeVar("ConfigT")

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk or a quota
RESEARCH_ONLY = "Research use only, not for diagnosis."


class UserError(ValueError):
    """A user's mistake. Its text is one sentence that says what is wrong and the way out; jobs end with status 2."""


def quoted(names: Iterable[str]) -> str:
    """Names in quotes with commas between them: they may hold commas themselves."""
    return ", ".join(map(repr, names))


def summarize_error(error: Exception) -> str:
    """What an error of another library says first, at most 300 characters; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


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
    """What to ask of the cluster. Nothing here changes a result's identity."""

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
        for name, least in (("workers", 0), ("threads", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--compute.{name.replace('_', '-')} {value} must be at least {least}.")
        for name in ("cpus_per_worker", "gpus_per_worker"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"--compute.{name.replace('_', '-')} {value} must not be negative.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingsConfig:
    """What every job asks that reads embeddings, which are made first where they are missing."""

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
        for name, least in (("epochs", 0), ("batch_size", 0), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--optim.{name.replace('_', '-')} {getattr(self, name)} must be at least {least}.")
        if not (self.lr >= 0 and 0 <= self.warmup < 1 and 0 <= self.ema < 1 and 0 < self.layer_decay <= 1):
            raise UserError("--optim: lr >= 0, 0 <= warmup < 1, 0 <= ema < 1 and 0 < layer-decay <= 1 are needed.")
        for entry in self.lr_scale:
            name, _, factor = entry.partition("=")
            try:
                good = bool(name) and float(factor) >= 0
            except ValueError:
                good = False
            if not good:
                raise UserError(f"--optim.lr-scale {entry!r} must be NAME=MULTIPLIER, e.g. head=10.")


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
    """What every training job asks."""

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
    seed: int = 0
    """Seed of weights, order and augmentation: the same config gives the same model."""
    compute: ComputeConfig = ComputeConfig()
    """What to ask of the cluster."""

    @property
    def derived_defaults(self) -> dict[str, Any]:
        """What `resolve_defaults` fills in."""
        return {} if self.optim.lr else {"optim.lr": self.default_lr}

    @property
    def smallest_batch(self) -> int:
        """The batch size that a small training split does not go below where none is given."""
        return 8

    @property
    def default_lr(self) -> float:
        """The learning rate where none is given."""
        return 1e-3 if getattr(self, "weights", "") == "none" else 1e-4

    def check_initial_weights(self) -> None:
        """Raise `UserError` where weights that training starts from can't be had; what is known without loading them."""

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The manifest's columns without which an image can't be scored."""
        return ("label",)

    @property
    def train_columns(self) -> tuple[str, ...]:
        """The columns without which an image can't be learned from."""
        return self.required_columns

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that a training depends on."""
        return (*self.required_columns, *self.train_columns)

    def resolve_manifest(self, manifest: Any, *, learning: bool = True) -> Any:
        """The manifest as the method reads it. `learning`: what it can't learn from is an error."""
        return manifest


def from_cli(config_type: type[ConfigT], description: str, args: list[str] | None = None) -> ConfigT:
    """Parse `args` (default: the command line) into `config_type`; a bad flag ends the process with status 2.

    Where there are subcommands, flags that are not theirs may stand before or behind them.
    """
    together = (tyro.conf.CascadeSubcommandArgs,)
    # tyro joins lines that begin with a letter, and wraps none: those with a space before them stay as they are.
    description = textwrap.indent(wrapped(description, terminal_width() - 1), " ")
    return tyro.cli(config_type, description=description, args=args, config=together)


def run_job(config_type: type[ConfigT], main: Callable[[ConfigT], None], description: str | None) -> None:
    """Run a job from the command line.

    Exit status: 0 when done, 2 for a user's mistake, 1 for a failure, 130 and 143 where SIGINT or SIGTERM stopped it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a caption's odd character must not end a job on an ASCII terminal
    config = from_cli(config_type, description or "")
    environment.set_home()
    signal.signal(signal.SIGTERM, _stop)
    try:
        check_names(sys.argv[1:], "The argument")
        check_seeds(config)
        check_paths(config)
        main(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"error: {error.filename or 'A file'} can't be written ({error.strerror}): make room.", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("Interrupted: run the same command again to go on where it stopped.", file=sys.stderr)
        raise SystemExit(130) from None


def check_names(names: Iterable[str], what: str) -> None:
    """Refuse names with letters beyond ASCII where Python takes names of files for another encoding than UTF-8."""
    encoding = sys.getfilesystemencoding()
    odd = next((name for name in names if not name.isascii()), "") if encoding != "utf-8" else ""
    if odd:
        raise UserError(f"{what} {odd!a} is not ASCII, and this process takes names for {encoding}: set PYTHONUTF8=1.")


def check_seeds(config: Any) -> None:
    """Refuse seeds below 0 or from 2**32, which not every library's generator takes."""
    for key, value in flatten(config).items():
        if key.rpartition(".")[2] == "seed" and isinstance(value, int) and not 0 <= value < 2**32:
            raise UserError(f"--{key} {value} is not a whole number from 0 to {2**32 - 1}.")


def check_paths(config: Any) -> None:
    """Refuse folders that this machine can't write to, or that would be lost, before any work is done.

    Files and folders that jobs read and write are local paths, or on a shared file system: URIs are refused. So is an --out
    that is a file, below one, or not writable, and relative --out and --data in a submitted job, which Ray runs in a copy
    of the working directory.
    """
    for name, path in _paths(config):
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
            given = str(path) if "://" in str(path) else str(path).replace(":/", "://", 1)
            raise UserError(
                f"--{name} {given} is a URI: give a folder that this machine, and each node, sees as a path."
            )
        if name in ("out", "data") and not path.is_absolute() and _in_ray_copy(Path.cwd()):
            raise UserError(
                f"--{name} {path} would be in Ray's copy of the working directory, which Ray deletes: give an absolute path "
                "that every node sees."
            )
        if name == "out":
            check_writable(path)


def check_writable(folder: Path) -> None:
    """A folder that is a file, is below one, or can't be written to or made, is a `UserError`."""
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
    if not above.is_dir():
        raise UserError(f"--out {folder} can't be a folder: {above} is a file; give another --out.")
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise UserError(f"--out {folder} can't be written ({above}: {error.strerror}); give another --out.") from None


def _paths(config: Any) -> Iterator[tuple[str, Path]]:
    """The last part of a field's key, and its value, of all fields of a nested config that hold paths."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _paths(value)
        elif field.name == "out" and isinstance(value, str):
            yield field.name, Path(value)
        else:
            found = value if isinstance(value, tuple) else (value,)
            yield from ((field.name, path) for path in found if isinstance(path, Path))


def _in_ray_copy(place: Path) -> bool:
    return "working_dir_files" in place.parts and "runtime_resources" in place.parts


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
        per_epoch = 2 ** max(
            0, (images // 16).bit_length() - 1
        )  # the largest power of two that makes 16 steps an epoch
        batch_size = min(64, max(training.smallest_batch, per_epoch))
    if not epochs:
        epochs = min(50, max(10, -(-500 // max(1, images // batch_size))))
    return override(config, {"optim.epochs": epochs, "optim.batch_size": batch_size})


def _stop(number: int, frame: Any) -> None:
    """End the job in order: what it has half written is cleared, and its records say that it was stopped."""
    print("Stopped: run the same command again to go on where it was.", file=sys.stderr)
    raise SystemExit(128 + number)


def flatten(config: Any) -> dict[str, Scalar]:
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
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    known = flatten_fields(config)
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if key not in known:
            raise UserError(f"{type(config).__name__} has no key {key!r}; it has: {', '.join(sorted(known))}.")
        if rest:
            below.setdefault(head, {})[rest] = value
        else:
            here[head] = value
    for head, inner in below.items():
        here[head] = override(getattr(config, head), inner)
    return typing.cast(ConfigT, dataclasses.replace(typing.cast(Any, config), **here))


def restore(config_type: type[ConfigT], fields: Mapping[str, Any]) -> ConfigT:
    """The config whose `dataclasses.asdict` went through JSON; a field that it does not have is a `UserError`."""
    kinds = typing.get_type_hints(config_type)
    values: dict[str, Any] = {}
    for key, value in fields.items():
        kind = kinds.get(key)
        if kind is None:
            raise UserError(f"{config_type.__name__} has no field {key!r}: was it written by another version?")
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            value = restore(kind, value)
        elif Path in (kind, *typing.get_args(kind)) and value is not None:
            value = Path(value)
        elif isinstance(value, list):
            value = tuple(value)
        values[key] = value
    return config_type(**values)
