"""A comparison of methods on the same images, from their predictions: table, intervals, paired differences, figures."""

import dataclasses

from rich.console import Console

from clipcovid.evaluate import load_predictions
from clipcovid.evaluate.compare import CompareConfig, compare, write_comparison
from clipcovid.evaluate.console import print_comparison
from clipcovid.identity import comparison_identity
from clipcovid.io.files import write_json
from clipcovid.runs import SUCCESS_MARKER, Run, finish_run, start_run
from clipcovid.workflows.clip_vs_cnn import clip_against_cnn
from clipcovid.workflows.external import external_identity, external_tests
from clipcovid.workflows.report import report

CLIP_VS_CNN = "clip_vs_cnn.json"  # the file of findings in a comparison's folder


def compare_runs(config: CompareConfig) -> Run:
    """Compare the config's runs, or all finished ones in `config.out`; write, print and show the comparison in MLflow."""
    runs = config.runs or tuple(load_predictions.find_runs(config.out, config.split, SUCCESS_MARKER, config.kind))
    config = dataclasses.replace(config, runs=runs)
    methods = load_predictions.load_method_predictions(config.runs, config.split)
    comparison = compare(methods, config)
    settings = config.settings | external_identity(config)
    identity = comparison_identity({method.name: method.metadata for method in methods}, settings)
    tests = external_tests(config, methods) if config.external else []
    findings = clip_against_cnn(config, methods) if config.clip_vs_cnn else []
    told = [*(note for test in tests for note in test.notes), *(finding.summary for finding in findings)]
    comparison = dataclasses.replace(
        comparison,
        external=tests,
        notes=[*comparison.notes, *told],
        alarms=[*comparison.alarms, *dict.fromkeys(alarm for test in tests for alarm in test.alarms)],
    )
    run = start_run(config, method="compare", identity=identity)
    (run.folder / SUCCESS_MARKER).unlink(missing_ok=True)
    write_comparison(comparison, run.folder)
    if findings:
        write_json(run.folder / CLIP_VS_CNN, {"findings": [finding.to_json() for finding in findings]})
    finish_run(run)
    print_comparison(comparison, Console())
    tags = {"split": comparison.split_hash, "manifest": comparison.manifest_hash}
    report(run, config, tags, title="Comparison")
    return run
