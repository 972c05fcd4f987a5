"""The steps of a study, each a command line of `clipcovid`, and what each waits for."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcovid.config import ComputeConfig
from clipcovid.errors import UserError
from clipcovid.runs import SUCCESS_MARKER, check_run_name
from clipcovid.study.file import UNTRAINED, DataSource, Job, Study, config_of, kind_of, method_commands, method_of
from clipcovid.study.settings import build_config, command_args, settings_of

PREPARED = "manifest.parquet"
CROSSVAL = "crossval"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the plan."""

    name: str
    command: str
    args: tuple[str, ...]
    """Its command line behind `clipcovid`."""
    config: Any = dataclasses.field(repr=False, compare=False)
    """The config that the words make."""
    needs: tuple[str, ...] = ()
    """The steps that must be done before it: without them it is left out."""
    after: tuple[str, ...] = ()
    """The steps that must have ended, however they did."""
    input_folders: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """Step → the folder that is added to the words where the step is done; one of them at least must be."""
    combined: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """Step → the folder that is added in place of all that are gathered, where the step is done."""
    optional_folders: Mapping[str, tuple[str, Path]] = dataclasses.field(default_factory=dict)
    """Step → a setting, and a folder that is added to its values unless that step failed; also of what is no step."""
    best_of: Path | None = None
    """The run folder of a sweep, whose best settings are added to the words."""
    marker: Path | None = None
    """The file that is there once it is done."""
    folder: Path
    """What it writes."""

    @property
    def computes(self) -> bool:
        """Whether it computes with torch on all the cores that it gets."""
        predicts = self.command == "compare" and bool(self.config.external or self.config.clip_vs_cnn)
        commands = (*method_commands(), "embed", CROSSVAL, "sweep")
        return predicts or self.command in commands

    @property
    def is_method(self) -> bool:
        """Whether it is one of the methods that the study is about, which a budget may leave out."""
        return self.computes and self.command not in ("embed", "compare")

    @property
    def is_derived(self) -> bool:
        """Whether it is made of other runs, or of all data: what changes in the study changes it."""
        return self.command in ("compare", "audit", "report", "ensemble")

    @property
    def prepares(self) -> bool:
        """Whether it makes a prepared folder."""
        return self.command in ("prepare", "apply-masks")

    @property
    def training_config(self) -> Any:
        """The config of the method that it trains, once or many times; of another step its own."""
        return getattr(self.config, {"sweep": "task", CROSSVAL: "method"}.get(self.command, ""), self.config)

    @property
    def compute(self) -> ComputeConfig:
        """What it asks of the cluster."""
        compute: ComputeConfig = self.training_config.compute
        return compute

    def to_json(self) -> dict[str, Any]:
        """What plan.json says of it."""
        return {
            "name": self.name,
            "command": ["clipcovid", *self.args],
            "needs": list(self.needs),
            "after": list(dict.fromkeys([*self.after, *self.input_folders, *self.optional_folders])),
            "folder": str(self.folder),
        }


def plan_study(study: Study) -> list[Step]:
    """The steps in an order in which each comes behind all that it waits for."""
    check_run_name(study.settings.name, study.settings.out, "The study's name")
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
    for name, job in study.ensembles.items():
        planner.ensemble(name, job)
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
        self, name: str, job: Job, values: Mapping[str, Any], fields: Mapping[str, Any] | None = None, **more: Any
    ) -> Step:
        """A step of a job with further `values`, which its own settings override; checked by its config.

        `fields`: the config's fields that are no settings.
        """
        config_type = config_of(job.command)
        flags = settings_of(config_type)
        compute = self.study.compute if job.command != "report" else {}  # it has its comparison's
        given = {key: value for key, value in compute.items() if key in flags} | dict(values)
        given |= job.settings
        config = build_config(config_type, flags, given, job.place, fields)
        return Step(name=name, command=job.command, args=(job.command, *command_args(given)), config=config, **more)

    def run_step(
        self, name: str, job: Job, values: Mapping[str, Any], fields: Mapping[str, Any] | None = None, **more: Any
    ) -> Step:
        """A step that writes a run folder."""
        folder = self.study.run(name)
        check_run_name(folder.name, self.study.settings.out, f"{job.place}: a run's name")
        placed = {**values, "out": self.study.settings.out, "name": folder.name}
        return self.step(name, job, placed, fields, **{"folder": folder, "marker": folder / SUCCESS_MARKER} | more)

    def prepare(self, name: str, data: DataSource) -> None:
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
        seeds = self.study.settings.seeds if job.command not in UNTRAINED else ()
        if seeds and "seed" in job.settings:
            raise UserError(
                f"{job.place}: seed is {job.settings['seed']}, and seeds of the study says to train every method with "
                f"{', '.join(map(str, seeds))}: leave out the method's seed, or the study's seeds."
            )
        self.runs[name] = []
        for place, seed in enumerate(seeds or (None,)):
            step = f"{name}-seed{seed}" if len(seeds) > 1 else name
            values = {"data": self.study.data.folder} | ({} if seed is None else {"seed": seed})
            encoder, needs = self.encoder(job, place)
            after = self.embed(step, job, values | encoder, needs)
            needs, values = self.needs_data() + needs, values | encoder
            if job.command == "zeroshot":
                after = self.predict_validation(step, job, values, needs, after)
            self.add(self.run_step(step, job, values, needs=needs, after=after))
            self.runs[name].append(step)

    def predict_validation(
        self, step: str, job: Job, values: Mapping[str, Any], needs: tuple[str, ...], after: tuple[str, ...]
    ) -> tuple[str, ...]:
        """The step that predicts val into a zero-shot run, as trainings do, for what is fitted on val: temperatures."""
        name, folder = f"{step}-val", self.study.run(step)
        marker = folder / "predictions" / "val.parquet"
        placed = {**values, "split": "val", "out": self.study.settings.out, "name": folder.name}
        self.add(self.step(name, job, placed, folder=folder, marker=marker, needs=needs, after=after))
        return (name,)

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
        method = method_of(job.command)
        if job.command not in UNTRAINED and not (method and method.uses_embeddings):
            return ()
        flags = settings_of(config_of("embed"))
        read = {key: value for key, value in {**values, **job.settings}.items() if key in flags and key != "embeddings"}
        read = {key: value for key, value in read.items() if not key.startswith("compute.")}
        if read.get("clip.pretrained") != "none" or not read.get("seed"):
            read.pop("seed", None)  # only random weights depend on it, and 0 is the default
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
        if len(job.methods) != 1:
            raise UserError(f"{job.place}: a sweep is of one method, not of {len(job.methods)}.")
        method = self.study.methods[job.methods[0]]
        search = f"{name}-search"
        encoder, needs = self.encoder(method, 0)
        values = {"data": self.study.data.folder} | encoder
        needs, after = self.needs_data() + needs, tuple(self.runs[job.methods[0]])
        self.add(self.many(search, job, method, values, "task", needs=needs, after=after))
        folder = self.study.run(search)
        self.add(self.run_step(name, method, values, needs=(*needs, search), best_of=folder))
        self.runs[name] = [name]

    def many(self, step: str, job: Job, method: Job, values: Mapping[str, Any], field: str, **more: Any) -> Step:
        """A step that trains a method many times: the field `field` of the job's config is the method's config."""
        once = self.run_step(step, method, values)
        config_type = config_of(job.command)
        config = build_config(config_type, settings_of(config_type), job.settings, job.place, {field: once.config})
        words = (job.command, method.command.replace("-", "_"), *once.args[1:], *command_args(job.settings))
        return dataclasses.replace(once, command=job.command, args=words, config=config, **more)

    def crossval(self, job: Job) -> None:
        """A cross-validation of each method that is named."""
        for name in job.methods:
            method = self.study.methods[name]
            encoder, needs = self.encoder(method, 0)
            values = {"data": self.study.data.folder} | encoder
            needs, after = self.needs_data() + needs, tuple(self.runs[name])
            self.add(self.many(f"{name}-{CROSSVAL}", job, method, values, "method", needs=needs, after=after))

    def ensemble(self, name: str, job: Job) -> None:
        """A method that joins the runs of others, of all their seeds."""
        steps = [step for method in job.methods for step in self.runs[method]]
        runs = tuple(self.result(step) for step in steps)
        made = self.run_step(name, job, {}, needs=tuple(steps), fields={"runs": runs})
        self.add(dataclasses.replace(made, args=(made.command, *map(str, runs), *made.args[1:])))
        self.runs[name] = [name]

    def compare(self) -> None:
        """A comparison of all methods of a kind, and one of all cross-validations, where there are two or more."""
        folds = [step.name for step in self.steps.values() if step.command == CROSSVAL]
        for split, names in (("test", [step for steps in self.runs.values() for step in steps]), (CROSSVAL, folds)):
            for kind in dict.fromkeys(_kind(self.steps[name]) for name in names):
                runs = {name: self.result(name) for name in names if _kind(self.steps[name]) == kind}
                ending = [*([] if split == "test" else [split]), *([] if kind == "classification" else [kind])]
                if len(runs) > 1:
                    name, by = "-".join(["compare", *ending]), "by" in self.study.compare.settings
                    values = {"split": split} | ({"data": self.study.data.folder} if by else {})
                    external = self.external() if name == "compare" else {}
                    fields = {"external": tuple(folder for _, folder in external.values())}
                    made = self.run_step(
                        name, self.study.compare, values, fields, input_folders=runs, optional_folders=external
                    )
                    self.add(made)

    def external(self) -> dict[str, tuple[str, Path]]:
        """The external sets that methods are tested on, by the steps that prepare them."""
        return {f"prepare-{name}": ("external", data.folder) for name, data in self.study.external.items()}

    def audit(self) -> None:
        """The audit of the data against the external ones, once the encoders have embedded them."""
        if self.study.audit:
            against = tuple(data.folder for data in self.study.external.values())
            values = {"data": self.study.data.folder, "fail-on": "never"} | ({"against": against} if against else {})
            needs = self.needs_data(external=True)
            after = tuple(name for name, step in self.steps.items() if step.command == "embed")
            self.add(self.run_step("audit", self.study.audit, values, needs=needs, after=after))

    def report(self) -> None:
        """The page of all classifications; of another kind, where there are none."""
        if not self.study.report:
            return
        names = [step for steps in self.runs.values() for step in steps]
        kinds = [_kind(self.steps[name]) for name in names]
        kind = "classification" if "classification" in kinds else kinds[0]
        runs = {name: self.result(name) for name in names if _kind(self.steps[name]) == kind}
        audit = {"audit": ("audit", self.steps["audit"].folder)} if "audit" in self.steps else {}
        values = {"data": self.study.data.folder, "study": self.study.folder}
        comparison = next((step for step in self.steps.values() if step.command == "compare"), None)
        instead = {comparison.name: comparison.folder} if comparison and {*comparison.input_folders} == {*runs} else {}
        needs = self.needs_data()
        after = tuple(name for name in self.steps if name not in needs)
        made = self.run_step("report", self.study.report, values, needs=needs, after=after, input_folders=runs)
        self.add(dataclasses.replace(made, optional_folders=audit, combined=instead))


def _kind(step: Step) -> str:
    """The kind of a method's predictions."""
    return kind_of(getattr(step.training_config, "task", step.command))


def add_best_settings(words: Iterable[str], sweep: Path, command: str) -> tuple[str, ...]:
    """The words of a training, and behind them the best settings that a finished sweep found."""
    names = {".".join(flag.path): name for name, flag in settings_of(config_of(command)).items()}
    best = json.loads((sweep / "best.json").read_text(encoding="utf-8"))["values"]
    return (*words, *command_args({names[key]: value for key, value in best.items()}))
