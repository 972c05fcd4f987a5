"""The steps of a study, each a command line of `clipcovid`, and what each waits for."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcovid.config import ComputeConfig
from clipcovid.errors import UserError
from clipcovid.methods.registry import METHODS
from clipcovid.runs import SUCCESS_MARKER
from clipcovid.study.file import UNTRAINED, Data, Job, Study, config_of
from clipcovid.study.settings import build_config, command_words, settings_of

PREPARED = "manifest.parquet"
CROSSVAL = "crossval"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the plan."""

    name: str
    command: str
    words: tuple[str, ...]
    """Its command line behind `clipcovid`."""
    config: Any = dataclasses.field(repr=False, compare=False)
    """The config that the words make."""
    needs: tuple[str, ...] = ()
    """The steps that must be done before it: without them it is left out."""
    after: tuple[str, ...] = ()
    """The steps that must have ended, however they did."""
    gathers: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """Step → the folder that is added to the words where the step is done; one of them at least must be."""
    with_done: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Step → words that are added where that step is done."""
    best_of: Path | None = None
    """The run folder of a sweep, whose best settings are added to the words."""
    marker: Path | None = None
    """The file that is there once it is done."""
    folder: Path
    """What it writes."""

    @property
    def computes(self) -> bool:
        """Whether it computes with torch on all the cores that it gets."""
        return self.command in (*UNTRAINED, "embed", CROSSVAL, "sweep") or self.command.replace("-", "_") in METHODS

    @property
    def is_method(self) -> bool:
        """Whether it is one of the methods that the study is about, which a budget may leave out."""
        return self.computes and self.command != "embed"

    @property
    def prepares(self) -> bool:
        """Whether it makes a prepared folder."""
        return self.command in ("prepare", "apply-masks")

    @property
    def trained(self) -> Any:
        """The config of the method that it trains, once or many times; of another step its own."""
        return getattr(self.config, {"sweep": "task", CROSSVAL: "method"}.get(self.command, ""), self.config)

    @property
    def compute(self) -> ComputeConfig:
        """What it asks of the cluster."""
        compute: ComputeConfig = self.trained.compute
        return compute

    def to_json(self) -> dict[str, Any]:
        """What plan.json says of it."""
        return {
            "name": self.name,
            "command": ["clipcovid", *self.words],
            "needs": list(self.needs),
            "after": list(dict.fromkeys([*self.after, *self.gathers, *self.with_done])),
            "folder": str(self.folder),
        }


def plan_study(study: Study) -> list[Step]:
    """The steps in an order in which each comes behind all that it waits for."""
    planner = _Planner(study)
    planner.prepare("prepare", study.data)
    for name, data in study.external.items():
        planner.prepare(f"prepare-{name}", data)
    for name, job in study.methods.items():
        planner.method(name, job)
    for name, job in study.sweeps.items():
        planner.sweep(name, job)
    if study.crossval:
        planner.crossval(study.crossval)
    planner.compare()
    planner.audit()
    planner.report()
    if study.folder in [step.folder for step in planner.steps.values()]:
        raise UserError(f"A run would have the study's own folder {study.folder}: give the study another name.")
    return list(planner.steps.values())


class _Planner:
    def __init__(self, study: Study) -> None:
        self.study = study
        self.steps: dict[str, Step] = {}
        self.runs: dict[str, list[str]] = {}
        """Method → the steps that train it, one a seed."""
        self.readers: dict[tuple[Any, ...], str] = {}
        """Encoder → the last step that reads, and where they are missing makes, its embeddings."""

    def add(self, step: Step) -> None:
        """A further step; its name must be its own."""
        if step.name in self.steps:
            raise UserError(f"Two steps would be called {step.name!r}: give a method another name.")
        self.steps[step.name] = step

    def step(
        self, name: str, job: Job, values: Mapping[str, Any], *, settings: Mapping[str, Any] | None = None, **more: Any
    ) -> Step:
        """A step of a job with further `values`, which its own settings override; checked by its config."""
        config_type = config_of(job.command)
        flags = settings_of(config_type)
        given = {key: value for key, value in self.study.compute.items() if key in flags} | dict(values)
        given |= job.settings if settings is None else settings
        config = build_config(config_type, flags, given, job.place)
        return Step(name=name, command=job.command, words=(job.command, *command_words(given)), config=config, **more)

    def run_step(self, name: str, job: Job, values: Mapping[str, Any], **more: Any) -> Step:
        """A step that writes a run folder."""
        folder = self.study.run(name)
        placed = {**values, "out": self.study.settings.out, "name": folder.name}
        return self.step(name, job, placed, folder=folder, marker=folder / SUCCESS_MARKER, **more)

    def prepare(self, name: str, data: Data) -> None:
        """The step that prepares data, if any does; from another prepared folder, if it masks that."""
        if not data.job and not (data.folder / PREPARED).exists():
            place = "data" if name == "prepare" else f"external.{name.removeprefix('prepare-')}"
            raise UserError(f"{place}: {data.folder} is no prepared folder: say how to prepare it (source, root, out).")
        if data.job:
            source = str(data.job.settings.get("data", ""))
            needs = tuple(step.name for step in self.steps.values() if str(step.folder) == source)
            self.add(self.step(name, data.job, {}, folder=data.folder, marker=data.folder / PREPARED, needs=needs))

    def needs_data(self, *, external: bool = False) -> tuple[str, ...]:
        """The steps that prepare the study's data."""
        names = ["prepare", *(f"prepare-{name}" for name in self.study.external if external)]
        return tuple(name for name in names if name in self.steps)

    def method(self, name: str, job: Job) -> None:
        """The steps of a method: one, or one a seed."""
        seeds = self.study.settings.seeds if job.command not in UNTRAINED and "seed" not in job.settings else ()
        self.runs[name] = []
        for place, seed in enumerate(seeds or (None,)):
            step = f"{name}-seed{seed}" if len(seeds) > 1 else name
            values = {"data": self.study.data.folder} | ({} if seed is None else {"seed": seed})
            encoder, needs = self.encoder(job, place)
            after = self.embed(step, job, values | encoder, needs)
            self.add(self.run_step(step, job, values | encoder, needs=self.needs_data() + needs, after=after))
            self.runs[name].append(step)

    def encoder(self, job: Job, place: int) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The settings `clip.*` of a method's encoder, and the step that trains it, of the same place among the seeds."""
        if job.encoder in self.study.encoders or not job.encoder:
            return dict(self.study.encoders.get(job.encoder, {})), ()
        trained = self.runs[job.encoder]
        step = trained[place if place < len(trained) else 0]
        own, _ = self.encoder(self.study.methods[job.encoder], place)
        kept = {key: value for key, value in own.items() if key != "clip.pretrained"}
        return kept | {"clip.pretrained": str(self.result(step))}, (step,)

    def embed(self, step: str, job: Job, values: Mapping[str, Any], trained: tuple[str, ...]) -> tuple[str, ...]:
        """The step that a reader of embeddings comes after, since two must not write the same ones.

        A declared encoder has a step of its own; a trained one's embeddings are made by the first that reads them.
        """
        method = METHODS.get(job.command.replace("-", "_"))
        if job.command not in UNTRAINED and not (method and method.uses_embeddings):
            return ()
        flags = settings_of(config_of("embed"))
        read = {key: value for key, value in {**values, **job.settings}.items() if key in flags and key != "embeddings"}
        read = {key: value for key, value in read.items() if not key.startswith("compute.")}
        if read.get("clip.pretrained") != "none":
            read.pop("seed", None)  # only random weights depend on it
        key = tuple(sorted((name, str(value)) for name, value in read.items()))
        if not trained and key not in self.readers:
            name = f"embed-{job.encoder or step}"
            name += "" if name not in self.steps else f"-{sum(known.startswith(name) for known in self.steps) + 1}"
            made = Job(command="embed", settings=read, place=job.place)
            embeddings = self.study.data.folder / "embeddings"
            self.add(self.step(name, made, {}, folder=embeddings, needs=self.needs_data()))
            self.readers[key] = name
        after = self.readers.get(key)
        if trained:
            self.readers[key] = step
        return (after,) if after else ()

    def result(self, step: str) -> Path:
        """The run folder that holds a step's predictions."""
        return self.steps[step].folder / ("winner" if self.steps[step].command == "tune-prompts" else "")

    def sweep(self, name: str, job: Job) -> None:
        """The search of a method's settings, and its training with the best."""
        if len(job.of) != 1:
            raise UserError(f"{job.place}: a sweep is of one method, not of {len(job.of)}.")
        method = self.study.methods[job.of[0]]
        search = f"{name}-search"
        values = {"data": self.study.data.folder} | self.encoder(method, 0)[0]
        needs, after = self.needs_data() + self.encoder(method, 0)[1], tuple(self.runs[job.of[0]])
        self.add(self.many(search, job, method, values, "task", needs=needs, after=after))
        folder = self.study.run(search)
        self.add(self.run_step(name, method, values, needs=(*needs, search), best_of=folder))
        self.runs[name] = [name]

    def many(self, step: str, job: Job, method: Job, values: Mapping[str, Any], field: str, **more: Any) -> Step:
        """A step that trains a method many times: the field `field` of the job's config is the method's config."""
        once = self.run_step(step, method, values)
        config_type = config_of(job.command)
        config = build_config(config_type, settings_of(config_type), job.settings, job.place, {field: once.config})
        words = (job.command, method.command.replace("-", "_"), *once.words[1:], *command_words(job.settings))
        return dataclasses.replace(once, command=job.command, words=words, config=config, **more)

    def crossval(self, job: Job) -> None:
        """A cross-validation of each method that is named."""
        for name in job.of:
            method = self.study.methods[name]
            encoder, needs = self.encoder(method, 0)
            values = {"data": self.study.data.folder} | encoder
            needs, after = self.needs_data() + needs, tuple(self.runs[name])
            self.add(self.many(f"{name}-{CROSSVAL}", job, method, values, "method", needs=needs, after=after))

    def compare(self) -> None:
        """A comparison of all methods of a kind, and one of all cross-validations, where there are two or more."""
        for split in ("test", CROSSVAL):
            kinds: dict[str, dict[str, Path]] = {}
            for step in self.steps.values():
                if step.is_method and step.command != "sweep" and (step.command == CROSSVAL) == (split == CROSSVAL):
                    kinds.setdefault(_kind(step), {})[step.name] = self.result(step.name)
            for kind, runs in kinds.items():
                ending = [*([] if split == "test" else [split]), *([] if kind == "classification" else [kind])]
                if len(runs) > 1:
                    name, by = "-".join(["compare", *ending]), "by" in self.study.compare.settings
                    values = {"split": split} | ({"data": self.study.data.folder} if by else {})
                    self.add(self.run_step(name, self.study.compare, values, gathers=runs))

    def audit(self) -> None:
        """The audit of the data against the external ones, once the encoders have embedded them."""
        if self.study.audit:
            against = tuple(data.folder for data in self.study.external.values())
            values = {"data": self.study.data.folder, "fail-on": "never"} | ({"against": against} if against else {})
            needs = self.needs_data(external=True)
            after = tuple(name for name, step in self.steps.items() if step.command == "embed")
            self.add(self.run_step("audit", self.study.audit, values, needs=needs, after=after))

    def report(self) -> None:
        """The page of all classifications, or of the only kind there is: of what the comparison is of."""
        compared = [step for step in self.steps.values() if step.command == "compare"]
        if self.study.report and (compared or self.runs):
            runs = compared[0].gathers if compared else {name: self.result(name) for name in self.runs}
            values = {"data": self.study.data.folder, "study": self.study.folder}
            more = {"audit": ("--audit", str(self.steps["audit"].folder))} if "audit" in self.steps else {}
            needs = self.needs_data()
            self.add(self.run_step("report", self.study.report, values, needs=needs, gathers=runs, with_done=more))


def _kind(step: Step) -> str:
    """The kind of a method's predictions."""
    task = getattr(step.trained, "task", "")
    return METHODS[task].kind if task in METHODS else "classification"


def best_words(words: Iterable[str], sweep: Path, command: str) -> tuple[str, ...]:
    """The words of a training, and behind them the best settings that a finished sweep found."""
    names = {".".join(flag.path): name for name, flag in settings_of(config_of(command)).items()}
    best = json.loads((sweep / "best.json").read_text(encoding="utf-8"))["values"]
    return (*words, *command_words({names[key]: value for key, value in best.items()}))
