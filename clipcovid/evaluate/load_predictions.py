"""The predictions tables of several methods, which must predict the same images; others are refused by name."""

import dataclasses
import json
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.errors import UserError
from clipcovid.evaluate.kinds.base import Kind
from clipcovid.evaluate.kinds.registry import get_kind, scores_from_json
from clipcovid.evaluate.predictions import TRAINED_ON, read_predictions
from clipcovid.evaluate.scores import Scores
from clipcovid.io.files import METADATA_KEY, read_json_object


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodPredictions:
    """One predictions table."""

    name: str
    """What it is called beside the others: the method, with the run's name where two runs share a method."""
    source: str
    """The folder or file as it was named."""
    path: Path
    metadata: dict[str, Any]
    """The metadata that `write_predictions` was given."""
    trained_on: frozenset[str]
    """Ids of predicted images that it learned from. No method is scored on them."""
    table: pd.DataFrame
    """Sorted by image_id, so that the order in the file changes nothing; label and patient_id are text, "" if unknown."""
    stored_scores: Scores | None = None
    """The scores that the run's metrics.json holds of these predictions."""

    @property
    def run(self) -> str:
        """The name of the run that the predictions belong to."""
        return self.folder.name if self.path.parent.name == "predictions" else self.path.stem

    @property
    def folder(self) -> Path:
        """The run's folder, where the predictions are in one."""
        return self.path.parent.parent


def find_runs(out: Path, split: str, marker: str, kind: str = "classification") -> list[Path]:
    """The run folders in `out` that have `marker` and predictions of `split`, of one kind.

    None, or runs that predict several splits by their hashes, are a `UserError`.
    """
    kind = get_kind(kind).name
    groups: dict[str, list[Path]] = {}
    for folder in sorted(path.parent for path in out.glob(f"*/{marker}")):
        metadata = _metadata(folder / "predictions" / f"{split}.parquet")
        if metadata.get("task") == kind:
            groups.setdefault(metadata["split_hash"], []).append(folder)
    if not groups:
        raise UserError(f"{out} has no finished run with predictions of {split}: name run folders, --out or --split.")
    if len(groups) > 1:
        splits = "; ".join(
            f"{' and '.join(sorted(set(map(_data_of, runs))))} with split hash {key} ({', '.join(run.name for run in runs)})"
            for key, runs in groups.items()
        )
        raise UserError(f"The runs in {out} predict {len(groups)} different splits, {splits}: name those to compare.")
    return next(iter(groups.values()))


def load_method_predictions(
    paths: Sequence[Path], split: str, *, keep_training_images: bool = False
) -> list[MethodPredictions]:
    """The predictions of run folders or .parquet files, each once, in the order of their names.

    They must be of one kind, of one split (by its hash) and of the same images with the same truth, patients and classes;
    what is not is a `UserError` that names the run that differs from most. Images that any of them learned from are left out,
    unless `keep_training_images`.
    """
    files = {_file(path, split).resolve(): path for path in sorted(paths)}
    methods = [_read(path, str(source)) for path, source in files.items()]
    if not methods:
        raise UserError("There is nothing to compare: name run folders or .parquet files of predictions.")
    for key in ("task", "split", "split_hash", "classes"):
        _check_same_metadata(methods, key)
    kind = get_kind(methods[0].metadata["task"])
    methods = [_check_has_truth(method, kind) for method in methods]
    methods = methods if keep_training_images else _drop_training_images(methods)
    _check_same_images(methods, kind)
    for more in ("run", "source"):
        names = Counter(method.name for method in methods)
        methods = [
            dataclasses.replace(method, name=f"{method.metadata['method']} ({getattr(method, more)})")
            if names[method.name] > 1
            else method
            for method in methods
        ]
    return methods


def load_validation(method: MethodPredictions) -> pd.DataFrame | None:
    """The predictions of validation images beside the method's of the test split, without images that it learned from.

    None where there are none, or where it is no test split that was loaded. Those of another run or split are a `UserError`.
    """
    split, dash, variant = method.path.stem.partition("-")
    path = method.path.with_name(f"val{dash}{variant}.parquet")
    if (split, method.path.parent.name) != ("test", "predictions") or not path.exists():
        return None
    validation = _read(path, str(path))
    check_same_run(validation, method)
    unseen = ~validation.table["image_id"].isin(validation.trained_on)
    return validation.table[unseen].reset_index(drop=True)


def check_same_run(validation: MethodPredictions, test: MethodPredictions) -> None:
    """Refuse predictions of two splits that are not of one run of one method: `UserError`."""
    for key in ("identity", "split_hash", "classes"):
        if validation.metadata[key] != test.metadata[key]:
            raise UserError(
                f"{validation.path} has another {key.replace('_', ' ')} than {test.path.name} beside it: run the method "
                "again, or remove the file that is not the run's."
            )


def _metadata(path: Path) -> dict[str, Any]:
    """What a predictions table says of itself, without its rows; {} where there is none."""
    try:
        return json.loads((pq.read_schema(path).metadata or {}).get(METADATA_KEY, "{}"))
    except FileNotFoundError:
        return {}
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); name the runs to compare.") from None


def _data_of(run: Path) -> str:
    """The data folder that a run names in its config."""
    return str(read_json_object(run / "config.json").get("config", {}).get("data", "unknown data"))


def _file(path: Path, split: str) -> Path:
    if path.is_file() or path.suffix == ".parquet":
        return path
    file = path / "predictions" / f"{split}.parquet"
    if file.exists():
        return file
    if (path / "comparison.json").is_file():
        raise UserError(
            f"{path} is a comparison, which has no predictions of its own: name the runs that it compares instead of it. "
            "clipcovid report takes a comparison's folder too, but alone."
        )
    splits = ", ".join(sorted(other.stem for other in file.parent.glob("*.parquet")))
    way = f"it has those of {splits}: choose a --split." if splits else "name the folders of finished runs."
    raise UserError(f"{path} has no predictions of {split}; {way}")


def _read(path: Path, source: str) -> MethodPredictions:
    table, metadata = read_predictions(path)
    if lacks := {"method", "task", "identity", "manifest_hash", "split_hash", "split", "classes"} - metadata.keys():
        raise UserError(f"{source} is no predictions table: its metadata lack {', '.join(sorted(lacks))}.")
    get_kind(metadata["task"]).check_table(table, metadata["classes"], source)
    for column in ("label", "patient_id"):
        table[column] = table[column].fillna("").astype(str) if column in table else ""
    learned = table.pop(TRAINED_ON) if TRAINED_ON in table else pd.Series(False, index=table.index)
    return MethodPredictions(
        name=metadata["method"],
        source=source,
        path=path,
        metadata=metadata,
        trained_on=frozenset(table["image_id"][learned]),
        table=table.sort_values("image_id", ignore_index=True, kind="stable"),
        stored_scores=_stored_scores(path),
    )


def _stored_scores(path: Path) -> Scores | None:
    """The scores that stand in the metrics.json of the run whose predictions these are."""
    if path.parent.name != "predictions":
        return None
    content = read_json_object(path.parent.parent / "metrics.json").get(path.stem)
    return scores_from_json(content) if content else None


def _check_has_truth(method: MethodPredictions, kind: Kind[Any]) -> MethodPredictions:
    """The method, if all of its images can be scored; else `UserError`."""
    images = method.table["image_id"]
    if unknown := images[kind.missing_truth(method.table)].nunique():
        raise UserError(
            f"{unknown} of {images.nunique()} images in {method.source} have no {kind.truth_name}, so they can't be compared."
        )
    return method


def _drop_training_images(methods: Sequence[MethodPredictions]) -> list[MethodPredictions]:
    """The methods without the images that any of them learned from; where none is left: `UserError`."""
    learned = frozenset().union(*(method.trained_on for method in methods))
    if not learned:
        return list(methods)
    tables = [method.table[~method.table["image_id"].isin(learned)].reset_index(drop=True) for method in methods]
    if any(table.empty for table in tables):
        sources = ", ".join(method.source for method in methods if method.trained_on)
        raise UserError(f"There is no image to compare that none of {sources} learned from: predict other data.")
    return [dataclasses.replace(method, table=table) for method, table in zip(methods, tables, strict=True)]


def _outlier(values: Sequence[Hashable]) -> tuple[int, int] | None:
    """The index of a value that is not the most common one, and of that one; None where all are equal."""
    common = Counter(values).most_common(1)[0][0]
    outliers = [index for index, value in enumerate(values) if value != common]
    return (outliers[0], values.index(common)) if outliers else None


def _check_same_metadata(methods: Sequence[MethodPredictions], key: str) -> None:
    values = [method.metadata[key] for method in methods]
    texts = [", ".join(sorted(value)) if isinstance(value, list) else str(value) for value in values]
    if pair := _outlier(texts):
        outlier, common = pair
        data = [_data_of(methods[index].folder) for index in pair]
        of = f"; they predict {data[0]} and {data[1]}" if data[0] != data[1] else ""
        raise UserError(
            f"The {key.replace('_', ' ')} of {methods[outlier].source} is {texts[outlier]}, but that of "
            f"{methods[common].source} is {texts[common]}{of}: compare what predicts the same."
        )


def _check_same_images(methods: Sequence[MethodPredictions], kind: Kind[Any]) -> None:
    image_ids = [tuple(method.table["image_id"].unique()) for method in methods]
    if pair := _outlier(image_ids):
        first, second = (methods[index] for index in pair)
        ours, theirs = (set(image_ids[index]) for index in pair)
        raise UserError(
            f"{first.source} lacks {len(theirs - ours)} of the images that {second.source} predicts and has "
            f"{len(ours - theirs)} that it has not, the first of all is {min(ours ^ theirs)!r}: predict the same images."
        )
    truths = [kind.comparison_truth(method.table) for method in methods]
    for name in [str(name) for name in truths[0] if all(name in truth for truth in truths)]:
        _check_same_values(methods, name, [truth[name].tolist() for truth in truths], image_ids[0])
    patients = [method.table.drop_duplicates("image_id")["patient_id"].tolist() for method in methods]
    _check_same_values(methods, "the patient", patients, image_ids[0])


def _check_same_values(
    methods: Sequence[MethodPredictions], name: str, values: Sequence[list[Any]], image_ids: Sequence[str]
) -> None:
    """Refuse methods that say different things (`values`, a list an image for each method) of the same images."""
    if pair := _outlier([tuple(column) for column in values]):
        first, second = (methods[index] for index in pair)
        ours, theirs = (values[index] for index in pair)
        differ = [row for row in range(len(ours)) if ours[row] != theirs[row]]
        raise UserError(
            f"{first.source} has {name} {ours[differ[0]]!r} for image {image_ids[differ[0]]!r}, but {second.source} has "
            f"{theirs[differ[0]]!r} ({len(differ)} images differ): predict the same data."
        )
