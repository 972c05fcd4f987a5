"""Compare methods on the same images, from their predictions alone: table, intervals, paired differences, figures, MLflow.

    python jobs/compare.py outputs/zeroshot-1a2b3c4d outputs/cnn-resnet18-5e6f7a8b
    python jobs/compare.py --split val
    python jobs/compare.py --split crossval --name folds outputs/cnn-cv outputs/probe-cv
    python jobs/compare.py outputs/a/predictions/test.parquet outputs/a/predictions/test-plain.parquet

Without any run, all finished runs in --out that predict the split are compared, if they predict the same one.
"""

import dataclasses

from rich.console import Console

from clipcovid.config import run_job
from clipcovid.evaluate import compare, load_predictions
from clipcovid.evaluate.console import print_comparison
from clipcovid.identity import comparison_identity
from clipcovid.runs import DONE, finish_run, start_run
from clipcovid.tracking import track, ui_command


def main(config: compare.CompareConfig) -> None:
    """Compare, print, write, show in MLflow."""
    config = dataclasses.replace(
        config, runs=config.runs or tuple(load_predictions.find(config.out, config.split, DONE))
    )
    found = load_predictions.read(config.runs, config.split)
    comparison = compare.compare(found)
    run = start_run(config, method="compare", identity=comparison_identity({one.name: one.about for one in found}))
    (run.folder / DONE).unlink(missing_ok=True)
    compare.write(comparison, run.folder)
    finish_run(run)
    print_comparison(comparison, Console())
    print(f"Comparison: {run.folder}")
    if track(run, config, tags={"split": comparison["split_hash"], "manifest": comparison["manifest_hash"]}):
        print(f"MLflow: {ui_command(config.out)}")


if __name__ == "__main__":
    run_job(compare.CompareConfig, main, __doc__)
