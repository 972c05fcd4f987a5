"""What the registry knows of a method."""

import importlib
from dataclasses import dataclass
from typing import Any

from clipcovid.config import TrainConfig
from clipcovid.search_space import Space


@dataclass(frozen=True)
class Method:
    """A trainable method: a folder with `config.py`, which defines it as `METHOD`, `task.py` and `space.py`."""

    config: type[TrainConfig]
    """Its config, whose `task` is the method's name, and the folder's."""
    task: str
    """The name of its class in `task.py`."""
    kind: str = "classification"
    """The kind of its predictions: classification, segmentation or captions."""
    uses_embeddings: bool = False
    """Whether it reads the embeddings of a frozen encoder, not images."""
    compares_initial: bool = False
    """Whether the test scores before training are printed beside those after it."""

    def load(self) -> Any:
        """The task's class; imports torch."""
        return getattr(self._module("task"), self.task)

    @property
    def space(self) -> Space:
        """The hyperparameters that a sweep searches where it is given no others."""
        space: Space = self._module("space").SPACE
        return space

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"{self.config.__module__.rpartition('.')[0]}.{name}")
