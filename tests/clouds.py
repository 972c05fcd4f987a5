"""Embeddings of made-up images, and what trains on them."""

import numpy as np
import pandas as pd
import torch

from clipcovid.config import ImagesConfig, resolve_defaults, resolve_schedule
from clipcovid.data.manifest import Manifest, normalize_columns
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.methods.task import make_task
from clipcovid.training.checkpoint import TrainingCheckpoint
from clipcovid.training.loop import DeviceContext, fit, predict

CLASSES = ("a", "b", "c")
MACHINE = DeviceContext(device=torch.device("cpu"), precision="fp32")


class Cloud:
    """Embeddings of made-up images: a cloud for each class."""

    def __init__(self, spread=1.5, seed=0):
        rng = np.random.default_rng(seed)
        self.labels = rng.choice(3, 700, p=[0.2, 0.3, 0.5])
        self.features = rng.normal(size=(700, 12)) * spread + np.eye(3, 12)[self.labels] * 3
        self.features = np.c_[self.features, np.ones(700)].astype(np.float16)  # a constant one does no harm
        splits = np.select([np.arange(700) < 400, np.arange(700) < 500], ["train", "val"], "test")
        rows = {"image_id": [f"i{i}" for i in range(700)], "label": [CLASSES[i] for i in self.labels], "split": splits}
        self.manifest = Manifest(table=normalize_columns(pd.DataFrame(rows)), classes=CLASSES, dataset="clouds")

    def load(self, ids):
        return self.features[[int(name[1:]) for name in ids]]

    def part(self, split):
        at = (self.manifest.table["split"] == split).to_numpy()
        return self.features[at].astype(float), self.labels[at]


def train(cloud, folder, kind=ProbeConfig, **settings):
    """Fit a method to a cloud; its task, module, the sets to predict, and what was chosen at the end."""
    config = resolve_schedule(resolve_defaults(kind(data="unused", **settings)), 400)
    task = make_task(config, CLASSES, ImagesConfig())
    state = task.setup("unused", cloud.manifest, cloud)
    train_set = task.examples("unused", cloud.manifest, "train", state, training=True)
    sets = {split: task.examples("unused", cloud.manifest, split, state) for split in ("val", "test")}
    module = task.build(train_set, state)
    fit(
        task,
        module,
        train_set,
        sets["val"],
        config=config,
        device_context=MACHINE,
        checkpoint=TrainingCheckpoint(folder, {}),
        report=lambda line: None,
        log=lambda text: None,
    )

    def validate(predictor):
        return task.validation_scores(sets["val"], predict(predictor, sets["val"], MACHINE))

    choices, _ = task.select_on_validation(module, train_set, state, validate)
    return task, module, sets, choices
