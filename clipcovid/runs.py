"""The run folder: `outputs/<run>/{config.json, metrics.json, predictions/<split>.parquet, checkpoint/, figures/, _SUCCESS}`.

`metrics.json` maps each scored split to the body that `evaluate.predictions.score` gives. The marker comes last.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipcovid.config import ImagesConfig, UserError, flatten
from clipcovid.data.images import fit_mask
from clipcovid.data.manifest import Manifest
from clipcovid.data.packed import PackedImages
from clipcovid.evaluate import captions, predictions, segmentation
from clipcovid.evaluate.predictions import TRAINED_ON
from clipcovid.identity import digest
from clipcovid.io.files import (
    foreign_file,
    lock_folder,
    read_object,
    refuse_foreign,
    unlock_folder,
    write_json,
    write_text,
)
from clipcovid.methods.registry import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DONE = "_SUCCESS"
UNBEGUN = r"(config|prompts)\.json|state/(failed\.txt|ray/.*)"  # the files of a run that ended before it did anything
SHOWN = 3  # images of each rank in a figure
CAPTIONED = 9


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one method, in its folder."""

    folder: Path
    method: str
    identity: dict[str, Any]
    job: str = ""
    """What kind of job it is of: train, crossval, predict, …; "" where it is not known."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Whether all of it is there."""
        return (self.folder / DONE).exists()

    def metrics(self) -> dict[str, Any]:
        """Split → scores, of what has been scored so far."""
        return read_metrics(self.folder)

    def history(self) -> list[dict[str, float]]:
        """A training's lines, one a validation; none for what is not trained."""
        path = self.folder / "history.json"
        return json.loads(path.read_text(encoding="utf-8"))["epochs"] if path.exists() else []


def read_metrics(folder: Path) -> dict[str, Any]:
    """Split → scores, of a run's folder; empty where nothing was scored."""
    path = folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_about(folder: Path) -> dict[str, Any]:
    """method, identity and config of the run in a folder; empty where its `config.json` is missing, or no run's."""
    about = read_object(folder / "config.json")
    return about if {"method", "identity"} <= about.keys() else {}


def run_folder(config: Any, *, method: str, identity: dict[str, Any], stem: str = "") -> Path:
    """The folder `config.name` in `config.out`, by default named by `stem`, or else the method, and the identity's hash.

    Models have names with slashes and colons (hf-hub:org/name): folders get dashes. A --name that is a path is a `UserError`.
    """
    if config.name in (".", "..") or Path(config.name).name != config.name:
        raise UserError(f"--name {config.name} must be a plain name: the run's folder is made in --out {config.out}.")
    default = f"{re.sub(r'[^a-zA-Z0-9_.+-]+', '-', stem or method)}-{digest(identity, 8)}"
    return config.out / (config.name or default)


def start_run(config: Any, *, method: str, identity: dict[str, Any], stem: str = "", job: str = "") -> Run:
    """The run in its folder (see `run_folder`), which this process holds until `finish_run` or its end.

    A folder that holds another run, or files that no run wrote, or that another process writes to, is a `UserError`. A run
    that ended before it did anything is no other run: a corrected command takes its name.
    """
    folder = run_folder(config, method=method, identity=identity, stem=stem)
    if not read_about(folder):
        refuse_foreign(folder, "", "--name")
    lock_folder(folder)
    there = read_about(folder).get("identity", identity)
    if there != identity and foreign_file(folder, UNBEGUN):
        unlock_folder(folder)
        differs = sorted(key for key in {*there, *identity} if there.get(key) != identity.get(key))
        raise UserError(f"{folder} holds another run ({', '.join(differs)} differ): choose another --name.")
    write_json(folder / "config.json", {"method": method, "identity": identity, "config": flatten(config)})
    return Run(folder=folder, method=method, identity=identity, job=job or method)


def score_split(
    run: Run,
    manifest: Manifest,
    table: pd.DataFrame,
    config: Any = None,
    *,
    split: str,
    variant: str = "",
    name: str = "",
    similarities: Any = None,
    trained_on: Collection[str] = (),
) -> dict[str, Any] | None:
    """Write a split's predictions, scores and figures; returns the scores.

    `table`: the columns of the task's kind, for exactly the split's images that have what the task `needs`; label and
    patient come from the manifest, and images that were left out are counted among the notes. `config` is the task's, with
    the data that was predicted; without one it is a classification. `variant` names predictions beside the method's own,
    which go by `<split>-<variant>`; `name` is what the split is called, if not by its own name. A run is unfinished from
    here until `finish_run`.

    `trained_on`: ids of images that the model learned from. They are predicted and marked, but not scored; where there are
    no others, nothing is scored, and None is returned.
    """
    (run.folder / DONE).unlink(missing_ok=True)
    called, kind, needs = name or split, "classification", ("label",)
    if config is not None:
        kind, needs = METHODS[config.task].kind, config.required_columns
    eligible, left_out = manifest.eligible(split, needs)
    if set(table["image_id"]) != set(eligible["image_id"]):
        raise AssertionError(f"predictions for {len(table)} images, not for the {len(eligible)} that are eligible")
    table = write_split(run, manifest, table, kind=kind, split=called, variant=variant, trained_on=trained_on)
    if TRAINED_ON in table:
        unseen = ~table.pop(TRAINED_ON).to_numpy(bool)
        similarities = similarities[unseen] if similarities is not None else None
        seen, table = set(table["image_id"][~unseen]), table[unseen].reset_index(drop=True)
        note = f"of {len(eligible)} images are among those that the model learned from, by their pixels: they are not scored"
        left_out[note] = len(seen)
    if table.empty:
        return None
    if kind == "segmentation":
        body = segmentation.score(table)
    elif kind == "captions":
        body = captions.score(table)
    else:
        train = manifest.table.loc[manifest.table["split"] == "train", "label"]
        body = predictions.score(table, manifest.classes, train[train != ""].tolist() or None, similarities)
    for note, count in left_out.items():
        body["notes"].insert(0, f"{count} {note}.")
    write_json(run.folder / "metrics.json", run.metrics() | {_entry(called, variant): body})
    if variant:
        return body
    from clipcovid.evaluate import plots  # matplotlib: a training's first step does not wait for its figures

    figures = _figures(table, manifest, body, config, kind=kind, split=called)
    plots.save({f"{called}_{what}": figure for what, figure in figures.items()}, run.folder / "figures")
    return body


def _figures(
    table: pd.DataFrame, manifest: Manifest, body: dict[str, Any], config: Any, *, kind: str, split: str
) -> dict[str, "Figure"]:
    """The figures of a split's predictions and their scores, by name."""
    from clipcovid.evaluate import plots

    if kind == "segmentation":
        return _overlays(table, PackedImages(config.data, manifest), body["regions"])
    if kind == "captions":
        return {"captions": _captions(table, PackedImages(config.data, manifest))}
    known = predictions.predicted(table, manifest.classes)
    return plots.figures(table["label"].tolist(), known, manifest.classes, split=split)


def _captions(table: pd.DataFrame, packed: PackedImages) -> "Figure":
    """Some images, evenly drawn, with what was said of them and the truth."""
    from clipcovid.evaluate import plots

    some = table.iloc[np.unique(np.linspace(0, len(table) - 1, CAPTIONED).round().astype(int))]
    texts = [f"{row.hypothesis}\n(true: {row.reference})" for row in some.itertuples()]
    return plots.sheet(packed.images(packed.manifest.positions(some["image_id"])), texts, title="Captions")


def _overlays(table: pd.DataFrame, packed: PackedImages, regions: Sequence[str]) -> dict[str, "Figure"]:
    """For each region its best, median and worst images, of those that have it."""
    from clipcovid.evaluate import plots

    made = {}
    for region in regions:
        rows = table[table["region"] == region]
        iou = segmentation.per_image(rows)["iou"].dropna().sort_values(ascending=False)
        middle = max(0, len(iou) // 2 - 1)
        ranks = {"best": iou[:SHOWN], "median": iou[middle : middle + SHOWN], "worst": iou[-SHOWN:]}
        named = [(name, value) for name, some in ranks.items() for value in some]
        if not named:
            continue
        picked = rows.loc[[index for some in ranks.values() for index in some.index]]
        at = packed.manifest.positions(picked["image_id"])
        masks = [segmentation.decode_mask(text).astype(np.uint8) * 255 for text in picked["mask"]]
        how = ImagesConfig(**packed.manifest.info["images"])
        made[f"overlays_{region}"] = plots.overlays(
            packed.images(at),
            packed.masks(f"{region}_mask", at),
            [fit_mask(mask, mask.shape, how) for mask in masks],
            [
                f"{name}: IoU {value:.2f}\n{image}"
                for (name, value), image in zip(named, picked["image_id"], strict=True)
            ],
            title=f"{region}: green true, red predicted",
        )
    return made


def write_split(
    run: Run,
    manifest: Manifest,
    table: pd.DataFrame,
    *,
    kind: str,
    split: str,
    variant: str = "",
    trained_on: Collection[str] = (),
) -> pd.DataFrame:
    """Write predictions as those of the run; gives them with the label and patient of each image, from the manifest.

    `trained_on`: see `score_split`. Where any is predicted, the column of that name (bool) marks them.
    """
    about = manifest.table.set_index("image_id")[["label", "patient_id"]]
    table = table.merge(about, left_on="image_id", right_index=True, validate="many_to_one", how="left")
    table = table[["image_id", "label", "patient_id", *table.columns.drop(["image_id", "label", "patient_id"])]]
    if (known := table["image_id"].isin(set(trained_on))).any():
        table.insert(3, TRAINED_ON, known)
    predictions.write_predictions(
        run.folder / "predictions" / f"{_entry(split, variant)}.parquet",
        table,
        method=f"{run.method} ({variant})" if variant else run.method,
        task=kind,
        identity=run.identity,
        manifest_hash=manifest.content_hash,
        split_hash=manifest.split_hash,
        split=split,
        classes=manifest.classes,
    )
    return table


def _entry(split: str, variant: str) -> str:
    return f"{split}-{variant}" if variant else split


def finish_run(run: Run) -> None:
    """Write the marker that says that everything else is there."""
    write_text(run.folder / DONE, "")
    unlock_folder(run.folder)
