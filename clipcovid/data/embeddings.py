"""Image embeddings on disk, keyed by image: what zero-shot, probes, prompt sweeps and search read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from clipcovid.config import UserError
from clipcovid.io.arrow_tables import positions_in


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Where a data set's embeddings by one encoder are, and what made them."""

    folder: Path
    encoder: dict[str, Any]
    created: bool
    """False where everything had been done before."""
    cache: Path | None = None
    """Where what is made of them goes, if it can't stand beside them."""

    def derived_path(self, name: str) -> Path:
        """The place of a file that is made of them: in their folder, or in the cache where it can't be written there."""
        path = self.folder / name
        return path if self.cache is None or path.exists() else self.cache / name

    def load(self, image_ids: pd.Series) -> np.ndarray:
        """Embeddings of these images: float16 (n, d), rows of L2 norm 1; a missing one is a `UserError`."""
        table = pq.read_table(self.folder)
        positions = positions_in(image_ids, table["image_id"])
        if missing := int((positions < 0).sum()):
            raise UserError(f"{self.folder} lacks {missing} images: delete it and embed again.")
        column = table["embedding"].combine_chunks()
        return column.flatten().to_numpy().reshape(len(table), -1)[positions]
