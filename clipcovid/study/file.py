"""A study file: read, and each section checked against the config of the command that it is for."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from clipcovid.commands import load_command
from clipcovid.config import ClipConfig, ComputeConfig
from clipcovid.errors import UserError
from clipcovid.io.mappings import read_mapping
from clipcovid.methods.registry import METHODS
from clipcovid.study.settings import NO, as_mapping, build_config, read_settings, settings_of, suggest_names

UNTRAINED = ("zeroshot", "tune-prompts")  # the methods that no training is needed for
SET_BY_STUDY = ("data", "out", "name", "fold", "embeddings", "split", "kind", "external", "audit", "against", "study")
METHOD_KEYS = ("command", "encoder")  # of a method's section beside its settings
PLAIN_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """The settings of the study itself."""

    name: str = ""
    """What the study, and its folder in `out`, is called. Default: the file's name without its ending."""
    out: Path = Path("outputs")
    """Where run folders, the MLflow store and the study's folder go."""
    run_name: str = "{study}-{step}"
    """What run folders are called; {study} and {step} stand for the names."""
    classes: tuple[str, ...] = ()
    """Classes to keep, in this order, of all data that are prepared. Default: all that are found."""
    seeds: tuple[int, ...] = ()
    """Train every method with each of these seeds. Default: once, with the method's own."""
    budget: str = ""
    """Time after which no further method is begun, as 90m or 8h; comparison, audit and report come in any case."""
    compute: ComputeConfig = ComputeConfig()
    """What every step asks of the cluster, where it does not say otherwise."""

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(PLAIN_NAME, self.name):
            raise UserError(f"name {self.name!r} must be a plain name: it is a folder's.")
        if "{step}" not in self.run_name or re.search(r"[{}/]", re.sub(r"{(study|step)}", "", self.run_name)):
            raise UserError(f"run-name {self.run_name!r} must hold {{step}}, may hold {{study}}, and is no path.")
        _ = self.budget_s

    @property
    def budget_s(self) -> float:
        """Seconds; infinite where there is no budget."""
        if not self.budget:
            return float("inf")
        if not (found := re.fullmatch(r"(\d+(?:\.\d+)?) ?([smh])", self.budget)):
            raise UserError(f"budget {self.budget!r} is no time such as 90m or 8h.")
        return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command with the settings that the file gives it."""

    command: str
    settings: Mapping[str, Any]
    """Name → value, in the config's types."""
    place: str
    """Where it stands in the file."""
    encoder: str = ""
    """The encoder, or the method whose run is the encoder."""
    methods: tuple[str, ...] = ()
    """The methods that it is about: a sweep, a cross-validation or an ensemble."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A prepared folder, and what prepares it; None where it is there already."""

    folder: Path
    job: Job | None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study file says."""

    settings: StudySettings
    compute: Mapping[str, Any]
    """The settings `compute.*` that are given, of all steps."""
    data: DataSource
    external: Mapping[str, DataSource] = field(default_factory=dict)
    encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name → settings `clip.*`."""
    methods: Mapping[str, Job]
    sweeps: Mapping[str, Job] = field(default_factory=dict)
    crossval: Job | None = None
    ensembles: Mapping[str, Job] = field(default_factory=dict)
    compare: Job
    audit: Job | None
    """None where the file says `audit: false`."""
    report: Job | None
    """None where the file says `report: false`."""

    @property
    def folder(self) -> Path:
        """The study's folder: plan, logs, and how its steps ended."""
        return self.settings.out / self.settings.name

    def run(self, step: str) -> Path:
        """The run folder of a step."""
        return self.settings.out / self.settings.run_name.format(study=self.settings.name, step=step)


def method_of(command: str) -> Any:
    """The method that a command trains; None for other commands."""
    return METHODS.get(command.replace("-", "_"))


@cache
def config_of(command: str) -> Any:
    """The config that a command is made from."""
    method = method_of(command)
    return method.config if method else load_command(command).config


def method_commands() -> list[str]:
    """The commands that a method of a study can be."""
    return [*UNTRAINED, *(name.replace("_", "-") for name in METHODS)]


def read_study(path: Path) -> Study:
    """The study in a YAML or JSON file; what it says wrong is a `UserError` that names the place."""
    return parse_study(read_mapping(path, "The study file", "settings"), path.stem)


def parse_study(content: Mapping[str, Any], name: str) -> Study:
    """The study that a file's content says, called `name` where it does not say how."""
    own = settings_of(StudySettings)
    sections = (
        "data",
        "external",
        "encoders",
        "methods",
        "sweeps",
        "crossval",
        "ensembles",
        "compare",
        "audit",
        "report",
    )
    keys = {*sections, *(name.partition(".")[0] for name in own)}
    if unknown := [key for key in content if str(key).partition(".")[0] not in keys]:
        raise UserError(f"The study file: there is no setting {unknown[0]!r}{suggest_names(str(unknown[0]), keys)}.")
    values = read_settings(own, {key: value for key, value in content.items() if key not in sections}, "study")
    compute = {key: value for key, value in values.items() if key.startswith("compute.")}
    settings: StudySettings = build_config(StudySettings, own, {"name": name} | values, "study")
    if "data" not in content:
        raise UserError("The study file: data is missing: name a prepared folder, or say what to prepare.")
    encoders = _entries(content, "encoders")
    clip = settings_of(ClipConfig)
    return Study(
        settings=settings,
        compute=compute,
        data=_read_data(content["data"], "data", settings.classes),
        external={
            key: _read_data(value, f"external.{key}", settings.classes)
            for key, value in _entries(content, "external").items()
        },
        encoders={
            key: {
                f"clip.{setting}": chosen
                for setting, chosen in read_settings(
                    clip, as_mapping(value, f"encoders.{key}"), f"encoders.{key}"
                ).items()
            }
            for key, value in encoders.items()
        },
        methods=(methods := _read_methods(_entries(content, "methods"), encoders)),
        sweeps={
            key: _read_job("sweep", value, f"sweeps.{key}", methods, "method")
            for key, value in _entries(content, "sweeps").items()
        },
        crossval=_read_job("crossval", content["crossval"], "crossval", methods, "methods")
        if "crossval" in content
        else None,
        ensembles={
            key: _read_ensemble(value, f"ensembles.{key}", methods)
            for key, value in _entries(content, "ensembles").items()
        },
        compare=read_job("compare", content.get("compare"), "compare"),
        audit=_read_closing("audit", content),
        report=_read_closing("report", content),
    )


def _read_closing(command: str, content: Mapping[str, Any]) -> Job | None:
    """The settings of a step at the study's end; `false` leaves it out."""
    value = content.get(command)
    return None if str(value).lower() in NO else read_job(command, value, command)


def _entries(content: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The entries of a section by their names, which are steps' and folders'."""
    entries = as_mapping(content.get(section), section)
    for name in entries:
        if not re.fullmatch(PLAIN_NAME, str(name)):
            raise UserError(f"{section}: {name!r} must be a plain name: runs are called after it.")
    return entries


def read_job(command: str, content: Any, place: str, without: tuple[str, ...] = SET_BY_STUDY, **more: Any) -> Job:
    """A section as settings of a command; `without`: those that the study itself sets."""
    entries = as_mapping(content, place)
    if given := [key for key in entries if key.partition(".")[0] in without]:
        raise UserError(f"{place}: {given[0]} is set by the study: leave it out.")
    settings = read_settings(settings_of(config_of(command), without), entries, place)
    return Job(command=command, settings=settings, place=place, **more)


def _read_data(content: Any, place: str, classes: tuple[str, ...]) -> DataSource:
    """A prepared folder, or the settings of `prepare`, or with `keep` those of `apply-masks`."""
    if isinstance(content, str) and content:
        if classes and place == "data":
            raise UserError(
                "classes are chosen when data are prepared, and data names a prepared folder: leave them out."
            )
        return DataSource(folder=Path(content), job=None)
    entries = as_mapping(content, place)
    command = "apply-masks" if "keep" in entries else "prepare"
    job = read_job(command, entries, place, without=())
    if not job.settings.get("out"):
        raise UserError(f"{place}: out is missing: say which folder to prepare.")
    if classes and command == "prepare" and "classes" not in job.settings:
        job = Job(command=command, settings={**job.settings, "classes": classes}, place=place)
    return DataSource(folder=job.settings["out"], job=job)


def _read_methods(entries: Mapping[str, Any], encoders: Collection[str]) -> dict[str, Job]:
    """The methods; an encoder that is neither an encoder nor a method before it is a `UserError`."""
    methods: dict[str, Job] = {}
    if not entries:
        raise UserError(f"methods is empty: name at least one of {', '.join(method_commands())}.")
    if both := [name for name in entries if name in encoders]:
        raise UserError(f"{both[0]!r} is the name of an encoder and of a method: rename one of them.")
    for name, value in entries.items():
        place = f"methods.{name}"
        content = as_mapping(value, place)
        command = str(content.get("command", name))
        if command not in method_commands():
            hint = suggest_names(command, method_commands())
            raise UserError(f"{place}: {command!r} is no method{hint}; say which with command: ….")
        if name in method_commands() and name != command:
            raise UserError(f"{place}: this name is another command's than {command}: rename it.")
        encoder = str(content.get("encoder", ""))
        if encoder and "clip.model" not in settings_of(config_of(command)):
            raise UserError(f"{place}: {command} uses no encoder: leave encoder out.")
        if encoder and encoder not in (*encoders, *methods):
            known = [*encoders, *methods]
            raise UserError(
                f"{place}: encoder {encoder!r} is neither an encoder nor a method above{suggest_names(encoder, known)}."
            )
        settings = {key: setting for key, setting in content.items() if key not in METHOD_KEYS}
        methods[name] = read_job(command, settings, place, encoder=encoder)
    return methods


def _read_job(command: str, content: Any, place: str, methods: Mapping[str, Job], key: str) -> Job:
    """A section about trained methods, which it names under `key`."""
    entries = dict(as_mapping(content, place))
    trained = [name for name, job in methods.items() if job.command not in UNTRAINED]
    names = _names(entries.pop(key, None), f"{place}: {key}", trained, "method to train")
    return read_job(command, entries, place, methods=names)


def _read_ensemble(content: Any, place: str, methods: Mapping[str, Job]) -> Job:
    """An ensemble of classifications, which it names as `runs`."""
    entries = dict(as_mapping(content, place))
    joined = [name for name, job in methods.items() if kind_of(job.command) == "classification"]
    names = _names(entries.pop("runs", None), f"{place}: runs", joined, "classifier")
    return read_job("ensemble", entries, place, methods=names)


def _names(value: Any, place: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """The names of methods that a section is about; none, or one that is not among `known`, is a `UserError`."""
    names = tuple(map(str, value if isinstance(value, list) else [value] if value else []))
    if not names:
        raise UserError(f"{place} is missing: name of {', '.join(known)}.")
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{place}: {unknown[0]!r} is no {what}{suggest_names(unknown[0], known)}.")
    return names


def kind_of(command: str) -> str:
    """The kind of a method's predictions."""
    method = method_of(command)
    return method.kind if method else "classification"
