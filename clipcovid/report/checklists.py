"""Reporting checklists: each item in our own words, filled where files know the answer, the rest open for people."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from clipcovid.errors import UserError
from clipcovid.evaluate.number_format import agree, format_count
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report import cards
from clipcovid.report.page import Part, Section
from clipcovid.report.study import ReportData

FOLDER = Path(__file__).parent / "checklists"
OPEN_TEXT = "For people to answer."


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a checklist."""

    item: str
    """Its number there."""
    topic: str
    asks: str
    evidence: str = ""
    """The key of `EVIDENCE` that answers it; "" where only people can."""


@dataclass(frozen=True, kw_only=True)
class Checklist:
    """A reporting guideline's items."""

    name: str
    source: str
    items: tuple[Item, ...]


def read_checklists() -> list[Checklist]:
    """All checklists, by their files' names."""
    contents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.yaml"))]
    return [
        Checklist(name=entry["name"], source=entry["source"], items=tuple(Item(**item) for item in entry["items"]))
        for entry in contents
    ]


def read_answers(path: Path) -> dict[str, dict[str, str]]:
    """People's answers: checklist → item → text, from a YAML file; what names no item, or is no text, is a `UserError`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--answers {path} can't be read as YAML ({error}): give checklist, item and text.") from None
    known = {checklist.name: {item.item for item in checklist.items} for checklist in read_checklists()}
    if not isinstance(content, dict) or not all(isinstance(entry, dict | None) for entry in content.values()):
        raise UserError(f"--answers {path} must map {' and '.join(known)} to items with texts.")
    answers = {
        str(name): {str(item): _answer(text, f"{path} {name} {item}") for item, text in (entry or {}).items()}
        for name, entry in content.items()
    }
    for name, entry in answers.items():
        if unknown := set(entry) - known.get(name, set()):
            raise UserError(
                f"--answers {path} answers {name} {min(unknown)}, which does not exist: the checklists are "
                f"{' and '.join(known)}, with their own numbers."
            )
    return answers


def _answer(value: object, where: str) -> str:
    """An answer as a text, "" for none: the item stays open."""
    if isinstance(value, list | dict):
        raise UserError(
            f"--answers {where} is a {'list' if isinstance(value, list) else 'mapping'}: give one text, in "
            "quotes where it has a colon or a bracket."
        )
    if isinstance(value, bool):
        return "yes" if value else "no"  # which YAML reads as truth values
    return "" if value is None else str(value).strip()


def checklist_sections(study: ReportData, answers: Mapping[str, Mapping[str, str]]) -> Section:
    """A table for each checklist; people's answers stand before what files know."""
    found = evidence(study)
    below = []
    for checklist in read_checklists():
        rows, filled = [], 0
        for item in checklist.items:
            told = [answers.get(checklist.name, {}).get(item.item, ""), found.get(item.evidence, "")]
            text = " ".join(filter(None, told))
            filled += bool(text)
            rows.append([item.item, item.topic, item.asks, text or OPEN_TEXT])
        table = TextTable(headers=("item", "topic", "asks", "answer"), sections=[rows], texts=True)
        intro = (
            f"{filled} of {len(rows)} items have an answer here, {len(rows) - filled} are for people to answer. The "
            f"items are in our words: {checklist.source}."
        )
        below.append(Section(title=checklist.name, parts=(intro, table)))
    parts: tuple[Part, ...] = ("What files know is filled in; a person has to check it, and to answer the rest.",)
    return Section(title="Checklists", parts=parts, subsections=tuple(below))


def evidence(study: ReportData) -> dict[str, str]:
    """Key → what the files of a study say of it, "" where they say nothing."""
    return {key: tell(study) for key, tell in EVIDENCE.items()}


def _of_data(tell: Callable[[ReportData], str]) -> Callable[[ReportData], str]:
    """The same where the prepared data are at hand, else nothing."""
    return lambda study: tell(study) if study.images is not None else ""


def _manifest_text(tell: Callable[..., str]) -> Callable[[ReportData], str]:
    return _of_data(lambda study: tell(study.images.manifest if study.images else None))


def _goal(study: ReportData) -> str:
    trained = [name for name, run in study.runs.items() if run.history.get("epochs")]
    return (
        f"A comparison of {format_count(len(study.runs), 'method')} on the same images; {len(trained)} of them "
        f"{agree(len(trained), 'was', 'were')} trained for it. Research use only."
    )


def _sources(study: ReportData) -> str:
    assert study.images is not None
    manifest = study.images.manifest
    names = [name for name in manifest.table["source"].unique() if name]
    more = " …" if len(names) > 8 else ""
    listed = f" from {format_count(len(names), 'source')}: {', '.join(names[:8])}{more}" if names else ""
    return f"{manifest.dataset}, {len(manifest.table):,} images{listed}. The data card has counts; people have to say whose."


def _left_out(study: ReportData) -> str:
    assert study.images is not None
    return f"Left out: {cards.left_out_text(study.images.manifest, study.quarantined)}."


def _missing(study: ReportData) -> str:
    assert study.images is not None
    left_out = cards.left_out_text(study.images.manifest, study.quarantined)
    return f"Images left out: {left_out}. Fields that are missing: see the data card; none is filled in by a guess."


def _views(study: ReportData) -> str:
    assert study.images is not None
    views = study.images.manifest.table["view"].replace("", "unknown").value_counts()
    return "Views: " + ", ".join(f"{name} {count:,}" for name, count in views.items()) + "."


def _disjoint(study: ReportData) -> str:
    assert study.images is not None
    return f"Patients, where they are known, and equal pixels. {cards.duplicates_text(study.images.manifest)}."


def _sample_size(study: ReportData) -> str:
    comparison = study.comparison
    intervals = comparison.methods[comparison.best].intervals
    return (
        f"{comparison.n:,} images of {intervals['units']:,} {intervals['unit']}s were there to be tested; the intervals show "
        "what that number allows. People have to say whether more were planned."
    )


def _models(study: ReportData) -> str:
    return f"See the model cards of {', '.join(study.runs)}."


def _initial_weights(study: ReportData) -> str:
    return "; ".join(f"{name}: {cards.initial_weights_text(run)}" for name, run in study.runs.items()) + "."


def _training(study: ReportData) -> str:
    keys = ("optim.epochs", "optim.batch_size", "optim.lr", "optim.weight_decay", "seed")
    told = [
        f"{name}: " + ", ".join(f"{key.removeprefix('optim.')} {run.config[key]}" for key in keys if key in run.config)
        for name, run in study.runs.items()
        if run.history.get("epochs")
    ]
    return (
        "; ".join(told) + ". Commands with all settings stand in the model cards." if told else "Nothing was trained."
    )


def _model_choice(study: ReportData) -> str:
    told = [
        f"{name}: {run.config.get('optim.keep', 'best')} epoch, watched by validation {run.history['monitor']}"
        for name, run in study.runs.items()
        if run.history.get("epochs")
    ]
    return "; ".join(told) + "." if told else ""


def _ensembles(study: ReportData) -> str:
    names = [name for name in study.runs if name.startswith("ensemble")]
    return f"{', '.join(names)}: see the model cards." if names else "None."


def _metrics(study: ReportData) -> str:
    heads = study.kind.comparison_headers(study.comparison).values()
    return f"{', '.join(head.replace(chr(10), ' ') for head in heads)}, and those of the further tables."


def _uncertainty(study: ReportData) -> str:
    return " ".join(study.comparison.notes[:4])


def _robustness(study: ReportData) -> str:
    if study.audit is None:
        return ""
    return f"The audit looked for leaks and shortcuts: {len(study.audit.findings)} findings, in their section."


def _external(study: ReportData) -> str:
    tests = [test for test in study.comparison.external if test.methods]
    sets = ", ".join(f"{test.dataset} ({test.n:,} images)" for test in tests)
    return f"Methods were tested on {sets} too: see external testing." if tests else ""


def _flow(study: ReportData) -> str:
    assert study.images is not None
    manifest = study.images.manifest
    left_out = cards.left_out_text(manifest, study.quarantined)
    return (
        f"{len(manifest.table):,} images ({cards.patients_text(manifest)}) are in; left out: {left_out}. By split and "
        "class: see the data card."
    )


def _characteristics(study: ReportData) -> str:
    return "Classes, views, sources and what is known of patients: see the data card."


def _performance(study: ReportData) -> str:
    return (
        f"See the results: {len(study.runs)} methods and {len(study.comparison.baselines)} baselines, with intervals."
    )


def _limitations(study: ReportData) -> str:
    return " ".join(study.comparison.alarms)


def _outcome(study: ReportData) -> str:
    assert study.images is not None
    classes = ", ".join(study.images.manifest.classes)
    return f"Classes of the data set: {classes}. People have to say how they were determined." if classes else ""


def _imbalance(study: ReportData) -> str:
    weights = {str(run.config["class_weights"]) for run in study.runs.values() if "class_weights" in run.config}
    return (
        f"Class weights in training: {', '.join(sorted(weights))}. Macro averages count classes alike."
        if weights
        else ""
    )


def _say(text: str) -> Callable[[ReportData], str]:
    return lambda study: text


def _software(study: ReportData) -> str:
    return ", ".join(f"{name} {value}" for name, value in study.environment) + "." if study.environment else ""


EVIDENCE: Mapping[str, Callable[[ReportData], str]] = {
    "goal": _goal,
    "sources": _of_data(_sources),
    "preprocessing": _manifest_text(lambda manifest: f"{cards.preprocessing_text(manifest)}."),
    "left_out": _of_data(_left_out),
    "missing": _of_data(_missing),
    "views": _of_data(_views),
    "partitions": _manifest_text(lambda manifest: f"{cards.partitions_text(manifest)}."),
    "disjoint": _of_data(_disjoint),
    "sample_size": _sample_size,
    "models": _models,
    "software": _software,
    "initial_weights": _initial_weights,
    "training": _training,
    "model_choice": _model_choice,
    "ensembles": _ensembles,
    "metrics": _metrics,
    "uncertainty": _uncertainty,
    "robustness": _robustness,
    "internal": _say("The test split of the same data set: see the results."),
    "external": _external,
    "flow": _of_data(_flow),
    "characteristics": _of_data(_characteristics),
    "performance": _performance,
    "diagnostic_accuracy": _say("See the results."),
    "failures": _of_data(_say("The galleries show misses, those that all methods share first.")),
    "limitations": _limitations,
    "availability": _say("Code: clipcovid, Apache License 2.0. People have to say where models and data are."),
    "predictors": _say("The pixels of the image alone; no clinical data."),
    "outcome": _of_data(_outcome),
    "imbalance": _imbalance,
    "outputs": _say("Probabilities of the classes; the most probable one is taken, without a threshold."),
}
