"""A training, from its config to its report: make the embeddings that it reads, train, print the scores, show the run."""

from clipcovid.config import TrainConfig
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.manifest import Manifest, read_manifest
from clipcovid.inference.embed import EmbedConfig, embed
from clipcovid.methods.registry import METHODS
from clipcovid.tracking.datasets import TRAINING_SPLITS, describe_data
from clipcovid.tracking.runs import live_tracker
from clipcovid.training.trainer import TrainResult, train_model, training_manifest
from clipcovid.workflows.register import check_register_flag, register, split_register_flag
from clipcovid.workflows.report import report_run


def train(config: TrainConfig) -> TrainResult:
    """Train as a method's config says, print the test split's scores, and show the run in MLflow."""
    manifest = read_manifest(config.data)
    used = training_manifest(config, manifest)  # unusable training data is reported before anything is embedded
    check_register_flag(config, manifest)
    embeddings = embeddings_for(config, manifest)
    with live_tracker(config, describe_data(used, config.data, TRAINING_SPLITS)) as watch:
        result = train_model(config, manifest=manifest, embeddings=embeddings, on_run=watch)
        report_run(result.run, config, manifest=result.manifest, scores=result.scores)
    if config.register:
        register(result.run.folder, *split_register_flag(config.register), config.out)
    return result


def embeddings_for(config: TrainConfig, manifest: Manifest | None = None) -> Embeddings | None:
    """The embeddings that the method reads, made where they are missing; None for a method that reads images.

    `manifest`: the data's as it was read, where it has been read already.
    """
    return embed(EmbedConfig.from_config(config), manifest=manifest) if METHODS[config.task].uses_embeddings else None
