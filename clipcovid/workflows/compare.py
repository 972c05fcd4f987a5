"""A comparison of methods on the same images, from their predictions: table, intervals, paired differences, figures."""

import dataclasses

from rich.console import Console

from clipcovid.evaluate import load_predictions
from clipcovid.evaluate.compare import CompareConfig, compare, write_comparison
from clipcovid.evaluate.console import print_comparison
from clipcovid.identity import comparison_identity
from clipcovid.runs import SUCCESS_MARKER, Run, finish_run, start_run
from clipcovid.workflows.report import report


def compare_runs(config: CompareConfig) -> Run:
    """Compare the config's runs, or all finished ones in `config.out`; write, print and show the comparison in MLflow."""
    runs = config.runs or tuple(load_predictions.find_runs(config.out, config.split, SUCCESS_MARKER, config.kind))
    config = dataclasses.replace(config, runs=runs)
    methods = load_predictions.load_method_predictions(config.runs, config.split)
    comparison = compare(methods, config)
    identity = comparison_identity({method.name: method.metadata for method in methods}, config.settings)
    run = start_run(config, method="compare", identity=identity)
    (run.folder / SUCCESS_MARKER).unlink(missing_ok=True)
    write_comparison(comparison, run.folder)
    finish_run(run)
    print_comparison(comparison, Console())
    tags = {"split": comparison.split_hash, "manifest": comparison.manifest_hash}
    report(run, config, tags, title="Comparison")
    return run
