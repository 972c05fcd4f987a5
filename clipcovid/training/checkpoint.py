"""The state of a training that is not finished: written at each validation, and enough to go on as if nothing had been."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from clipcovid.config import UserError
from clipcovid.io.files import atomic_write


@dataclass
class TrainingProgress:
    """How far a training is."""

    epoch: int = 0
    """Epochs that are done."""
    best: float | None = None
    """The best validation score so far."""
    best_epoch: int = 0
    """When it was reached."""
    stopped: bool = False
    """Whether early stopping ended it."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The metrics of each validated epoch."""

    @property
    def epochs_without_improvement(self) -> int:
        """Epochs since the best one."""
        return self.epoch - self.best_epoch

    def update(self, score: float, mode: str) -> bool:
        """Take in the validation score of `epoch`; return whether it is better, by `mode` (min or max), than all before."""
        better = max if mode == "max" else min
        improved = self.best is None or (score != self.best and better(score, self.best) == score)
        if improved:
            self.best, self.best_epoch = score, self.epoch
        return improved


def trainable_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters with gradients, and buffers; on the module's own memory."""
    weights = {name: weight.data for name, weight in module.named_parameters() if weight.requires_grad}
    persistent = module.state_dict().keys()
    return weights | {name: value for name, value in module.named_buffers() if name in persistent}


class TrainingCheckpoint:
    """The folder `state/` of a run: `state.pt`, the last validation's, and `best.pt`, the weights of the best one."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity

    def save(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        average: dict[str, torch.Tensor],
        progress: TrainingProgress,
    ) -> None:
        """Write the state, whole or not at all."""
        content = {
            "identity": self.identity,
            "model": trainable_state(module),
            "average": average,
            "optimizer": optimizer.state_dict(),
            "progress": asdict(progress),
        }
        with atomic_write(self.folder / "state.pt") as partial:
            torch.save(content, partial)

    def restore(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, torch.Tensor]
    ) -> TrainingProgress:
        """Load the state into what is given and say how far it is; a new one where there is none.

        A state of another run is a `UserError`.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            return TrainingProgress()
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["identity"] != self.identity:
            raise UserError(f"{path} is the state of another run: choose another --name, or delete {self.folder}.")
        self._copy(content["model"], trainable_state(module))
        self._copy(content["average"], average)
        groups = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(content["optimizer"])
        for group, settings in zip(optimizer.param_groups, groups, strict=True):  # an adopted state has another's
            group.update(settings)
        names = {entry.name for entry in fields(TrainingProgress)}  # older versions kept more
        return TrainingProgress(**{name: value for name, value in content["progress"].items() if name in names})

    def fork_from(self, folder: Path) -> None:
        """Go on where the training whose `state/` is `folder` was, with another config; what was best counts anew."""
        content = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        progress = TrainingProgress(epoch=content["progress"]["epoch"])
        content |= {"identity": self.identity, "progress": asdict(progress)}
        with atomic_write(self.folder / "state.pt") as partial:
            torch.save(content, partial)

    def save_best(self, weights: dict[str, torch.Tensor]) -> None:
        """Keep these weights as the best so far."""
        with atomic_write(self.folder / "best.pt") as partial:
            torch.save(weights, partial)

    def restore_best(self, module: torch.nn.Module) -> None:
        """Load the best weights into the module."""
        self._copy(torch.load(self.folder / "best.pt", map_location="cpu", weights_only=True), trainable_state(module))

    @staticmethod
    def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
        if source.keys() != target.keys():
            raise UserError("The saved state has other weights than the model: was it written by another version?")
        for name, value in target.items():
            value.copy_(source[name])
