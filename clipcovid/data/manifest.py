"""The manifest: one row an image, with splits by patient. No torch and no Ray here.

`manifest.parquet` has the columns of `COLUMNS` as text ("" where unknown; width and height are integers), then whatever
further columns the source brought, as text. The classes, the data set's name and the hashes stand in the Parquet metadata.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from clipcovid.config import UserError
from clipcovid.files import read_parquet, write_parquet

TEXT_COLUMNS = (
    "image_id",
    "path",
    "label",
    "patient_id",
    "split",
    "source",
    "view",
    "caption",
    "lung_mask",
    "infection_mask",
    "boxes",
    "sha256",
)
COLUMNS = (*TEXT_COLUMNS[:-1], "width", "height", "sha256")
MASKS = ("lung_mask", "infection_mask")
SPLITS = ("train", "val", "test")  # from the least to the most strictly kept apart
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared data set's table and what is known of it as a whole."""

    table: pd.DataFrame
    """One row an image, the columns of `COLUMNS` first."""
    classes: tuple[str, ...]
    """Class names, in the order of every probability table."""
    dataset: str
    """The data set's name."""
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further facts kept in the metadata: the pack hash, how it was prepared, what was found."""

    def __post_init__(self) -> None:
        if missing := [column for column in COLUMNS if column not in self.table]:
            raise UserError(f"The manifest lacks the columns {', '.join(missing)}.")
        ids = self.table["image_id"]
        if not ids.is_unique:
            raise UserError(f"The manifest has image_id {ids[ids.duplicated()].iloc[0]!r} more than once.")
        if unknown := set(self.table["split"]) - set(SPLITS):
            raise UserError(f"The manifest has splits {sorted(unknown)}; they must be of {', '.join(SPLITS)}.")
        if unknown := set(self.table["label"]) - {"", *self.classes}:
            raise UserError(f"The manifest has labels {sorted(unknown)}, which are not among {list(self.classes)}.")

    @property
    def content_hash(self) -> str:
        """SHA-256 (16 hex digits) of every cell of the table."""
        return _table_hash(self.table)

    @property
    def split_hash(self) -> str:
        """SHA-256 (16 hex digits) of the sorted (image_id, label, patient_id, split): what may be compared with what."""
        columns = ["image_id", "label", "patient_id", "split"]
        return _table_hash(self.table[columns].sort_values("image_id"))

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of one split, or of all for `all`; an unknown or empty split is a `UserError`."""
        if split != "all" and split not in SPLITS:
            raise UserError(f"--split {split!r} is unknown: use {', '.join(SPLITS)} or all.")
        rows = self.table if split == "all" else self.table[self.table["split"] == split]
        if rows.empty:
            raise UserError(f"The split {split!r} of {self.dataset} has no images.")
        return rows.reset_index(drop=True)


def _table_hash(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_json(orient="values").encode()).hexdigest()[:16]


def conform(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with every manifest column, in order, as text ("" for missing), width and height as int32 (0 unknown)."""
    table = table.copy()
    for column in COLUMNS:
        if column not in table:
            table[column] = 0 if column in ("width", "height") else ""
    extra = [str(column) for column in table if column not in COLUMNS]
    for column in [*TEXT_COLUMNS, *extra]:
        table[column] = table[column].astype(object).where(table[column].notna(), "").map(_text)
    for column in ("width", "height"):
        table[column] = table[column].astype("int32")
    return table[[*COLUMNS, *extra]].reset_index(drop=True)


def _text(value: Any) -> str:
    """Text of a cell; a whole number that pandas read as a float (because others were missing) loses its `.0`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if not isinstance(value, (list, dict)) else json.dumps(value)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.parquet` into `folder`, whole or not at all."""
    meta = manifest.info | {
        "classes": list(manifest.classes),
        "dataset": manifest.dataset,
        "content_hash": manifest.content_hash,
        "split_hash": manifest.split_hash,
    }
    write_parquet(folder / "manifest.parquet", manifest.table, meta)


def read_manifest(folder: Path | str) -> Manifest:
    """Read a prepared folder's manifest; a missing, unfinished or altered one is a `UserError`."""
    path = Path(folder) / "manifest.parquet"
    if not path.exists():
        raise UserError(
            f"{folder} is not a prepared data set (it has no manifest.parquet): run "
            f"`python jobs/prepare.py --source … --root … --out {folder}` first."
        )
    table, meta = read_parquet(path)
    meta = meta or {}
    known = {"classes", "dataset", "content_hash", "split_hash"}
    if missing := known - set(meta):
        raise UserError(f"{path} lacks {', '.join(sorted(missing))} in its metadata: prepare the data set again.")
    manifest = Manifest(
        table=table,
        classes=tuple(meta["classes"]),
        dataset=meta["dataset"],
        info={key: value for key, value in meta.items() if key not in known},
    )
    if manifest.content_hash != meta["content_hash"]:
        raise UserError(f"{path} was changed after it was written: prepare the data set again.")
    return manifest


def groups(table: pd.DataFrame) -> pd.Series:
    """The unit that splits and intervals keep together: the patient, or the image itself where none is known."""
    return table["patient_id"].where(table["patient_id"] != "", "image:" + table["image_id"])


def stricter(splits: pd.Series) -> str:
    """The strictest of some splits: test before val before train; "" where none is given."""
    return max(splits, key=lambda split: SPLITS.index(split) if split else -1)


def assign_splits(table: pd.DataFrame, *, val: float, test: float, seed: int) -> pd.Series:
    """Splits for all rows: those given stay; patients without one are spread by class, seeded, a patient in one split.

    Patients are taken in the order of a hash of (seed, patient), each into the split that its stratum (the set of labels
    it has) lacks most images in, so that the same patient tends to stay where it is when others are added.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UserError(f"--val {val} and --test {test} must be shares of the images that leave some for training.")
    group = groups(table)
    given = table.groupby(group)["split"].agg(stricter)
    label_sets = table.groupby(group)["label"].agg(lambda labels: "|".join(sorted(set(labels))))
    sizes = group.value_counts()
    order = sorted(given.index, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    shares = {"train": 1 - val - test, "val": val, "test": test}
    totals = sizes.groupby(label_sets.reindex(sizes.index)).sum()
    taken = {stratum: dict.fromkeys(SPLITS, 0) for stratum in totals.index}
    for name in order:
        if given[name]:
            continue
        stratum = label_sets[name]
        lacks = {split: shares[split] * totals[stratum] - taken[stratum][split] for split in SPLITS if shares[split]}
        given[name] = max(lacks, key=lambda split: lacks[split])
        taken[stratum][given[name]] += sizes[name]
    return table["split"].where(table["split"] != "", group.map(given))


def split_patients(table: pd.DataFrame) -> int:
    """How many known patients stand in more than one split."""
    known = table[table["patient_id"] != ""]
    return int((known.groupby("patient_id")["split"].nunique() > 1).sum())


def duplicates(table: pd.DataFrame) -> dict[str, int]:
    """Images with the pixels of another: `within` one split, and `across` splits (counting the images beyond the first)."""
    across = within = 0
    for _, splits in table[table["sha256"] != ""].groupby("sha256")["split"]:
        kinds = splits.nunique()
        across += kinds - 1
        within += len(splits) - kinds
    return {"within": within, "across": across}
