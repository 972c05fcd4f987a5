"""The run folder: `outputs/<run>/{config.json, metrics.json, predictions/<split>.parquet, checkpoint/, figures/, _SUCCESS}`.

`metrics.json` maps each scored split to the body that `evaluate.predictions.score` gives. The marker comes last.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clipcovid.config import UserError, digest, flatten
from clipcovid.data.manifest import Manifest
from clipcovid.evaluate import plots, predictions
from clipcovid.files import write_json, write_text

DONE = "_SUCCESS"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one method, in its folder."""

    folder: Path
    method: str
    identity: dict[str, Any]

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
        path = self.folder / "metrics.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def history(self) -> list[dict[str, float]]:
        """A training's lines, one a validation; none for what is not trained."""
        path = self.folder / "history.json"
        return json.loads(path.read_text(encoding="utf-8"))["epochs"] if path.exists() else []


def start_run(config: Any, *, method: str, identity: dict[str, Any]) -> Run:
    """The run that `config.out`, `config.name` and the identity name; a folder that holds another run is a `UserError`."""
    folder = config.out / (config.name or f"{method}-{digest(identity, 8)}")
    about = folder / "config.json"
    if about.exists():
        there = json.loads(about.read_text(encoding="utf-8"))["identity"]
        if there != identity:
            differs = sorted(key for key in {*there, *identity} if there.get(key) != identity.get(key))
            raise UserError(f"{folder} holds another run ({', '.join(differs)} differ): choose another --name.")
    write_json(about, {"method": method, "identity": identity, "config": flatten(config)})
    return Run(folder=folder, method=method, identity=identity)


def score_split(
    run: Run,
    manifest: Manifest,
    table: pd.DataFrame,
    *,
    split: str,
    variant: str = "",
    name: str = "",
    similarities: Any = None,
) -> dict[str, Any]:
    """Write a split's classification predictions, scores and figures; returns the scores.

    `table`: image_id and prob_<class> for exactly the split's images that have a label; the label and patient come from
    the manifest, and images without a label are counted among the notes. `variant` names predictions beside the method's
    own, which go by `<split>-<variant>`; `name` is what the split is called, if not by its own name. A run is unfinished
    from here until `finish_run`.
    """
    (run.folder / DONE).unlink(missing_ok=True)
    called = name or split
    rows = manifest.rows(split)
    eligible = rows[rows["label"] != ""]
    if set(table["image_id"]) != set(eligible["image_id"]) or len(table) != len(eligible):
        raise AssertionError(f"predictions for {len(table)} images, not for the {len(eligible)} that are eligible")
    table = write_split(run, manifest, table, split=called, variant=variant)
    train = manifest.table.loc[(manifest.table["split"] == "train") & (manifest.table["label"] != ""), "label"].tolist()
    body = predictions.score(table, manifest.classes, train or None, similarities)
    if left_out := len(rows) - len(eligible):
        body["notes"].insert(0, f"{left_out} images have no label and were left out.")
    write_json(run.folder / "metrics.json", run.metrics() | {_entry(called, variant): body})
    if variant:
        return body
    known = predictions.predicted(table, manifest.classes)
    figures = plots.figures(table["label"].tolist(), known, manifest.classes, split=called)
    plots.save({f"{called}_{kind}": figure for kind, figure in figures.items()}, run.folder / "figures")
    return body


def write_split(run: Run, manifest: Manifest, table: pd.DataFrame, *, split: str, variant: str = "") -> pd.DataFrame:
    """Write predictions as those of the run; gives them with the label and patient of each image, from the manifest."""
    about = manifest.table.set_index("image_id").loc[table["image_id"], ["label", "patient_id"]].reset_index()
    table = about.merge(table, on="image_id", validate="one_to_one")
    predictions.write_predictions(
        run.folder / "predictions" / f"{_entry(split, variant)}.parquet",
        table,
        method=f"{run.method} ({variant})" if variant else run.method,
        task="classification",
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
