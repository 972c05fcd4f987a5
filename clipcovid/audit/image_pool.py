"""All images of an audit, the audited set's first, under one numbering."""

import dataclasses
import json

import numpy as np
import pandas as pd

from clipcovid.audit.data import AuditData, PreparedSet, to_gray
from clipcovid.audit.near_duplicates import Search
from clipcovid.data.embeddings import Embeddings

POOL_COLUMNS = ["image_id", "label", "patient_id", "split", "sha256"]
SET_SPECIFIC_KEYS = ("manifest", "shard")  # of an encoder's identity


@dataclasses.dataclass(frozen=True)
class ImagePool:
    """The images of several prepared sets by their position among all of them."""

    sets: tuple[PreparedSet, ...]
    table: pd.DataFrame
    """`set` (the number of the set), then `POOL_COLUMNS`; a row an image."""

    @classmethod
    def from_data(cls, data: AuditData) -> "ImagePool":
        """The images of the audited set, then those of the others."""
        parts = [part.table[POOL_COLUMNS].assign(set=number) for number, part in enumerate(data.sets)]
        return cls(data.sets, pd.concat(parts, ignore_index=True))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def thumbnails(self) -> np.ndarray:
        """uint8 (n, 64, 64)."""
        return np.concatenate([part.thumbnails for part in self.sets])

    def read(self, positions: np.ndarray) -> list[np.ndarray]:
        """Gray images, uint8 (s, s) at each set's packed size, at these positions (k,)."""
        numbers = self.table["set"].to_numpy()
        starts = np.searchsorted(numbers, np.arange(len(self.sets)))
        return [to_gray(self.sets[numbers[at]].packed.images([int(at - starts[numbers[at]])])[0]) for at in positions]

    def example(self, position: int) -> tuple[str, str]:
        """The prepared folder and the id of an image."""
        number, name = self.table["set"].iloc[position], self.table["image_id"].iloc[position]
        return str(self.sets[int(number)].folder), str(name)

    def searches(self) -> list[Search]:
        """What to look for among what: everything in each split of the audited set, and the audited set in each other one.

        Images of equal pixels in one group take part once.
        """
        own = self.table["set"] == 0
        group = self.table["set"].astype(str) + self.table["split"].where(own, "")
        again = (self.table["sha256"] != "") & self.table.assign(group=group).duplicated(["group", "sha256"])
        every, audited = np.flatnonzero(~again), np.flatnonzero(own & ~again)
        searches = []
        for name in group.unique():
            there = group == name
            searches.append((every if own[there].all() else audited, np.flatnonzero(there & ~again)))
        return searches

    def embeddings(self) -> tuple[np.ndarray | None, str]:
        """Stored embeddings (n, d) of all images by one encoder, and its name; None where no encoder embedded them all."""
        stored = [_stored_embeddings(part) for part in self.sets]
        for key, (name, _) in stored[0].items():
            if all(key in of_set for of_set in stored):
                loaded = [
                    of_set[key][1].load(part.table["image_id"]) for of_set, part in zip(stored, self.sets, strict=True)
                ]
                return np.concatenate(loaded), name
        return None, ""


def _stored_embeddings(part: PreparedSet) -> dict[str, tuple[str, Embeddings]]:
    """What made each finished store of embeddings of a prepared folder's images → the encoder's name, and the store."""
    from clipcovid.inference.embed import ENCODER_FILE, SUCCESS_MARKER

    stored = {}
    for marker in sorted((part.folder / "embeddings").glob(f"*/{SUCCESS_MARKER}")):
        encoder = json.loads((marker.parent / ENCODER_FILE).read_text(encoding="utf-8"))
        if encoder.get("manifest") == part.manifest.content_hash:
            key = json.dumps({k: v for k, v in encoder.items() if k not in SET_SPECIFIC_KEYS}, sort_keys=True)
            stored[key] = encoder["model"], Embeddings(folder=marker.parent, encoder=encoder, created=False)
    return stored
