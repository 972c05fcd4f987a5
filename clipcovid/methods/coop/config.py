"""CoOp, learned prompts: the config."""

from dataclasses import dataclass
from typing import ClassVar

import tyro

from clipcovid.config import OptimConfig, UserError
from clipcovid.methods.configs import FewShotConfig
from clipcovid.methods.method import Method
from clipcovid.prompts import PromptsConfig


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


METHOD = Method(CoopConfig, task="CoopTask", uses_embeddings=True)
