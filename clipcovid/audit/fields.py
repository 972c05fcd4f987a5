"""Fields of the table: names that are nearly alike, and cells that are missing."""

import pandas as pd

from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import AuditData
from clipcovid.data.classes import normalize_name
from clipcovid.data.manifest import COLUMNS
from clipcovid.errors import quote_names
from clipcovid.evaluate.number_format import agree, format_count
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report.findings import Finding

NAMED_COLUMNS = ("label", "source", "view")
ALWAYS_FILLED_COLUMNS = ("image_id", "path", "split", "width", "height", "sha256")  # that every image has
MAX_OTHERS = 30  # further columns that are looked at: a source may bring thousands


def check_fields(data: AuditData, config: AuditConfig) -> list[Finding]:
    """Findings on names that are nearly alike, in the audited set and between it and the others, and on missing fields."""
    return [*_alike_names(data), _missing_fields(data.main.table)]


def _alike_names(data: AuditData) -> list[Finding]:
    findings = []
    for column in NAMED_COLUMNS:
        counted = {part.name: part.table[column].value_counts() for part in data.sets}
        counts = pd.concat(counted, names=["set", "name"]).rename("images").reset_index()
        counts = counts[counts["name"] != ""]
        key = counts["name"].map(normalize_name)
        several = counts.groupby(key)["name"].transform("nunique") > 1
        if not several.any():
            continue
        twins = counts[several]
        names = [group.unique().tolist() for _, group in twins.groupby(key[several], sort=False)["name"]]
        alike = "; ".join(map(quote_names, names))
        rows = [(row["name"], row["set"], f"{row['images']:,}") for row in twins.to_dict("records")]
        findings.append(
            Finding(
                check=f"names of the {column} that are nearly alike",
                severity="medium" if column == "label" else "low",
                summary=f"Names of the {column} differ in case, spaces or punctuation only: {alike}.",
                advice="Write them alike (--rename does it for classes) and prepare again: they count as different ones."
                if column == "label"
                else "Write them alike in the data set's table and prepare again: they count as different ones.",
                numbers={"names": names},
                tables=(TextTable(headers=(column, "set", "images"), sections=[rows]),),
            )
        )
    return findings


def _missing_fields(table: pd.DataFrame) -> Finding:
    own = [column for column in COLUMNS if column not in ALWAYS_FILLED_COLUMNS]
    others = [str(column) for column in table if column not in COLUMNS]
    columns = [*own, *others[:MAX_OTHERS]]
    missing = (table[columns] == "").sum()
    partly = [column for column in own if 0 < missing[column] < len(table)]
    never = [column for column in own if missing[column] == len(table)]
    told = []
    if partly:
        told.append(f"some images lack {', '.join(f'{name} ({missing[name]:,})' for name in partly)}")
    if never:
        told.append(f"no image has {', '.join(never)}")
    if len(others) > MAX_OTHERS:
        unread = len(others) - MAX_OTHERS
        told.append(f"{format_count(unread, 'further column')} {agree(unread, 'was', 'were')} not looked at")
    rows = [(name, f"{missing[name]:,}", f"{missing[name] / len(table):.0%}") for name in columns if missing[name]]
    summary = "; ".join(told) or f"No field of {format_count(len(table), 'image')} is empty"
    return Finding(
        check="missing fields",
        severity="low" if {"label", "source", "view"} & set(partly) else "info",
        summary=f"{summary[0].upper()}{summary[1:]}.",
        advice="Checks by source, view, age or sex see only the images that have the field; fill in what can be known."
        if rows
        else "Nothing.",
        numbers={"images": len(table), "missing": {name: int(count) for name, count in missing.items()}},
        tables=(TextTable(headers=("field", "missing", "share"), sections=[rows]),) if rows else (),
    )
