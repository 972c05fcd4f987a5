"""The predictions tables of several methods, which must predict the same images; what does not fit is refused by name."""

import dataclasses
import json
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import UserError
from clipcovid.evaluate.predictions import TRAINED_ON, read_predictions
from clipcovid.io.files import METADATA_KEY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One predictions table."""

    name: str
    """What it is called beside the others: the method, with the run's name where two runs share a method."""
    source: str
    """The folder or file as it was named."""
    path: Path
    about: dict[str, Any]
    """What `write_predictions` was told."""
    trained_on: frozenset[str]
    """Ids of predicted images that it learned from. No method is scored on them."""
    table: pd.DataFrame
    """Sorted by image_id, so that the order in the file changes nothing; label and patient_id are text, "" if unknown."""

    @property
    def run(self) -> str:
        """The name of the run that the predictions belong to."""
        return self.path.parent.parent.name if self.path.parent.name == "predictions" else self.path.stem


def find(out: Path, split: str, marker: str) -> list[Path]:
    """The run folders in `out` that have `marker` and classify `split`; none, or several split hashes: `UserError`."""
    groups: dict[str, list[Path]] = {}
    for folder in sorted(path.parent for path in out.glob(f"*/{marker}")):
        about = _about(folder / "predictions" / f"{split}.parquet")
        if about.get("task") == "classification":
            groups.setdefault(about["split_hash"], []).append(folder)
    if not groups:
        raise UserError(f"{out} has no finished run with predictions of {split}: name run folders, --out or --split.")
    if len(groups) > 1:
        told = "; ".join(
            f"{' and '.join(sorted(set(map(_data, runs))))} with split hash {key} ({', '.join(run.name for run in runs)})"
            for key, runs in groups.items()
        )
        raise UserError(f"The runs in {out} predict {len(groups)} different splits, {told}: name those to compare.")
    return next(iter(groups.values()))


def read(paths: Sequence[Path], split: str) -> list[Method]:
    """The predictions of run folders or .parquet files, each once, in the order of their names.

    They must be classifications of one split (by its hash) and of the same images with the same labels, patients and
    classes; what is not is a `UserError` that names the run that differs from most.
    """
    files = {_file(path, split).resolve(): path for path in sorted(paths)}
    methods = [_read(path, str(source)) for path, source in files.items()]
    if not methods:
        raise UserError("There is nothing to compare: name run folders or .parquet files of predictions.")
    for key in ("split", "split_hash", "classes"):
        _same(methods, key)
    methods = _unseen(methods)
    _same_images(methods)
    for more in ("run", "source"):
        names = Counter(method.name for method in methods)
        methods = [
            dataclasses.replace(method, name=f"{method.about['method']} ({getattr(method, more)})")
            if names[method.name] > 1
            else method
            for method in methods
        ]
    return methods


def _about(path: Path) -> dict[str, Any]:
    """What a predictions table says about itself, without its rows; {} where there is none."""
    try:
        return json.loads((pq.read_schema(path).metadata or {}).get(METADATA_KEY, "{}"))
    except FileNotFoundError:
        return {}
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); name the runs to compare.") from None


def _data(run: Path) -> str:
    about = run / "config.json"
    told = json.loads(about.read_text(encoding="utf-8")).get("config", {}) if about.exists() else {}
    return str(told.get("data", "unknown data"))


def _file(path: Path, split: str) -> Path:
    if path.is_file() or path.suffix == ".parquet":
        return path
    file = path / "predictions" / f"{split}.parquet"
    if file.exists():
        return file
    there = ", ".join(sorted(other.stem for other in file.parent.glob("*.parquet")))
    way = f"it has those of {there}: choose a --split." if there else "name the folders of finished runs."
    raise UserError(f"{path} has no predictions of {split}; {way}")


def _read(path: Path, source: str) -> Method:
    table, about = read_predictions(path)
    if lacks := {"method", "task", "identity", "manifest_hash", "split_hash", "split", "classes"} - about.keys():
        raise UserError(f"{source} is no predictions table: its metadata lack {', '.join(sorted(lacks))}.")
    if about["task"] != "classification":
        raise UserError(f"The task of {source} is {about['task']}; only classifications are compared: leave it out.")
    for column in ("label", "patient_id"):
        table[column] = table[column].fillna("").astype(str) if column in table else ""
    if unknown := int((table["label"] == "").sum()):
        raise UserError(f"{unknown} of {len(table)} images in {source} have no label, so they can't be compared.")
    known = table.pop(TRAINED_ON) if TRAINED_ON in table else pd.Series(False, index=table.index)
    return Method(
        name=about["method"],
        source=source,
        path=path,
        about=about,
        trained_on=frozenset(table["image_id"][known]),
        table=table.sort_values("image_id", ignore_index=True),
    )


def _unseen(methods: Sequence[Method]) -> list[Method]:
    """The methods without the images that any of them learned from; where none is left: `UserError`."""
    known = frozenset().union(*(method.trained_on for method in methods))
    if not known:
        return list(methods)
    tables = [method.table[~method.table["image_id"].isin(known)].reset_index(drop=True) for method in methods]
    if any(table.empty for table in tables):
        named = ", ".join(method.source for method in methods if method.trained_on)
        raise UserError(f"There is no image to compare that none of {named} learned from: predict other data.")
    return [dataclasses.replace(method, table=table) for method, table in zip(methods, tables, strict=True)]


def _odd(values: Sequence[Hashable]) -> tuple[int, int] | None:
    """Where a value stands that is not the most common one, and where that one does; None where all are equal."""
    common = Counter(values).most_common(1)[0][0]
    odd = [at for at, value in enumerate(values) if value != common]
    return (odd[0], values.index(common)) if odd else None


def _same(methods: Sequence[Method], key: str) -> None:
    values = [method.about[key] for method in methods]
    told = [", ".join(sorted(value)) if isinstance(value, list) else str(value) for value in values]
    if found := _odd(told):
        odd, common = found
        data = [_data(methods[at].path.parent.parent) for at in found]
        of = f"; they predict {data[0]} and {data[1]}" if data[0] != data[1] else ""
        raise UserError(
            f"The {key.replace('_', ' ')} of {methods[odd].source} is {told[odd]}, but that of {methods[common].source} "
            f"is {told[common]}{of}: compare what predicts the same."
        )


def _same_images(methods: Sequence[Method]) -> None:
    if found := _odd([tuple(method.table["image_id"]) for method in methods]):
        one, other = (methods[at] for at in found)
        own, others = set(one.table["image_id"]), set(other.table["image_id"])
        raise UserError(
            f"{one.source} lacks {len(others - own)} of the images that {other.source} predicts and has "
            f"{len(own - others)} that it has not, the first of all is {min(own ^ others)!r}: predict the same images."
        )
    for column, called in (("label", "the label"), ("patient_id", "the patient")):
        if found := _odd([tuple(method.table[column]) for method in methods]):
            one, other = (methods[at] for at in found)
            differ = np.flatnonzero(one.table[column] != other.table[column])
            at = differ[0]
            raise UserError(
                f"{one.source} has {called} {one.table[column][at]!r} for image {one.table['image_id'][at]!r}, but "
                f"{other.source} has {other.table[column][at]!r} ({len(differ)} images differ): predict the same data."
            )
