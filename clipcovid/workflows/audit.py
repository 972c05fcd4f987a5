"""An audit as a run: its page and JSON in a run folder, its findings on the terminal and in MLflow."""

import textwrap

from clipcovid.audit.accepted_pairs import read_accepted_pairs
from clipcovid.audit.audit import Audit, audit, check_flags, verdict_text, write_audit
from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import read_audit_data
from clipcovid.audit.duplicates import PAIRS_FILE
from clipcovid.errors import RESEARCH_ONLY
from clipcovid.identity import audit_identity
from clipcovid.runs import SUCCESS_MARKER, Run, finish_run, start_run
from clipcovid.terminal import terminal_width
from clipcovid.workflows.report import report_run


def audit_data(config: AuditConfig) -> tuple[Audit, Run]:
    """Audit the config's data set; write, print and show what was found. An audit is computed anew each time."""
    check_flags(config)
    data = read_audit_data(config)
    manifests = [prepared.manifest for prepared in data.sets]
    run = start_run(config, method="audit", identity=audit_identity(config, manifests))
    if (run.folder / PAIRS_FILE).exists():
        read_accepted_pairs(
            run.folder / PAIRS_FILE
        )  # whose answers are kept: what is wrong in it is said before the work
    (run.folder / SUCCESS_MARKER).unlink(missing_ok=True)
    result = audit(data, config)
    write_audit(result, config, run.folder)
    finish_run(run)
    print_audit(result, config)
    report_run(run, config, manifest=manifests[0], splits=("all",), title="Audit")
    return result, run


def print_audit(result: Audit, config: AuditConfig) -> None:
    """Print each finding but for those of info, with what to do, and the verdict."""
    width = terminal_width() - 1
    for finding in result.findings:
        if finding.severity != "info":
            print(textwrap.fill(f"{finding.severity.upper()}: {finding.summary}", width, subsequent_indent="  "))
            print(textwrap.fill(finding.advice, width, initial_indent="  → ", subsequent_indent="    "))
    print(textwrap.fill(verdict_text(result, config), width))
    print(RESEARCH_ONLY)
