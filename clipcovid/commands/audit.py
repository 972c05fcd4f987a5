"""Audit a data set: leaks, shortcuts, what is confounded.

    clipcovid audit --data data/quex
    clipcovid audit --data data/quex --against data/external --fail-on medium

Looks for patients and images that are in several splits or data sets, for labels that contradict each other, for classes
that are told by their source, their files or their borders, and for encoders that may have seen the images. Writes
audit.html and audit.json into a run folder. Exit status 1 where a finding of --fail-on or worse stands.
"""

from clipcovid.audit.config import AuditConfig
from clipcovid.workflows.audit import audit_data


def main(config: AuditConfig) -> None:
    """Audit the data set; findings of `config.fail_on` or worse end the process with status 1."""
    result, _ = audit_data(config)
    if result.failures(config.fail_on):
        raise SystemExit(1)
