"""Score predictions that any program wrote.

    clipcovid evaluate --predictions preds.json --ground-truth truth.json
    clipcovid evaluate --predictions preds.csv --ground-truth truth.parquet --classes Sick Healthy --out outputs
    clipcovid evaluate --predictions preds.json --ground-truth truth.json --json > metrics.json

Scores them against a ground truth. Files are JSON, JSON lines, CSV, TSV or Parquet. Rows match by the column that names the
images in both (image_id, filename, Image Index, …), or an object's keys. Truth: label, and patient_id for intervals by
patient. Predictions: hard labels, prob_<class> columns or columns named as the classes, probabilities, a Hugging Face
pipeline's output, sim_<class> columns or similarities, or a ranking of the classes. One file with y_true and y_pred needs
no --ground-truth.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

from rich.console import Console

from clipcovid.evaluate import plots
from clipcovid.evaluate.console import print_scores
from clipcovid.evaluate.external_predictions import read_external_predictions
from clipcovid.evaluate.kinds.classification import KIND
from clipcovid.io.files import refuse_unknown_files, write_json

EVALUATION_FILES = r"metrics\.json|(confusion|classes|roc)\.png"  # of an evaluation's folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The predictions, and the ground truth to score them against."""

    predictions: str
    """File of predictions (.json, .jsonl, .csv, .tsv, .parquet)."""
    ground_truth: str = ""
    """File of true labels, matched with the predictions by id. Default: the predictions' file has them, too."""
    match: str = ""
    """Column that names the images in both files; or position, where their rows are in the same order. Default: found."""
    truth_column: str = ""
    """Column of the true classes, where its name does not say so or several could be meant."""
    prediction_column: str = ""
    """Column of the predictions, where its name does not say so or several could be meant."""
    classes: tuple[str, ...] = ()
    """All classes in their order, which integer labels and lists refer to. Default: those that the files name."""
    missing: Literal["error", "drop"] = "error"
    """What to do with images that only one of the files has. drop: score those in both."""
    out: str | None = None
    """Folder for metrics.json and the figures. Default: only print."""
    name: str | None = None
    """Subfolder of `out`, and the figures' title. Default: the predictions file's name without its ending."""
    json: bool = False
    """Print the body of metrics.json on stdout, and nothing else there."""


def main(config: EvaluateConfig) -> None:
    """Score the predictions; print the scores, and write them into `out` if it is given."""
    table, classes, notes = read_external_predictions(
        config.predictions,
        config.ground_truth,
        config.classes,
        config.missing,
        match=config.match,
        truth_column=config.truth_column,
        prediction_column=config.prediction_column,
    )
    scores = KIND.score(table, classes)
    scores = dataclasses.replace(scores, notes=[*notes, *scores.notes])
    if config.json:
        print(json.dumps(scores.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_scores(scores, Console())
    if config.out is None:
        return
    name = config.name or Path(config.predictions).stem
    folder = Path(config.out) / name
    refuse_unknown_files(folder, EVALUATION_FILES if _is_evaluation(folder / "metrics.json") else "", "--name")
    figures = KIND.figures(table, scores, classes, split=name)
    write_json(folder / "metrics.json", scores.to_json())
    plots.save_figures(figures, folder)
    Console(stderr=config.json).print(f"Scores and figures: {folder}", soft_wrap=True, markup=False)


def _is_evaluation(path: Path) -> bool:
    """Whether `metrics.json` holds the scores of one table; a run's has them by split."""
    try:
        return {"n", "metrics", "intervals"} <= set(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False
