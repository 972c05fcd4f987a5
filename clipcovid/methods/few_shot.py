"""What reads the embeddings of a frozen encoder: all training images, or a few shots a class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipcovid.config import ImagesConfig, UserError
from clipcovid.data.manifest import Manifest
from clipcovid.methods.task import Examples, Task, get_targets


class FewShot(Task):
    """A task whose examples are embeddings."""

    features: np.ndarray | None = None
    """Embeddings float32 (n, d) of the training examples, once they were asked for; `build` needs them."""
    labels: np.ndarray | None = None
    """Their class numbers int64 (n,)."""

    def __init__(self, config: Any, classes: Sequence[str], images: ImagesConfig) -> None:
        super().__init__(config, classes, images)
        self.validate_every = max(1, config.optim.epochs // 10)

    def examples(self, data: Path, manifest: Manifest, split: str, *, training: bool = False) -> Examples:
        """The split's labelled images by their embeddings; for training as many shots a class as asked for."""
        if self.embeddings is None:
            raise UserError(f"{self.config.task} needs embeddings: run clipcovid embed first.")
        rows, notes = manifest.eligible(split, self.config.required_columns)
        if len(self.config.shots) > 1:
            command = self.config.task.replace("_", "-")
            raise UserError(f"Several numbers of --shots are a curve, which clipcovid {command} draws: give one.")
        if training and self.config.shots != ("all",):
            shots = int(self.config.shots[0])
            shuffled = rows.sample(frac=1, random_state=np.random.default_rng([self.config.seed, self.config.draw]))
            drawn = shuffled.groupby("label").head(shots)
            notes["labelled images are not among the shots"] = len(rows) - len(drawn)
            rows = drawn.sort_index().reset_index(drop=True)
        features = self.embeddings.load(rows["image_id"]).astype(np.float32)
        about = get_targets(rows, self.classes, self.balance if training else "none")
        if training:
            self.features, self.labels = features, about(np.arange(len(rows)))["label"]
        return Examples(rows=rows, notes=notes, read=lambda take: {"embedding": features[take]} | about(take))
