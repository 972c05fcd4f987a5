"""Tasks that read the embeddings of a frozen encoder: of all training images, or of a few shots a class."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from clipcovid.config import ImagesConfig, UserError
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest
from clipcovid.methods.configs import FewShotConfig
from clipcovid.methods.task import Batch, Examples, Task, target_reader

FewShotConfigT = TypeVar("FewShotConfigT", bound=FewShotConfig)


class FewShotTask(Task[FewShotConfigT, Embeddings]):
    """A task whose examples are embeddings, which are its state too."""

    def __init__(self, config: FewShotConfigT, classes: Sequence[str], images: ImagesConfig) -> None:
        super().__init__(config, classes, images)
        self.validate_every = max(1, config.optim.epochs // 10)

    def setup(self, data: Path, manifest: Manifest, embeddings: Embeddings | None = None) -> Embeddings:
        """The embeddings, which must have been made; their absence is a `UserError`."""
        if embeddings is None:
            raise UserError(f"{self.config.task} needs embeddings: run clipcovid embed first.")
        return embeddings

    def examples(
        self, data: Path, manifest: Manifest, split: str, state: Embeddings, *, training: bool = False
    ) -> Examples:
        """The split's labelled images by their embeddings; for training as many shots a class as asked for."""
        rows, notes = manifest.rows_with(split, self.config.required_columns)
        if len(self.config.shots) > 1:
            command = self.config.task.replace("_", "-")
            raise UserError(f"Several numbers of --shots are a curve, which clipcovid {command} draws: give one.")
        if training and self.config.shots != ("all",):
            shots = int(self.config.shots[0])
            shuffled = rows.sample(frac=1, random_state=np.random.default_rng([self.config.seed, self.config.draw]))
            drawn = shuffled.groupby("label").head(shots)
            notes["labelled images are not among the shots"] = len(rows) - len(drawn)
            rows = drawn.sort_index().reset_index(drop=True)
        features = state.load(rows["image_id"]).astype(np.float32)
        targets = target_reader(rows, self.classes, self.class_weighting if training else "none")
        return Examples(
            rows=rows, notes=notes, read=lambda indices: {"embedding": features[indices]} | targets(indices)
        )


def read_all(examples: Examples) -> Batch:
    """All examples in one batch: `embedding` float32 (n, d), `label` int64 (n,)."""
    return examples.read(np.arange(len(examples)))
