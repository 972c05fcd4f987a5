"""The audit: every check in turn, its findings ranked, and the page and the JSON that show them."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipcovid.audit.accepted_pairs import read_accepted_pairs, write_pairs
from clipcovid.audit.associations import check_associations
from clipcovid.audit.config import AuditConfig
from clipcovid.audit.contamination import check_contamination, check_encoder
from clipcovid.audit.data import AuditData, PreparedSet, hashes_by_name, read_manifests
from clipcovid.audit.duplicates import PAIRS_FILE, check_duplicates, near_pairs
from clipcovid.audit.fields import check_fields
from clipcovid.audit.patients import check_patients
from clipcovid.audit.shortcuts import check_shortcuts
from clipcovid.evaluate.number_format import format_count
from clipcovid.io.files import write_json, write_text
from clipcovid.report.findings import SEVERITIES, Finding, findings_html, rank_findings
from clipcovid.report.page import Section, facts_html, list_html, render_page

Check = Callable[[AuditData, AuditConfig], list[Finding]]
CHECKS: dict[str, Check] = {
    "patients": check_patients,
    "duplicates": check_duplicates,
    "fields": check_fields,
    "what goes with the class": check_associations,
    "shortcuts": check_shortcuts,
    "what encoders have seen": check_contamination,
}
"""What is looked at, by what the line of progress says, in the order of the page where findings are equally severe."""
SECTION_TITLES = {
    "high": "High: a test score would be wrong",
    "medium": "Medium: a test score may be too good",
    "low": "Low: to be known",
    "info": "What was looked at without a fault, or could not be",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found."""

    data: AuditData
    findings: tuple[Finding, ...]
    """The worst first."""

    def counts(self) -> dict[str, int]:
        """Severity → findings, of all severities from the worst down."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    def failures(self, fail_on: str) -> list[Finding]:
        """The findings of this severity or a worse one; none for `never`."""
        if fail_on == "never":
            return []
        worst = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
        return [finding for finding in self.findings if finding.severity in worst]


def check_flags(config: AuditConfig) -> None:
    """Refuse, as a `UserError`, encoders and reviewed pairs that an audit can't take, before a pixel is read."""
    for encoder in config.encoders:
        check_encoder(encoder)
    read_accepted_pairs(config.accept, hashes_by_name(read_manifests(config)))


def audit(
    data: AuditData, config: AuditConfig, checks: Mapping[str, Check] = CHECKS, log: Callable[[str], None] = print
) -> Audit:
    """Run all `checks` on the config's data sets, with a line of progress for each; what one can't do is a finding."""
    findings = list[Finding]()
    for number, (name, check) in enumerate(checks.items(), 1):
        start = time.monotonic()
        found = check(data, config)
        findings += found
        counts = Counter(finding.severity for finding in found)
        told = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity]) or "nothing"
        log(f"check {number} of {len(checks)}: {name}: {told} ({time.monotonic() - start:.0f} s)")
    return Audit(data=data, findings=tuple(rank_findings(findings)))


def write_audit(result: Audit, config: AuditConfig, folder: Path) -> None:
    """Write audit.html, audit.json, metrics.json and the near duplicates to be reviewed into the run's `folder`."""
    write_pairs(folder / PAIRS_FILE, near_pairs(result.findings), config.accept)
    write_json(folder / "audit.json", audit_json(result, config))
    write_json(folder / "metrics.json", {"audit": _scores(result)})
    write_text(folder / "audit.html", audit_page(result, config))


def audit_json(result: Audit, config: AuditConfig) -> dict[str, Any]:
    """The content of audit.json: which data, what was found, and whether it passes `config.fail_on`."""
    return {
        "version": 1,
        "data": _describe(result.data.main),
        "against": [_describe(other) for other in result.data.others],
        "fail_on": config.fail_on,
        "passed": not result.failures(config.fail_on),
        "counts": result.counts(),
        "findings": [finding.to_json() for finding in result.findings],
    }


def _describe(prepared: PreparedSet) -> dict[str, Any]:
    manifest = prepared.manifest
    return {
        "name": prepared.name,
        "folder": str(prepared.folder),
        "dataset": manifest.dataset,
        "images": len(manifest.table),
        "patients": int(manifest.table["patient_id"].replace("", None).nunique()),
        "images_without_patient": int((manifest.table["patient_id"] == "").sum()),
        "classes": list(manifest.classes),
        "manifest_hash": manifest.content_hash,
        "split_hash": manifest.split_hash,
    }


def _scores(result: Audit) -> dict[str, Any]:
    """What MLflow shows: findings by severity as metrics, and the worst as alarms."""
    metrics = {f"findings/{severity}": count for severity, count in result.counts().items()}
    alarms = [finding.summary for finding in result.findings if finding.severity == "high"]
    return {"metrics": metrics, "baselines": {}, "alarms": alarms}


def audit_page(result: Audit, config: AuditConfig) -> str:
    """The content of audit.html, self-contained."""
    sections = [
        Section(title=f"{title} ({len(found)})", parts=(findings_html(found),))
        for severity, title in SECTION_TITLES.items()
        if (found := [finding for finding in result.findings if finding.severity == severity])
    ]
    sections.append(Section(title="Data", parts=(facts_html([_facts(prepared) for prepared in result.data.sets]),)))
    lead = [verdict_text(result, config), list_html(_headlines(result))]
    return render_page(f"Audit of {result.data.main.name}", sections, lead=lead, subtitle=_subtitle(result.data))


def _headlines(result: Audit) -> list[str]:
    """What the findings of each severity but info are called, a line each."""
    named = {
        severity: [one.check for one in result.findings if one.severity == severity] for severity in SEVERITIES[:-1]
    }
    return [f"{severity}: {'; '.join(names)}" for severity, names in named.items() if names]


def verdict_text(result: Audit, config: AuditConfig) -> str:
    """How many findings of what severity there are, and whether they fail the audit, in a sentence."""
    counts = result.counts()
    told = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES[:-1] if counts[severity])
    if not told:
        return "Nothing was found that would make a test score wrong. What the audit can't see it can't rule out."
    failed = result.failures(config.fail_on)
    asked = "no finding fails" if config.fail_on == "never" else f"findings that are {config.fail_on} or worse fail"
    outcome = f"it fails, by {len(failed):,} of them" if failed else "it passes"
    return f"Findings: {told}. With --fail-on {config.fail_on} {asked} the audit, so {outcome}."


def _subtitle(data: AuditData) -> str:
    others = ", ".join(other.name for other in data.others)
    return format_count(len(data.main.table), "image") + (f", against {others}" if others else "")


def _facts(prepared: PreparedSet) -> tuple[str, str]:
    known = _describe(prepared)
    unknown = known["images_without_patient"]
    patients = format_count(known["patients"], "patient")
    patients += f", unknown of {format_count(unknown, 'image')}" if unknown else ""
    images = format_count(known["images"], "image")
    return prepared.name, f"{images}, {patients}; {', '.join(known['classes'])}; {known['folder']}"
