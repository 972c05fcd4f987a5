"""Predictions of any run that can make new ones: by its checkpoint, or, of a zero-shot run, by its words."""

from collections.abc import Callable
from pathlib import Path

from clipcovid.inference.predict import PredictConfig, PredictResult, predict_split
from clipcovid.inference.predict_zeroshot import is_zeroshot_run, predict_zeroshot


def can_predict(run: Path) -> bool:
    """Whether a run's folder has what predicting takes: a checkpoint, or a zero-shot run's words."""
    return is_zeroshot_run(run) or (run / "checkpoint" / "model.safetensors").is_file()


def predict_run(config: PredictConfig, log: Callable[[str], None] = print) -> PredictResult:
    """Predict a split with the config's run; see `predict_split`."""
    return (predict_zeroshot if is_zeroshot_run(config.run) else predict_split)(config, log)
