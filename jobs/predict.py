"""Predict any prepared data set with a trained run, over all the workers that the cluster has room for.

    python jobs/predict.py --run outputs/cnn-resnet18-1a2b3c4d --data data/quex --split all
    python jobs/predict.py --run outputs/finetune-lora-1a2b3c4d --data data/other --map Pneumonia=Non-COVID "Lung Opacity="

Killed and run again, it goes on where it stopped. Labels are needed only to score.
"""

from clipcovid.config import run_job
from clipcovid.inference.predict import PredictConfig, predict_split
from clipcovid.workflows.train import show, track_run


def main(config: PredictConfig) -> None:
    """Predict, and show the scores where there are labels."""
    predicted = predict_split(config)
    if predicted.scores is None:
        print(f"{predicted.why}: predictions are written, but not scored.")
        track_run(predicted.run, config, predicted.manifest)
    else:
        show(predicted.run, predicted.scores, config, predicted.manifest)


if __name__ == "__main__":
    run_job(PredictConfig, main, __doc__)
