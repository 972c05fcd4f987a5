"""A comparison of methods on the same images, from their predictions: table, intervals, paired differences, figures."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from clipcovid.evaluate import load_predictions
from clipcovid.evaluate.compare import CompareConfig, compare, write_comparison
from clipcovid.evaluate.console import print_comparison
from clipcovid.evaluate.load_predictions import MethodPredictions
from clipcovid.evaluate.scores import Comparison
from clipcovid.identity import comparison_identity
from clipcovid.io.files import write_json
from clipcovid.report.findings import Finding
from clipcovid.runs import SUCCESS_MARKER, Run, finish_run, start_run
from clipcovid.workflows.clip_vs_cnn import clip_against_cnn
from clipcovid.workflows.external import external_identity, external_tests
from clipcovid.workflows.report import report_run

CLIP_VS_CNN = "clip_vs_cnn.json"  # the file of findings in a comparison's folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """A comparison, and what it was made of."""

    config: CompareConfig
    """With the runs that were found, where none were named."""
    methods: Sequence[MethodPredictions]
    comparison: Comparison
    family_findings: Sequence[Finding]
    """What sets CLIP against CNN, where it was asked for."""
    identity: dict[str, Any]


def compare_methods(config: CompareConfig) -> ComparisonResult:
    """Compare the config's runs, or all finished ones in `config.out`, on their own images and on the external sets."""
    runs = config.runs or tuple(load_predictions.find_runs(config.out, config.split, SUCCESS_MARKER, config.kind))
    config = dataclasses.replace(config, runs=runs)
    methods = load_predictions.load_method_predictions(config.runs, config.split)
    comparison = compare(methods, config)
    settings = config.settings | external_identity(config)
    tests = external_tests(config, methods) if config.external else []
    findings = clip_against_cnn(config, methods) if config.clip_vs_cnn else []
    told = [*(note for test in tests for note in test.notes), *(finding.summary for finding in findings)]
    return ComparisonResult(
        config=config,
        methods=methods,
        comparison=dataclasses.replace(
            comparison,
            external=tests,
            notes=[*comparison.notes, *told],
            alarms=[*comparison.alarms, *dict.fromkeys(alarm for test in tests for alarm in test.alarms)],
        ),
        family_findings=findings,
        identity=comparison_identity({method.name: method.metadata for method in methods}, settings),
    )


def compare_runs(config: CompareConfig) -> Run:
    """Compare the config's runs (see `compare_methods`); write, print and show the comparison in MLflow."""
    compared = compare_methods(config)
    comparison, findings = compared.comparison, compared.family_findings
    run = start_run(compared.config, method="compare", identity=compared.identity)
    (run.folder / SUCCESS_MARKER).unlink(missing_ok=True)
    write_comparison(comparison, run.folder)
    if findings:
        write_json(run.folder / CLIP_VS_CNN, {"findings": [finding.to_json() for finding in findings]})
    finish_run(run)
    print_comparison(comparison, Console())
    tags = {"split": comparison.split_hash, "manifest": comparison.manifest_hash}
    report_run(run, compared.config, tags, title="Comparison")
    return run
