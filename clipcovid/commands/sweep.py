"""Search for a method's best hyperparameters with Ray Tune.

    clipcovid sweep cnn --data data/quex --weights none --optim.epochs 10
    clipcovid sweep finetune --data data/quex --trials 50 --search random --space my-space.yaml
    clipcovid sweep segment --data data/quex --target lung --confirm-seeds 3

Each trial is the method's own training. What is best on the validation split is what the method watches in training. Bad
trials are stopped early (ASHA). Killed or interrupted and run again, a sweep goes on where it was; it ends with the command
that trains the best configuration.
"""

from clipcovid.workflows.sweep import SweepConfig, sweep


def main(config: SweepConfig) -> None:
    """Search, and report the best configuration."""
    sweep(config)
