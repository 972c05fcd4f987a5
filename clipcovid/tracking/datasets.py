"""The data of a run as MLflow shows them: a data set for each split, with digest, schema and counts, but no image."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcovid.data.manifest import Manifest

CONTEXT_TAG = "mlflow.data.context"  # says what a run used a data set for: here the split
TRAINING_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class TrackedDataset:
    """A split of a prepared data set; small, so that a training's driver can hand it to the worker that reports."""

    name: str
    """The data set's and the split's: MLflow keeps one data set of a name and digest in a run."""
    split: str
    """train, val, test, or all; MLflow's context."""
    digest: str
    """The manifest's hash."""
    folder: str
    """Where the prepared data are, or ""."""
    columns: dict[str, str]
    """Column of the manifest → MLflow's type, string or integer."""
    images: int
    patients: int
    """Those that are known."""
    classes: dict[str, int]
    """Class → images."""

    def to_input(self) -> Any:
        """MLflow's `DatasetInput`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        schema = [{"type": kind, "name": name, "required": True} for name, kind in self.columns.items()]
        profile = {"num_rows": self.images, "num_patients": self.patients, "classes": self.classes}
        dataset = Dataset(
            name=self.name[:500],
            digest=self.digest,
            source_type="local",
            source=json.dumps({"uri": self.folder}),
            schema=json.dumps({"mlflow_colspec": schema}),
            profile=json.dumps(profile, ensure_ascii=False),
        )
        return DatasetInput(dataset, [InputTag(CONTEXT_TAG, self.split)])


def describe_data(manifest: Manifest, folder: Path | None, splits: Sequence[str]) -> tuple[TrackedDataset, ...]:
    """The splits of a manifest that have images. `folder`: where the prepared data are; a split may be all."""
    counts = manifest.table["split"].value_counts()
    numbers = set(manifest.table.select_dtypes("number").columns)
    columns = {str(name): "integer" if name in numbers else "string" for name in manifest.table}
    described = []
    for split in splits:
        if split != "all" and not counts.get(split, 0):
            continue
        rows = manifest.rows(split)
        labels = rows["label"].value_counts()
        described.append(
            TrackedDataset(
                name=manifest.dataset if split == "all" else f"{manifest.dataset} {split}",
                split=split,
                digest=manifest.content_hash,
                folder=str(folder.resolve()) if folder else "",
                columns=columns,
                images=len(rows),
                patients=int(rows.loc[rows["patient_id"] != "", "patient_id"].nunique()),
                classes={name: int(labels.get(name, 0)) for name in manifest.classes},
            )
        )
    return tuple(described)
