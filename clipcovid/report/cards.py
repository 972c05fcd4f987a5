"""The data card and the model cards of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from clipcovid.data.manifest import SPLITS, Manifest
from clipcovid.errors import RESEARCH_ONLY
from clipcovid.evaluate.number_format import format_short, format_with_interval
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report.page import Part, Section, code_html, facts_html, list_html
from clipcovid.report.study import MethodRun, ReportData

FIELDS = ("patient_id", "source", "view", "sex", "age", "caption", "lung_mask", "infection_mask", "boxes")
GROUP_COLUMNS = ("source", "view", "sex")
MAX_GROUPS = 12  # values of a column that are told apart
WEIGHTS_KEYS = ("arch", "clip.model", "clip.pretrained", "weights")


def data_card(study: ReportData) -> Section:
    """What the images are: counts, splits, what is known of them, and how they were prepared."""
    if study.images is None:
        return Section(title="Data card", parts=("The prepared data are not at hand: --data names their folder.",))
    manifest = study.images.manifest
    facts = [
        ("Data set", f"{manifest.dataset}, prepared in {study.images.folder}"),
        ("Images", f"{len(manifest.table):,}"),
        ("Patients", patients_text(manifest)),
        ("Classes", ", ".join(manifest.classes) or "none"),
        ("Pixels", preprocessing_text(manifest)),
        ("Splits", partitions_text(manifest)),
        ("Duplicates", duplicates_text(manifest)),
        ("Left out", left_out_text(manifest, study.quarantined)),
        ("Content hash", manifest.content_hash),
        ("Split hash", manifest.split_hash),
    ]
    remarks = [*manifest.info.get("warnings", []), *manifest.info.get("notes", [])]
    tables = [_class_table(manifest), _fields_table(manifest), *_group_tables(manifest)]
    noted = ("What the preparation remarked:", list_html(remarks)) if remarks else ()
    return Section(title="Data card", parts=(facts_html(facts), *tables, *noted))


def patients_text(manifest: Manifest) -> str:
    """How many patients there are, and for how many images they are unknown."""
    ids = manifest.table["patient_id"]
    unknown = int((ids == "").sum())
    known = f"{ids[ids != ''].nunique():,} known"
    return known + (f"; {unknown:,} images have no patient id" if unknown else "")


def preprocessing_text(manifest: Manifest) -> str:
    """What was done to the pixels."""
    how = manifest.info["images"]
    return f"{how['mode']}, 8 bits, {how['size']} × {how['size']} ({how['fit']})"


def partitions_text(manifest: Manifest) -> str:
    """How the splits were made."""
    recipe = manifest.info.get("recipe", {})
    splits = manifest.table["split"].value_counts()
    counts = ", ".join(f"{name} {splits.get(name, 0):,}" for name in SPLITS)
    remade = recipe.get("resplit") == "True"
    origin = "made anew" if remade else "the data set's own where it has any, else made"
    shares = f"validation {recipe.get('val', '?')}, test {recipe.get('test', '?')}, seed {recipe.get('seed', '?')}"
    return f"{counts}; {origin} by patient and by equal pixels ({shares})"


def duplicates_text(manifest: Manifest) -> str:
    """Images of equal pixels and patients over splits, as the preparation counted them."""
    pairs = manifest.info.get("duplicates", {})
    patients = manifest.info.get("patients_across_splits", 0)
    return (
        f"{pairs.get('within', 0):,} images have the pixels of another of their split, {pairs.get('across', 0):,} of "
        f"one of another split; {patients:,} patients are in several splits"
    )


def left_out_text(manifest: Manifest, quarantined: Mapping[str, int]) -> str:
    """What was not used, and why."""
    reasons = {str(reason): int(count) for reason, count in manifest.info.get("left_out", {}).items()}
    told = [f"{count:,}: {reason}" for reason, count in (reasons | dict(quarantined)).items()]
    return "; ".join(told) or "nothing"


def _class_table(manifest: Manifest) -> TextTable:
    rows = manifest.table
    names = [*manifest.classes, *([""] if (rows["label"] == "").any() else [])]
    heads = [head for split in SPLITS for head in (f"{split}\nimages", f"{split}\npatients")]
    body = [
        [name or "(no label)", *(cell for split in SPLITS for cell in _counts(rows[rows["label"] == name], split))]
        for name in names
    ]
    total = ["all", *(cell for split in SPLITS for cell in _counts(rows, split))]
    return TextTable(title="Images and known patients", headers=["class", *heads], sections=[body, [total]])


def _counts(rows: pd.DataFrame, split: str) -> tuple[str, str]:
    rows = rows[rows["split"] == split]
    patients = rows["patient_id"][rows["patient_id"] != ""].nunique()
    return f"{len(rows):,}", f"{patients:,}"


def _fields_table(manifest: Manifest) -> TextTable:
    rows = manifest.table
    body = [
        [name.replace("_", " "), *(_share(rows.loc[rows["split"] == split, name] != "") for split in SPLITS)]
        for name in FIELDS
        if name in rows
    ]
    return TextTable(title="Share of images for which a field is known", headers=["field", *SPLITS], sections=[body])


def _share(known: pd.Series) -> str:
    return f"{known.mean():.0%}" if len(known) else ""


def _group_tables(manifest: Manifest) -> list[TextTable]:
    """Classes by source, view and sex, where there is more than one of them."""
    tables = []
    for column in (name for name in GROUP_COLUMNS if name in manifest.table):
        values = manifest.table[column].replace("", "(unknown)")
        frequent = values.value_counts().index[:MAX_GROUPS]
        if values.nunique() < 2:
            continue
        counts = pd.crosstab(values.where(values.isin(frequent), "(others)"), manifest.table["label"])
        order = [name for name in (*frequent, "(others)") if name in counts.index]
        body = [[str(name), *(f"{counts.loc[name].get(label, 0):,}" for label in manifest.classes)] for name in order]
        tables.append(TextTable(title=f"Images by {column}", headers=[column, *manifest.classes], sections=[body]))
    return tables


def model_cards(study: ReportData) -> Section:
    """What each method is and how it was trained."""
    intro = f"What each method is, by its run folder. {RESEARCH_ONLY}"
    cards = tuple(_model_card(name, study) for name in study.comparison.methods)
    return Section(title="Model cards", parts=(intro, _training_table(study)), subsections=cards)


def _training_table(study: ReportData) -> TextTable:
    heads = ("method", "starts from", "epochs", "kept", "minutes", "train\naccuracy", "val\naccuracy")
    rows = []
    for name, run in study.runs.items():
        epochs, kept = run.history.get("epochs", []), run.kept_epoch
        minutes = sum(line.get("seconds", 0) for line in epochs) / 60
        cells = (f"{epochs[-1]['epoch']:.0f}", f"{kept['epoch']:.0f}", f"{minutes:.1f}") if kept else ("", "", "")
        accuracies = [format_short(kept[key], 3) if key in kept else "" for key in ("train/accuracy", "val/accuracy")]
        rows.append([name, initial_weights_text(run), *cells, *accuracies])
    caption = "Accuracies are of the kept epoch; where training's is far above validation's, the method is over-fitted."
    return TextTable(title="Training", headers=heads, sections=[rows], caption=caption, texts=True)


def initial_weights_text(run: MethodRun) -> str:
    """What a run's model began as."""
    parts = [str(run.config[key]) for key in WEIGHTS_KEYS if run.config.get(key)]
    return ", ".join("random weights" if part == "none" else part for part in dict.fromkeys(parts)) or "unknown"


def _model_card(name: str, study: ReportData) -> Section:
    run, scores = study.runs[name], study.comparison.methods[name]
    values = [
        f"{label} {format_with_interval(scores.metrics[metric], scores.intervals['intervals'].get(metric))}"
        for metric, label in study.kind.key_metrics.items()
        if metric in scores.metrics
    ]
    facts: list[tuple[str, str]] = [
        *([("What it is", run.description)] if run.description else []),
        ("Run", run.folder),
        ("Starts from", initial_weights_text(run)),
        *_training_facts(run),
        (f"Scores, {study.comparison.split}", "; ".join(values)),
        *[("Warning", alarm) for alarm in scores.alarms],
    ]
    prompts = run.identity.get("prompts")
    if isinstance(prompts, Mapping):
        facts += [(f"Prompts, {label}", _prompts_text(texts)) for label, texts in prompts.items()]
    command: tuple[Part, ...] = (code_html(run.command),) if run.command else ()
    return Section(title=name, parts=(facts_html(facts), *command))


def _training_facts(run: MethodRun) -> list[tuple[str, str]]:
    history, kept = run.history, run.kept_epoch
    if not kept:
        return [("Training", "none that its folder tells of")]
    monitor = str(history["monitor"])
    score = f", validation {monitor} {format_short(kept[f'val/{monitor}'], 3)}" if f"val/{monitor}" in kept else ""
    facts = [("Training", f"{history['epochs'][-1]['epoch']:.0f} epochs, epoch {kept['epoch']:.0f} kept{score}")]
    if chosen := history.get("chosen"):
        facts.append(("Chosen on validation", _settings_text(chosen)))
    return facts


def _settings_text(settings: Mapping[str, Any]) -> str:
    parts = [
        f"{key}: {_settings_text(value)}" if isinstance(value, Mapping) else f"{key} {value}"
        for key, value in settings.items()
    ]
    return ", ".join(parts)


def _prompts_text(texts: object) -> str:
    if not isinstance(texts, Sequence) or isinstance(texts, str):
        return str(texts)
    return f"{len(texts)}: {'; '.join(map(str, texts[:3]))}{' …' if len(texts) > 3 else ''}"
