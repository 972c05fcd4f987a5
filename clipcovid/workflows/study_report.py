"""The report of a comparison: the page, and its tables as Markdown, LaTeX and CSV."""

import dataclasses
import importlib
import inspect
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pandas as pd

from clipcovid.data.manifest import Manifest
from clipcovid.data.packed import PackedImages
from clipcovid.errors import UserError
from clipcovid.evaluate.compare import CompareConfig
from clipcovid.evaluate.load_predictions import MethodPredictions
from clipcovid.evaluate.number_format import format_count
from clipcovid.io.files import read_json_object, write_text
from clipcovid.methods.registry import METHODS
from clipcovid.report.checklists import read_answers
from clipcovid.report.findings import Finding, rank_findings
from clipcovid.report.sections import make_report
from clipcovid.report.study import AuditSummary, MethodRun, ReportData, StudyStep
from clipcovid.runs import SUCCESS_MARKER, Run, finish_run, read_run_metadata, start_run
from clipcovid.tracking.provenance import revision, versions
from clipcovid.workflows.command_lines import command_line, command_of_run, prepare_command, sort_commands, typed_fields
from clipcovid.workflows.compare import ComparisonResult, compare_methods

LARGE_PAGE_BYTES = 15_000_000  # bytes; a page of a usual study has one or two million
PACKAGES = ("numpy", "pandas", "scipy", "scikit-learn", "pyarrow", "torchvision", "timm", "transformers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(CompareConfig):
    """What to report on."""

    data: Path | None = None
    """The prepared folder that was predicted, for images, data card and `by`. Default: the one that the runs name."""
    audit: Path | None = None
    """The run folder of an audit of the data."""
    study: Path | None = None
    """The folder of the study that made the runs: the report lists its steps, and how they ended."""
    answers: Path | None = None
    """A YAML file of people's answers to the checklists: name of the checklist, number of the item, text."""
    title: str = ""
    """The report's title. Default: the data set's name."""
    name: str = ""
    """The report's folder in `out`. Default: report and a hash of what is compared."""


def report_study(config: ReportConfig) -> Run:
    """Compare the config's runs and write report.html, .md, .tex and .csv into the report's run folder."""
    answers = read_answers(config.answers) if config.answers else {}
    compared = compare_methods(_comparison_settings(config))
    config = cast(ReportConfig, compared.config)
    audit = read_audit(config.audit, compared.comparison.split_hash) if config.audit else None
    study = _study(config, compared, _open_images(config.data, compared.methods), audit)
    run = start_run(config, method="report", identity=compared.identity)
    (run.folder / SUCCESS_MARKER).unlink(missing_ok=True)
    report = make_report(study, answers, footer=f"Made by clipcovid on {time.strftime('%Y-%m-%d')}.")
    for suffix, text in (("html", report.html), ("md", report.markdown), ("tex", report.latex), ("csv", report.csv)):
        write_text(run.folder / f"report.{suffix}", text)
    if (size := len(report.html.encode())) > LARGE_PAGE_BYTES:
        print(
            f"note: report.html has {size / 1e6:.0f} MB, which mail may refuse: name fewer runs, or leave --audit out."
        )
    finish_run(run)
    print(f"Report: {run.folder / 'report.html'}")
    return run


def read_audit(folder: Path, split_hash: str) -> AuditSummary:
    """The audit of a run folder; one without findings to read, or of other data than `split_hash`, is a `UserError`."""
    content = read_json_object(folder / "audit.json")
    findings, data = content.get("findings"), content.get("data", {})
    if not isinstance(findings, list):
        raise UserError(
            f"--audit {folder} has no audit.json with findings: give the folder that `clipcovid audit` wrote."
        )
    if data.get("split_hash") != split_hash:
        raise UserError(
            f"--audit {folder} is of {data.get('folder', 'other data')}, whose images or splits are not those that were "
            "predicted: audit the predicted data set."
        )
    return AuditSummary(folder=str(folder), findings=rank_findings(map(Finding.from_json, findings)))


def read_steps(folder: Path) -> list[StudyStep]:
    """The steps of a study's folder, in their order; a folder of another make is a `UserError`."""
    planned = read_json_object(folder / "plan.json").get("steps")
    if not isinstance(planned, list):
        raise UserError(f"--study {folder} has no plan.json with steps: give the folder that `clipcovid study` writes.")
    ended = read_json_object(folder / "steps.json").get("steps", {})
    return [
        StudyStep(
            name=step["name"],
            command=shlex.join(step["command"]),
            state=ended.get(step["name"], {}).get("state", "left out"),
            seconds=ended.get(step["name"], {}).get("seconds", 0.0),
            reason=ended.get(step["name"], {}).get("reason", ""),
        )
        for step in planned
    ]


def _comparison_settings(config: ReportConfig) -> ReportConfig:
    """The config, or where it names a comparison's folder, with the settings and the runs of that."""
    if len(config.runs) == 1 and (config.runs[0] / "comparison.json").is_file():
        return _stored_settings(config)
    return config


def _stored_settings(config: ReportConfig) -> ReportConfig:
    """The config with the settings of the comparison whose folder it names, but for where the report goes."""
    folder = config.runs[0]
    stored = typed_fields(CompareConfig, read_run_metadata(folder).get("config", {}))
    if not stored.get("runs"):
        raise UserError(f"{folder} does not say which runs it compares: name the runs.")
    if gone := [run for run in stored["runs"] if not run.exists()]:
        raise UserError(f"{folder} compares {gone[0]}, which is not there: name the runs instead of the comparison.")
    settings = {name: value for name, value in stored.items() if name not in ("out", "name")}
    for name, default in vars(ReportConfig()).items():
        given = getattr(config, name)
        if name in ("runs", "out", "name") or given == default or name not in settings:
            continue
        if name != "data" and given != settings[name]:
            flag = name.replace("_", "-")
            raise UserError(
                f"--{flag} is settled by the comparison in {folder}: leave it out, or name the runs instead."
            )
        settings[name] = given
    return dataclasses.replace(config, **settings)


def _open_images(data: Path | None, methods: Sequence[MethodPredictions]) -> PackedImages | None:
    """The prepared folder that was predicted; without one named, that of the runs, if it is there and has their split."""
    split_hash = methods[0].metadata["split_hash"]
    if data is not None:
        images = PackedImages(data)
        if not _has_images(images.manifest, methods[0].table):
            raise UserError(
                f"--data {data} has not the images that {methods[0].source} predicts: give the folder that was predicted."
            )
        return images
    folders = [Path(str(_run_metadata(method).get("config", {}).get("data", ""))) for method in methods]
    for folder in dict.fromkeys(folder for folder in folders if (folder / "manifest.parquet").is_file()):
        images = PackedImages(folder)
        if images.manifest.split_hash == split_hash and _has_images(images.manifest, methods[0].table):
            print(f"note: images are those of {folder}, which the runs name.")
            return images
    print("note: the folder that was predicted is not where the runs say: no images and no data card without --data.")
    return None


def _has_images(manifest: Manifest, table: pd.DataFrame) -> bool:
    return bool(table["image_id"].isin(manifest.table["image_id"]).all())


def _run_metadata(method: MethodPredictions) -> dict[str, Any]:
    """What the method's run says of itself; empty for a file that is in none."""
    return read_run_metadata(method.folder) if method.path.parent.name == "predictions" else {}


def _study(
    config: ReportConfig, compared: ComparisonResult, images: PackedImages | None, audit: AuditSummary | None
) -> ReportData:
    methods, comparison = compared.methods, compared.comparison
    first = {name: _first_run(methods, source) for name, source in comparison.sources.items()}
    runs = {name: _method_run(method) for name, method in first.items()}
    dataset = images.manifest.dataset if images else "predictions"
    steps = read_steps(config.study) if config.study else []
    return ReportData(
        title=" ".join(config.title.split()) or f"How {format_count(len(runs), 'method')} did on {dataset}",
        comparison=comparison,
        tables={name: method.table for name, method in first.items()},
        runs=runs,
        images=images,
        quarantined=_quarantined(images.folder) if images else {},
        audit=audit,
        environment=_environment(),
        commands=[step.command for step in steps] or _commands(config, runs, images),
        steps=steps,
        family_findings=compared.family_findings,
    )


def _first_run(methods: Sequence[MethodPredictions], sources: str) -> MethodPredictions:
    """The run of a method, of several seeds the first."""
    return next(method for method in methods if f"{sources}, ".startswith(f"{method.source}, "))


def _method_run(method: MethodPredictions) -> MethodRun:
    folder, metadata = method.folder, _run_metadata(method)
    identity = metadata.get("identity", method.metadata["identity"])
    task = identity.get("task", "")
    what = inspect.getdoc(importlib.import_module(f"clipcovid.methods.{task}")) if task in METHODS else ""
    return MethodRun(
        folder=method.source,
        config=metadata.get("config", {}),
        identity=identity,
        history=read_json_object(folder / "history.json") if metadata else {},
        command=command_of_run(metadata),
        description=(what or "").partition("\n")[0],
    )


def _quarantined(folder: Path) -> Mapping[str, int]:
    path = folder / "quarantine.parquet"
    if not path.is_file():
        return {}
    return {str(reason): int(count) for reason, count in pd.read_parquet(path)["reason"].value_counts().items()}


def _environment() -> list[tuple[str, str]]:
    names = {"clipcovid": version("clipcovid")} | versions() | {name: version(name) for name in PACKAGES}
    commit = revision().get("mlflow.source.git.commit", "")
    system = f"{platform.system()} {platform.machine()}"
    return [*names.items(), *([("revision", commit)] if commit else []), ("system", system)]


def _commands(config: ReportConfig, runs: Mapping[str, MethodRun], images: PackedImages | None) -> list[str]:
    recipe = images.manifest.info.get("recipe", {}) if images else {}
    prepared = [prepare_command(str(images.folder), recipe)] if images and "source" in recipe else []
    made = {
        run.folder: run.command or f"# {run.folder}: its command can't be told from its config.json"
        for run in runs.values()
    }
    words = shlex.join(str(path) for path in config.runs)
    flags = command_line("report", dataclasses.replace(config, runs=()), ReportConfig(), ())
    return [*prepared, *sort_commands(made), f"clipcovid report {words}{flags.removeprefix('clipcovid report')}"]
