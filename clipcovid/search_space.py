"""Search spaces: dotted config key → distribution. Each method's is in its folder's `space.py`.

A file of the same shape can be given with `--space`: a YAML mapping of key → {log: [low, high]}, {uniform: [low, high]},
{int: [low, high]} or {choice: [a, b, …]}.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml

from clipcovid.config import UserError

if TYPE_CHECKING:
    import numpy as np
    from optuna.distributions import BaseDistribution

PERTURBATIONS = 0.8, 1.25  # of numbers in population based training (Jaderberg et al. 2017)
REDRAW_PROBABILITY = 0.25  # the probability that a choice is drawn anew in it


class Distribution(ABC):
    """What a hyperparameter is drawn from."""

    values: tuple[Any, ...]
    """Values that the config must accept: the bounds, or all choices."""

    @abstractmethod
    def to_ray_tune(self, tune: ModuleType) -> Any:
        """The same in Ray Tune's terms; `tune`: the module `ray.tune`, which is imported in ray_backend alone."""

    @abstractmethod
    def to_optuna(self) -> "BaseDistribution":
        """The same in Optuna's terms."""

    @abstractmethod
    def perturb(self, value: Any, rng: "np.random.Generator") -> Any:
        """A value near `value`, for population based training."""


@dataclass(frozen=True)
class Range(Distribution):
    """Numbers from `low` to `high`."""

    low: float
    high: float

    @property
    def values(self) -> tuple[Any, ...]:  # type: ignore[override]
        """The bounds."""
        return self.low, self.high

    def perturb(self, value: Any, rng: "np.random.Generator") -> Any:
        """A fifth smaller or a quarter larger, within the bounds."""
        return min(self.high, max(self.low, value * float(rng.choice(PERTURBATIONS))))


class LogUniform(Range):
    """Any number of a range, uniform in its logarithm."""

    def to_ray_tune(self, tune: ModuleType) -> Any:
        """Uniform in the logarithm."""
        return tune.loguniform(self.low, self.high)

    def to_optuna(self) -> "BaseDistribution":
        """Uniform in the logarithm."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=True)


class Uniform(Range):
    """Any number of a range."""

    def to_ray_tune(self, tune: ModuleType) -> Any:
        """Uniform."""
        return tune.uniform(self.low, self.high)

    def to_optuna(self) -> "BaseDistribution":
        """Uniform."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high)


class IntUniform(Range):
    """Any integer of a range, both bounds included."""

    def to_ray_tune(self, tune: ModuleType) -> Any:
        """Ray Tune's upper bound is exclusive."""
        return tune.randint(self.low, self.high + 1)

    def to_optuna(self) -> "BaseDistribution":
        """Optuna's upper bound is inclusive."""
        from optuna.distributions import IntDistribution

        return IntDistribution(int(self.low), int(self.high))

    def perturb(self, value: Any, rng: "np.random.Generator") -> int:
        """Rounded to an integer."""
        return round(super().perturb(value, rng))


@dataclass(frozen=True)
class Choice(Distribution):
    """One of several values."""

    values: tuple[Any, ...]

    def to_ray_tune(self, tune: ModuleType) -> Any:
        """Each value as probable as the others."""
        return tune.choice(list(self.values))

    def to_optuna(self) -> "BaseDistribution":
        """Categories without an order."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(list(self.values))

    def perturb(self, value: Any, rng: "np.random.Generator") -> Any:
        """The same, or with probability `REDRAW_PROBABILITY` any of the values."""
        return self.values[int(rng.integers(len(self.values)))] if rng.random() < REDRAW_PROBABILITY else value


Space = dict[str, Distribution]
DISTRIBUTIONS: dict[str, type[Range]] = {"log": LogUniform, "uniform": Uniform, "int": IntUniform}
"""By their names in a file."""

MUTABLE_KEYS = ("optim.lr", "optim.weight_decay", "optim.clip_norm", "label_smoothing", "class_weights", "box_fill")
"""Keys that may change while a model is trained, as all of augment may."""
EMBEDDING_KEYS = ("input", "shots", "draw")
"""Keys that say, as all of clip does, what embeddings a method reads: all trials of a sweep read the same."""


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
        ((name, arguments),) = value.items()
        if name == "choice" and isinstance(arguments, list) and arguments:
            return Choice(tuple(arguments))
        if name in DISTRIBUTIONS and _is_range(arguments, positive=name == "log"):
            return DISTRIBUTIONS[name](*arguments)
    raise UserError(
        f"--space {path}: {key} must be {{log: [low, high]}}, {{uniform: [low, high]}}, {{int: [low, high]}} or "
        f"{{choice: [a, b, …]}}, not {value!r}."
    )


def _is_range(bounds: Any, *, positive: bool) -> bool:
    """Whether they are two numbers, the smaller one first, and where asked above 0."""
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(isinstance(bound, int | float) for bound in bounds):
        return False
    return (0 if positive else float("-inf")) < bounds[0] < bounds[1]
