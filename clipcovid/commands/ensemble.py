"""Join several runs' predictions into a method of its own.

    clipcovid ensemble outputs/cnn outputs/lora outputs/probe
    clipcovid ensemble outputs/cnn outputs/lora --rule weights --name cnn+lora
    clipcovid ensemble outputs/cnn outputs/lora --rule stacking

Temperatures, weights and regressions are fitted on the runs' predictions of val. Writes a run with predictions of val (each
by a rule that was fitted on other patients) and test, which compare takes like any other.
"""

from clipcovid.evaluate.ensemble import EnsembleConfig
from clipcovid.workflows.ensemble import ensemble_runs


def main(config: EnsembleConfig) -> None:
    """Join the runs, and report the ensemble."""
    ensemble_runs(config)
