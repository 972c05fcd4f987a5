"""What is searched for each task: dotted config key → distribution. A test holds that each key is one of the config's.

A file of the same shape can be given with `--space`: a YAML mapping of key → {log: [low, high]}, {uniform: [low, high]},
{int: [low, high]} or {choice: [a, b, …]}.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipcovid.config import UserError


@dataclass(frozen=True)
class Range:
    """Numbers from one to another."""

    low: float
    high: float

    @property
    def values(self) -> tuple[Any, ...]:
        """The ends, which a config must take."""
        return self.low, self.high


class Log(Range):
    """Any number between two, all orders of magnitude alike."""


class Uniform(Range):
    """Any number between two."""


class Int(Range):
    """Any whole number from one to another."""


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]


Distribution = Log | Uniform | Int | Choice
Space = dict[str, Distribution]

_OPTIM: Space = {
    "optim.lr": Log(1e-5, 1e-2),
    "optim.weight_decay": Log(1e-4, 0.3),
    "optim.batch_size": Choice((16, 32, 64)),
}
_AUGMENT: Space = {
    "augment.rotate": Uniform(0, 20),
    "augment.scale": Uniform(0, 0.3),
    "augment.intensity": Uniform(0, 0.4),
}
SPACES: dict[str, Space] = {
    "cnn": _OPTIM | _AUGMENT | {"label_smoothing": Uniform(0, 0.2), "class_weights": Choice(("none", "balanced"))},
    "hybrid": _OPTIM | _AUGMENT | {"join": Choice(("add", "concat")), "label_smoothing": Uniform(0, 0.2)},
    "probe": {
        "optim.lr": Log(1e-3, 1e-1),
        "head": Choice(("linear", "mlp")),
        "hidden": Choice((64, 256, 1024)),
        "label_smoothing": Uniform(0, 0.2),
    },
    "coop": {
        "optim.lr": Log(1e-4, 1e-1),
        "words": Choice((1, 4, 8, 16)),
        "per_class": Choice((False, True)),
    },
    "tip_adapter": {"optim.lr": Log(1e-5, 1e-2), "optim.epochs": Choice((5, 20, 50))},
    "finetune": {
        "optim.lr": Log(1e-6, 1e-3),
        "optim.weight_decay": Log(1e-3, 0.5),
        "optim.batch_size": Choice((32, 64, 128)),
        "method": Choice(("full", "lora", "vision")),
        "loss": Choice(("clip", "multi-positive", "siglip")),
    },
    "caption": {
        "optim.lr": Log(1e-5, 3e-3),
        "optim.weight_decay": Log(1e-4, 0.3),
        "optim.batch_size": Choice((32, 64, 128)),
        "loss": Choice(("soft", "clip", "multi-positive", "siglip")),
        "projection": Choice(("linear", "mlp")),
    },
    "captioner": {
        "optim.lr": Log(1e-5, 3e-3),
        "optim.weight_decay": Log(1e-4, 0.3),
        "prefix": Int(2, 16),
        "dropout": Uniform(0, 0.4),
    },
    "segment": _OPTIM
    | {"loss": Choice(("dice-bce", "dice-focal", "tversky", "dice-boundary")), "augment.intensity": Uniform(0, 0.4)},
}
MUTABLE = ("optim.lr", "optim.weight_decay", "optim.clip_norm", "label_smoothing", "class_weights", "box_fill")
"""Keys that may change while a model is trained, as all of augment may."""
ENCODER = ("input", "shots", "draw")
"""Keys that say, as all of clip does, what embeddings a method reads: all trials of a sweep read the same."""
_KINDS: dict[str, Any] = {"log": Log, "uniform": Uniform, "int": Int}


def read_space(path: Path) -> Space:
    """The space of a YAML file; what is no distribution is a `UserError`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--space {path} can't be read ({str(error).splitlines()[0]}).") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"--space {path} must be a mapping of config keys to distributions.")
    return {str(key): _distribution(key, value, path) for key, value in content.items()}


def _distribution(key: object, value: Any, path: Path) -> Distribution:
    if isinstance(value, dict) and len(value) == 1:
        ((kind, given),) = value.items()
        numbers = isinstance(given, list) and all(isinstance(one, int | float) for one in given)
        if kind == "choice" and isinstance(given, list) and given:
            return Choice(tuple(given))
        if (
            kind in _KINDS
            and numbers
            and len(given) == 2
            and (0 if kind == "log" else float("-inf")) < given[0] < given[1]
        ):
            made: Distribution = _KINDS[kind](*given)
            return made
    raise UserError(
        f"--space {path}: {key} must be {{log: [low, high]}}, {{uniform: [low, high]}}, {{int: [low, high]}} or "
        f"{{choice: [a, b, …]}}, not {value!r}."
    )
