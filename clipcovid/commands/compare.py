"""Compare methods on the same images, by their predictions.

    clipcovid compare outputs/zeroshot-1a2b3c4d outputs/cnn-resnet18-5e6f7a8b
    clipcovid compare --split val
    clipcovid compare --split crossval --name folds outputs/cnn-cv outputs/probe-cv
    clipcovid compare outputs/cnn outputs/zeroshot --external data/covidx --external-map pneumonia=Non-COVID normal=Normal
    clipcovid compare outputs/a/predictions/test.parquet outputs/a/predictions/test-plain.parquet

Makes a table with intervals, paired differences and figures, and shows it in MLflow. Without any run, all finished runs in
--out that predict the split are compared, if they predict the same one.
"""

from clipcovid.evaluate.compare import CompareConfig
from clipcovid.workflows.compare import compare_runs


def main(config: CompareConfig) -> None:
    """Compare the runs, and report the comparison."""
    compare_runs(config)
