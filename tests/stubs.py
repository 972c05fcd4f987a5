"""A task so small that its training takes milliseconds: two Gaussian clouds, a linear layer."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from clipcovid.config import ComputeConfig, ImagesConfig, OptimConfig, TrainConfig
from clipcovid.distributed import rank
from clipcovid.methods.classification import ClassificationTask
from clipcovid.methods.configs import NO_AUGMENT
from clipcovid.methods.task import Examples, target_reader
from clipcovid.training.checkpoint import TrainingCheckpoint
from clipcovid.training.loop import DeviceContext, fit

CLASSES = ("a", "b")
MACHINE = DeviceContext(device=torch.device("cpu"), precision="fp32", batch_size=7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StubConfig(TrainConfig):
    """As a classifier's."""

    class_weights: str = "none"
    label_smoothing: float = 0.0


class Stub(ClassificationTask):
    """Logistic regression, or with `deep` a network with dropout and batch norm."""

    column = "x"
    deep = False

    def build(self, train=None, state=None):
        """Drawn from the seed."""
        torch.manual_seed(self.config.seed)
        if not self.deep:
            return torch.nn.Sequential(torch.nn.Linear(4, 2))
        layers = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.3)
        return torch.nn.Sequential(*layers, torch.nn.Linear(8, 2))

    def build_untrained(self, folder):
        """The same."""
        return self.build()


def config(**settings):
    """A config of the stub; `settings` are of its optimizer, or its own."""
    own = {name: settings.pop(name) for name in ("seed", "class_weights", "label_smoothing") if name in settings}
    optim = {"epochs": 4, "batch_size": 12, "lr": 0.05} | settings
    compute = ComputeConfig(threads=1)  # else a busy machine makes them fewer on the way, which round otherwise
    return StubConfig(data=Path("unused"), optim=OptimConfig(**optim), augment=NO_AUGMENT, compute=compute, **own)


def examples(count=50, seed=0, balance="none", bad=None):
    """Points of two overlapping classes; `bad` is a position whose numbers are NaN."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    points = (rng.normal(size=(count, 4)) + labels[:, None]).astype(np.float32)
    if bad is not None:
        points[bad] = np.nan
    rows = pd.DataFrame({"image_id": [f"image-{i}" for i in range(count)], "label": [CLASSES[i] for i in labels]})
    about = target_reader(rows, CLASSES, balance)
    return Examples(rows=rows, read=lambda take: {"x": points[take]} | about(take))


def train(folder, made=None, *, task=None, train_set=None, val_set=None, identity=None, log=None):
    """Fit the stub; its module, progress and what was reported."""
    made = made or config()
    task = task or Stub(made, CLASSES, ImagesConfig())
    module, reports = task.build(), []
    progress = fit(
        task,
        module,
        train_set or examples(),
        val_set or examples(31, seed=1),
        config=made,
        device_context=MACHINE,
        checkpoint=TrainingCheckpoint(Path(folder), identity or {"a": 1}),
        report=reports.append,
        log=log or (lambda text: None),
    )
    return module, progress, reports


def state_of(module):
    """All its numbers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def difference(one, other):
    """The largest difference of two states."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def on_a_rank(folder, settings, deep):
    """What `run_ranks` calls: train on this process's share, and give the weights and the history."""
    task = Stub(config(**settings), CLASSES, ImagesConfig())
    task.deep = deep
    module, progress, _ = train(folder, config(**settings), task=task)
    return state_of(module), [{**line, "seconds": 0, "images_per_s": 0} for line in progress.history], rank()


def stopped_on_a_rank(folder, **settings):
    """What each of the processes says when one of them meets NaN, or worse."""
    try:
        train(folder, config(**settings), train_set=examples(bad=3))
    except ValueError as error:
        return str(error)
    return ""
