"""Linear and MLP probes: the config."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from clipcovid.config import OptimConfig, UserError
from clipcovid.methods.configs import FewShotConfig
from clipcovid.methods.method import Method


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(FewShotConfig):
    """A linear or MLP head on the embeddings of a frozen encoder."""

    task: ClassVar[str] = "probe"
    head: Literal["linear", "mlp"] = "linear"
    """linear: logistic regression. mlp: one hidden layer."""
    hidden: int = 256
    """Width of the MLP's hidden layer."""
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Strengths of the L2 penalty that are all trained, and of which the validation split chooses one."""
    optim: OptimConfig = OptimConfig(
        epochs=100, batch_size=1024, lr=0.01, weight_decay=0, clip_norm=0, keep="last", precision="fp32"
    )
    """How it is trained: to the end, where the penalty, not the epoch, keeps it from overfitting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalties or min(self.penalties) < 0 or self.hidden < 1:
            raise UserError("--penalties must be numbers of 0 or more, and --hidden at least 1.")

    @property
    def title(self) -> str:
        """What runs are named after."""
        return super().title.replace(self.task, f"probe-{self.head}", 1)


METHOD = Method(ProbeConfig, task="ProbeTask", uses_embeddings=True)
