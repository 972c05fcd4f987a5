"""Cross-validate any training method over folds of patients: mean ± sd of the folds, and the pooled predictions' scores.

    python jobs/crossval.py cnn --data data/cxr3 --arch resnet18 --weights none
    python jobs/crossval.py --folds 10 probe --data data/cxr3 --clip.pretrained openai

Each fold chooses its epoch and settings on patients of its own. Killed and run again, it goes on with the fold where it was.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from clipcovid.config import run_job
from clipcovid.pipeline import cross_validate
from clipcovid.tasks.configs import (
    CaptionConfig,
    CaptionerConfig,
    CnnConfig,
    FinetuneConfig,
    HybridConfig,
    ProbeConfig,
    SegmentConfig,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which method, over how many folds."""

    method: Annotated[
        Annotated[CnnConfig, tyro.conf.subcommand("cnn")]
        | Annotated[ProbeConfig, tyro.conf.subcommand("probe")]
        | Annotated[FinetuneConfig, tyro.conf.subcommand("finetune")]
        | Annotated[HybridConfig, tyro.conf.subcommand("hybrid")]
        | Annotated[CaptionConfig, tyro.conf.subcommand("caption")]
        | Annotated[CaptionerConfig, tyro.conf.subcommand("captioner")]
        | Annotated[SegmentConfig, tyro.conf.subcommand("segment")],
        tyro.conf.arg(name=""),
    ]
    """The method, with all its flags."""
    folds: int = 5
    """Into how many parts the patients are divided."""


def main(config: Config) -> None:
    """Train every fold, then score them together."""
    cross_validate(config.method, config.folds)


if __name__ == "__main__":
    run_job(Config, main, __doc__)
