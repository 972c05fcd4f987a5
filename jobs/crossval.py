"""Cross-validate any training method over folds of patients: mean ± sd of the folds, and the pooled predictions' scores.

    python jobs/crossval.py cnn --data data/cxr3 --arch resnet18 --weights none
    python jobs/crossval.py probe --data data/cxr3 --clip.pretrained openai --folds 10

Each fold chooses its epoch and settings on patients of its own. Killed and run again, it goes on with the fold where it was.
"""

from dataclasses import dataclass

from clipcovid.config import run_job
from clipcovid.methods.registry import AnyMethod
from clipcovid.workflows.train import cross_validate


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which method, over how many folds."""

    method: AnyMethod
    """The method, with all its flags."""
    folds: int = 5
    """Into how many parts the patients are divided."""


def main(config: Config) -> None:
    """Train every fold, then score them together."""
    cross_validate(config.method, config.folds)


if __name__ == "__main__":
    run_job(Config, main, __doc__)
