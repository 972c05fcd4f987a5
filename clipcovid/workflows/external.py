"""External testing: every method of a comparison predicted on other prepared data sets, and how much its scores change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from clipcovid.config import UserError, quote_names
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.evaluate.compare import CompareConfig
from clipcovid.evaluate.external_gap import compare_sets, merge_classes, parse_merges
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.load_predictions import MethodPredictions
from clipcovid.evaluate.predictions import TRAINED_ON, read_predictions
from clipcovid.evaluate.scores import ExternalTest
from clipcovid.identity import digest
from clipcovid.inference.predict import PredictConfig, map_labels
from clipcovid.runs import read_run_metadata
from clipcovid.workflows.predict import can_predict, predict_run

Log = Callable[[str], None]


def external_tests(config: CompareConfig, methods: Sequence[MethodPredictions], log: Log = print) -> list[ExternalTest]:
    """The methods on each of the config's external sets, predicted beside their runs where that is not done yet.

    `UserError`: an entry of `external_map` that fits no set, a set with classes that the methods do not know, without an
    image to score, that no method can predict, or whose images all stand in the internal data set.
    """
    manifests = {data: read_manifest(data) for data in config.external}
    for entry in config.external_map:
        if not any(_fits(entry, manifest) for manifest in manifests.values()):
            named = quote_names(sorted({name for manifest in manifests.values() for name in manifest.classes}))
            raise UserError(
                f"--external-map {entry!r} names no class of the external sets, which have {named}: it must be "
                "DATA-CLASS=METHODS-CLASS, or DATA-CLASS=ONE+ANOTHER to merge classes of the methods."
            )
    sets = [_ExternalSet.open(config, methods, data, manifest) for data, manifest in manifests.items()]
    return [one.test(log) for one in sets]


def external_identity(config: CompareConfig) -> dict[str, Any]:
    """What makes external tests the same, beside the methods: the sets with their labels, and how these are read."""
    sets = [read_manifest(data).content_hash for data in config.external]
    return {"external": digest([sets, config.external_map, config.external_split])} if sets else {}


def _fits(entry: str, manifest: Manifest) -> bool:
    return any(entry.startswith(f"{name}=") for name in manifest.classes)


@dataclass(frozen=True, kw_only=True)
class _ExternalSet:
    """An external set, and how the methods read it."""

    config: CompareConfig
    methods: Sequence[MethodPredictions]
    """Those that can predict."""
    skipped: dict[str, str]
    data: Path
    manifest: Manifest
    mapping: tuple[str, ...]
    """What `predict` is told of the data set's classes."""
    merges: dict[str, list[str]]
    """The data set's class → the methods' classes that are one with it. Images are then predicted without labels."""
    labels: pd.Series
    """image_id → the class that it is scored as, "" for none."""

    @classmethod
    def open(
        cls, config: CompareConfig, methods: Sequence[MethodPredictions], data: Path, manifest: Manifest
    ) -> "_ExternalSet":
        """Read the classes, and find out which methods can predict; none: `UserError`."""
        skipped = {method.name: reason for method in methods if (reason := _why_not(method))}
        if len(skipped) == len(methods):
            reasons = "; ".join(f"{name} {reason}" for name, reason in skipped.items())
            raise UserError(f"No method can predict {data}: {reasons}. Name the folders of trained or zero-shot runs.")
        classes: list[str] = methods[0].metadata["classes"]
        if get_kind(methods[0].metadata["task"]).truth_column == "label":
            entries = [entry for entry in config.external_map if _fits(entry, manifest)]
            plain, merges = parse_merges(entries, classes)
            read = map_labels(manifest, [*classes, *merges], plain, "--external-map")
            _check_labels(data, manifest, read, config.external_split)
        elif config.external_map:
            raise UserError(
                f"--external-map maps classes, and {get_kind(methods[0].metadata['task']).title} have none."
            )
        else:
            plain, merges, read = [], {}, manifest
        return cls(
            config=config,
            methods=[method for method in methods if method.name not in skipped],
            skipped=skipped,
            data=data,
            manifest=manifest,
            mapping=tuple(f"{name}=" for name in manifest.classes) if merges else tuple(plain),
            merges=merges,
            labels=read.table.set_index("image_id")["label"],
        )

    def test(self, log: Log) -> ExternalTest:
        """Predict, and compare with the internal scores."""
        kind, classes = get_kind(self.methods[0].metadata["task"]), list(self.methods[0].metadata["classes"])
        notes: list[str] = []
        runs = {method.name: self._predict(method, log, notes) for method in self.methods}
        external, learned = self._read(runs, kind.truth_column == "label")
        shared, unknown = self._shared_images(set(next(iter(external.values()))["image_id"]))
        external, left_out = self._leave_out(external, learned.union(*shared.values()))
        internal = {method.name: method.table for method in self.methods}
        if self.merges:
            internal = {name: merge_classes(table, classes, self.merges)[0] for name, table in internal.items()}
            merged = {name: merge_classes(table, classes, self.merges) for name, table in external.items()}
            external, classes = {name: table for name, (table, _) in merged.items()}, next(iter(merged.values()))[1]
        test = compare_sets(
            kind,
            internal,
            external,
            classes,
            ExternalTest(
                data=str(self.data),
                dataset=self.manifest.dataset,
                split=self.config.external_split,
                manifest_hash=self.manifest.content_hash,
                split_hash=self.manifest.split_hash,
                label_map=self._taken_for(),
                left_out=left_out,
                shared={split: len(images) for split, images in shared.items()},
                runs={name: str(run) for name, run in runs.items()},
                skipped=self.skipped,
            ),
        )
        return replace(test, notes=[*dict.fromkeys(notes), *unknown, *test.notes])

    def _predict(self, method: MethodPredictions, log: Log, notes: list[str]) -> Path:
        """The folder of a method's predictions; what `predict` had to assume goes to `notes`."""

        def listen(text: str) -> None:
            if text.startswith("note: "):
                notes.append(f"{self.data.name}: {text.removeprefix('note: ')}")
            else:
                log(text)

        predict = PredictConfig(
            run=method.folder,
            data=self.data,
            split=self.config.external_split,
            map=self.mapping,
            out=self.config.out,
            compute=self.config.compute,
        )
        return predict_run(predict, listen).run.folder

    def _read(self, runs: Mapping[str, Path], labelled: bool) -> tuple[dict[str, pd.DataFrame], set[str]]:
        """The tables of all methods, sorted by image_id, of the same images: those that can be scored; and ids of the images
        that one of the methods learned from."""
        tables, learned = {}, set[str]()
        for name, run in runs.items():
            table, _ = read_predictions(run / "predictions" / f"{self.config.external_split}.parquet")
            if TRAINED_ON in table:
                learned |= set(table["image_id"][table.pop(TRAINED_ON).astype(bool)])
            table["patient_id"] = table["patient_id"].fillna("").astype(str)
            if labelled:
                table["label"] = table["image_id"].map(self.labels)
                table = table[table["label"] != ""]
            tables[name] = table.sort_values("image_id", ignore_index=True, kind="stable")
        return tables, learned

    def _leave_out(self, tables: Mapping[str, pd.DataFrame], seen: set[str]) -> tuple[dict[str, pd.DataFrame], int]:
        """The tables without the images that were seen, and how many these are; if all were, a `UserError`."""
        images = set(next(iter(tables.values()))["image_id"])
        if images <= seen:
            raise UserError(
                f"All {len(images):,} images of {self.data} that could be scored are in the internal data set, too, or were "
                "learned from, by their pixels: it is not external."
            )
        kept = {name: table[~table["image_id"].isin(seen)].reset_index(drop=True) for name, table in tables.items()}
        return kept, len(images & seen)

    def _shared_images(self, scored: set[str]) -> tuple[dict[str, set[str]], list[str]]:
        """Split of the internal data sets → ids of the `scored` images that have the pixels of one of its; and notes."""
        shared, notes = dict[str, set[str]](), list[str]()
        configs = [read_run_metadata(method.folder).get("config", {}) for method in self.methods]
        folders = {str(config.get("data", "")) for config in configs}
        table = self.manifest.table
        table = table[table["image_id"].isin(scored) & (table["sha256"] != "")]
        for folder in sorted(folders):
            if not (Path(folder) / "manifest.parquet").is_file():
                notes.append(
                    f"{folder or 'The internal data set'} is gone: whether {self.data} shares images with it is not known."
                )
                continue
            for split, rows in read_manifest(Path(folder)).table.groupby("split"):
                same = set(table.loc[table["sha256"].isin(rows["sha256"]), "image_id"])
                shared[str(split)] = shared.get(str(split), set()) | same
        return {split: images for split, images in shared.items() if images}, notes

    def _taken_for(self) -> dict[str, str]:
        """The data set's class → the class that it is scored as."""
        pairs = pd.DataFrame({"label": self.manifest.table["label"], "as": self.labels.to_numpy()}).drop_duplicates()
        return {label: taken for label, taken in pairs.itertuples(index=False) if label}


def _check_labels(data: Path, manifest: Manifest, read: Manifest, split: str) -> None:
    """Refuse a set of which no image of the split has a class, as it was `read`."""
    if (read.rows(split)["label"] != "").any():
        return
    place = f"the {split} split of {data}" if split != "all" else f"{data}"
    if left_out := sorted(set(manifest.rows(split)["label"]) - {""}):
        raise UserError(
            f"--external-map leaves out all images of {place} that have a class: map {quote_names(left_out)} to classes of "
            "the methods."
        )
    raise UserError(f"No image of {place} has a class, so there is nothing to score: name a set with labels.")


def _why_not(method: MethodPredictions) -> str:
    """Why a method can't predict other data; "" where it can."""
    if method.path.parent.name != "predictions" or method.path.stem != method.metadata["split"]:
        return "is a file of predictions, or a variant of a run"
    return "" if can_predict(method.folder) else "keeps no checkpoint"
