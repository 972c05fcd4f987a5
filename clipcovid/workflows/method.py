"""A method's command: a training or a few-shot curve, with what is printed before and after it."""

from rich.console import Console

from clipcovid.config import TrainConfig
from clipcovid.evaluate.captions import java_note
from clipcovid.evaluate.console import print_variants
from clipcovid.evaluate.report import stored_scores
from clipcovid.methods.configs import FewShotConfig
from clipcovid.methods.registry import METHODS
from clipcovid.workflows.few_shot import few_shot
from clipcovid.workflows.train import train


def train_method(config: TrainConfig) -> None:
    """Train as a method's config says: once, or with several numbers of `shots` a curve of trainings."""
    method = METHODS[config.task]
    if method.kind == "captions" and (note := java_note()):
        print(f"note: {note}")
    if isinstance(config, FewShotConfig) and len(config.shots) > 1:
        few_shot(config)
        return
    run = train(config).run
    if method.compares_initial:
        print_variants(stored_scores(run), "test", Console())
