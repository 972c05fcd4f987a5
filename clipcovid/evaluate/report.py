"""What a run writes of a split that was predicted: the predictions, their scores, and the figures."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from clipcovid.config import TrainConfig
from clipcovid.data.manifest import Manifest
from clipcovid.data.packed import PackedImages
from clipcovid.evaluate.kinds.registry import get_kind, scores_from_json
from clipcovid.evaluate.predictions import TRAINED_ON, write_predictions
from clipcovid.evaluate.scores import Scores
from clipcovid.io.files import write_json
from clipcovid.methods.registry import METHODS
from clipcovid.runs import SUCCESS_MARKER, Run


def stored_scores(run: Run) -> dict[str, Scores]:
    """Split (or `<split>-<variant>`) → the scores in the run's metrics.json."""
    return {entry: scores_from_json(content) for entry, content in run.metrics().items()}


def score_split(
    run: Run,
    manifest: Manifest,
    table: pd.DataFrame,
    config: TrainConfig | None = None,
    *,
    split: str,
    variant: str = "",
    name: str = "",
    similarities: np.ndarray | None = None,
    trained_on: Collection[str] = (),
) -> Scores | None:
    """Write a split's predictions, scores and figures; returns the scores.

    `table`: the columns of the task's kind, for exactly the split's images that have the task's `required_columns`; label and
    patient come from the manifest, and images that were left out are counted among the notes. `config` is the task's, with
    the data that was predicted; without one it is a classification. `variant` names predictions beside the method's own,
    which go by `<split>-<variant>`; `name` is what the split is called, if not by its own name. A run is unfinished from
    here until `finish_run`.

    `trained_on`: ids of images that the model learned from. They are predicted and marked, but not scored; where there are
    no others, nothing is scored, and None is returned.
    """
    (run.folder / SUCCESS_MARKER).unlink(missing_ok=True)
    split_name = name or split
    kind = get_kind("classification" if config is None else METHODS[config.task].kind)
    required = ("label",) if config is None else config.required_columns
    eligible, left_out = manifest.rows_with(split, required)
    if set(table["image_id"]) != set(eligible["image_id"]):
        raise AssertionError(f"predictions for {len(table)} images, not for the {len(eligible)} that are eligible")
    table = write_split_predictions(
        run, manifest, table, kind=kind.name, split=split_name, variant=variant, trained_on=trained_on
    )
    notes = [f"{count} {reason}." for reason, count in left_out.items()]
    if TRAINED_ON in table:
        unseen = ~table.pop(TRAINED_ON).to_numpy(bool)
        notes.append(
            f"{table['image_id'][~unseen].nunique()} of {len(eligible)} images are among those that the model learned from, "
            "by their pixels: they are not scored."
        )
        similarities = similarities[unseen] if similarities is not None else None
        table = table[unseen].reset_index(drop=True)
    if table.empty:
        return None
    scores = kind.score(table, manifest.classes, _train_labels(manifest), similarities)
    scores = replace(scores, notes=[*reversed(notes), *scores.notes])
    write_json(run.folder / "metrics.json", run.metrics() | {_variant_key(split_name, variant): scores.to_json()})
    if not variant:
        _write_figures(run, manifest, table, scores, config, split_name)
    return scores


def write_split_predictions(
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
    facts = manifest.table.set_index("image_id")[["label", "patient_id"]]
    table = table.merge(facts, left_on="image_id", right_index=True, validate="many_to_one", how="left")
    table = table[["image_id", "label", "patient_id", *table.columns.drop(["image_id", "label", "patient_id"])]]
    if (learned := table["image_id"].isin(set(trained_on))).any():
        table.insert(3, TRAINED_ON, learned)
    write_predictions(
        run.folder / "predictions" / f"{_variant_key(split, variant)}.parquet",
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


def _variant_key(split: str, variant: str) -> str:
    """The name of a split's predictions and scores among the run's."""
    return f"{split}-{variant}" if variant else split


def _train_labels(manifest: Manifest) -> Sequence[str] | None:
    """The labels of the train split; None where it has none."""
    labels = manifest.table.loc[manifest.table["split"] == "train", "label"]
    return labels[labels != ""].tolist() or None


def _write_figures(
    run: Run, manifest: Manifest, table: pd.DataFrame, scores: Scores, config: TrainConfig | None, split: str
) -> None:
    from clipcovid.evaluate import plots  # matplotlib: a training's first step does not wait for its figures

    def open_images() -> PackedImages:
        assert config is not None, "a classification's figures need no images"
        return PackedImages(config.data, manifest)

    figures = get_kind(scores.kind).figures(table, scores, manifest.classes, open_images, split=split)
    plots.save_figures({f"{split}_{name}": figure for name, figure in figures.items()}, run.folder / "figures")
