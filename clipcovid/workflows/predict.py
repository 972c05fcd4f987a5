"""Predictions of any run that can make new ones: by its checkpoint, or, of a zero-shot run, by its words."""

from collections.abc import Callable

from clipcovid.inference.predict import PredictConfig, PredictResult, predict_split
from clipcovid.inference.predict_zeroshot import is_zeroshot_run, predict_zeroshot


def predict_run(config: PredictConfig, log: Callable[[str], None] = print) -> PredictResult:
    """Predict a split with the config's run; see `predict_split`."""
    return (predict_zeroshot if is_zeroshot_run(config.run) else predict_split)(config, log)
