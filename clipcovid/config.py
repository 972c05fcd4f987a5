"""Configuration: frozen dataclasses, the command line made from them, and what makes two runs the same run."""

import dataclasses
import hashlib
import io
import json
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import tyro

Scalar = str | int | float | bool | None
ConfigT = TypeVar("ConfigT")

RESEARCH_ONLY = "Research use only, not for diagnosis."


class UserError(ValueError):
    """A user's mistake. Its text is one sentence that says what is wrong and the way out; jobs end with status 2."""


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

    def __post_init__(self) -> None:
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
    """An open_clip weights tag, a .safetensors or .pt file, a checkpoint or run folder, or none for random weights."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Weights and arithmetic. auto: bf16 where the GPU or the CPU (AMX, AVX512-BF16) computes in it, else fp32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What to ask of the cluster. Nothing here changes a result's identity."""

    address: str = "auto"
    """auto: the running Ray cluster (RAY_ADDRESS, or one on this machine), else a local one. local: always a local one."""
    workers: int | None = None
    """Parallel workers (actors or tasks). Default: chosen from what the cluster has."""
    cpus_per_worker: float | None = None
    """CPU cores reserved for a worker. Default: the cluster's cores shared out."""
    gpus_per_worker: float | None = None
    """GPUs reserved for a worker, fractions allowed. Default: 1 where the cluster has GPUs, else 0."""
    threads: int | None = None
    """Compute threads in a worker. Default: its cores, rounded up."""
    batch_size: int | None = None
    """Images in a forward pass. Default: 256 on a GPU, 32 on a CPU."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--compute.{name.replace('_', '-')} {value} must be at least 1.")
        for name in ("cpus_per_worker", "gpus_per_worker"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"--compute.{name.replace('_', '-')} {value} must not be negative.")


def from_cli(config_type: type[ConfigT], description: str, args: list[str] | None = None) -> ConfigT:
    """Parse `args` (default: the command line) into `config_type`; a bad flag ends the process with status 2."""
    return tyro.cli(config_type, description=description, args=args)


def run_job(config_type: type[ConfigT], main: Callable[[ConfigT], None], description: str | None) -> None:
    """Run a job from the command line: exit status 0 when done, 2 for a user's mistake, 1 for a failure."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a caption's odd character must not end a job on an ASCII terminal
    config = from_cli(config_type, description or "")
    try:
        main(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("Interrupted: run the same command again to go on where it stopped.", file=sys.stderr)
        raise SystemExit(130) from None


def flatten(config: Any) -> dict[str, Scalar]:
    """Dotted key → scalar for every field of a (nested) config; tuples become comma-separated text."""
    flat: dict[str, Scalar] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{key}": inner for key, inner in flatten(value).items()}
        elif isinstance(value, tuple):
            flat[field.name] = ",".join(map(str, value))
        else:
            flat[field.name] = value
    return flat


def override(config: ConfigT, changes: Mapping[str, Any]) -> ConfigT:
    """A copy of `config` with dotted keys replaced, e.g. `{"optim.lr": 1e-4}`; an unknown key is a `UserError`."""
    here: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    known = flatten(config)
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


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def identity(config: Any, **hashes: str) -> dict[str, Scalar]:
    """What makes two runs the same run: the config without compute, out, name and the data's path, plus `hashes`."""
    left_out = {"compute", "out", "name", "data"}
    kept = {key: value for key, value in flatten(config).items() if key.split(".")[0] not in left_out}
    return kept | hashes
