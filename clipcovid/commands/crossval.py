"""Cross-validate any training method over folds of patients.

    clipcovid crossval cnn --data data/cxr3 --arch resnet18 --weights none
    clipcovid crossval probe --data data/cxr3 --clip.pretrained openai --folds 10

Gives the mean ± sd of the folds, and the pooled predictions' scores. Each fold chooses its epoch and settings on patients
of its own. Killed and run again, it goes on with the fold where it was.
"""

from dataclasses import dataclass

from clipcovid.methods.registry import AnyMethod
from clipcovid.workflows.crossval import cross_validate


@dataclass(frozen=True, kw_only=True)
class CrossvalConfig:
    """The method, and the number of folds."""

    method: AnyMethod
    """The method, with all its flags."""
    folds: int = 5
    """The number of parts that the patients are divided into."""


def main(config: CrossvalConfig) -> None:
    """Train every fold, then score them together."""
    cross_validate(config.method, config.folds)
