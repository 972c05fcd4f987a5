"""Register a run's model in MLflow, to be served.

    clipcovid register outputs/cnn --as covid-cnn --alias champion
    mlflow models serve --model-uri models:/covid-cnn@champion --env-manager local --port 5001

The model has its weights, its code, its signature, an example, its scores and the data that they are of. It takes image files
in base64, and answers with classes and probabilities, or with masks. It is tried before it is registered.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from clipcovid.workflows.register import register


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """Which run becomes a version of which model."""

    run: tyro.conf.Positional[Path]
    """A finished run's folder: a training of a classifier or a segmenter, or a zero-shot run."""
    model_name: Annotated[str, tyro.conf.arg(name="as")]
    """The model's name in the registry."""
    alias: str = ""
    """An alias for this version, e.g. champion; another version that has it loses it."""
    out: Path | None = None
    """The folder that has the MLflow store. Default: the nearest one above the run that has."""


def main(config: RegisterConfig) -> None:
    """Register, and say how to serve it."""
    register(config.run, config.model_name, config.alias, config.out)
