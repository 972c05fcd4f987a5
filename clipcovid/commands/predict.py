"""Predict a data set with a trained or zero-shot run.

    clipcovid predict --run outputs/cnn-resnet18-1a2b3c4d --data data/quex --split all
    clipcovid predict --run outputs/finetune-lora-1a2b3c4d --data data/other --map Pneumonia=Non-COVID "Lung Opacity="

A zero-shot run predicts with its own prompts. Uses all the workers that the cluster has room for. Killed and run again, it
goes on where it stopped. Labels are needed only to score.
"""

from clipcovid.inference.predict import PredictConfig
from clipcovid.workflows.predict import predict_run
from clipcovid.workflows.report import report_run


def main(config: PredictConfig) -> None:
    """Predict, and show the scores where there are labels."""
    predicted = predict_run(config)
    if predicted.scores is None:
        print(f"{predicted.unscored_reason}: predictions are written, but not scored.")
    report_run(predicted.run, config, manifest=predicted.manifest, splits=(config.split,), scores=predicted.scores)
