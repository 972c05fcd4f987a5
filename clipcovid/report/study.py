"""What a report is made of: a comparison, the predictions behind it, and what is known of data, runs and machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from clipcovid.data.packed import PackedImages
from clipcovid.evaluate.kinds.base import Kind
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.scores import Comparison
from clipcovid.report.findings import Finding


@dataclass(frozen=True, kw_only=True)
class MethodRun:
    """What the run folder of a method says of it."""

    folder: str
    config: Mapping[str, Any]
    """Dotted key → value; empty for predictions without a run."""
    identity: Mapping[str, Any]
    history: Mapping[str, Any] = field(default_factory=dict)
    """A training's epochs, and which of them was the best; empty for what is not trained."""
    command: str = ""
    """The command that makes the run again; "" where it can't be told."""
    description: str = ""
    """What the method is, in a line."""

    @property
    def kept_epoch(self) -> Mapping[str, Any]:
        """The line of a training's epoch whose weights were kept; empty for what is not trained."""
        epochs = self.history.get("epochs", [])
        if not epochs:
            return {}
        if self.config.get("optim.keep") == "last":
            return epochs[-1]
        return next((line for line in epochs if line["epoch"] == self.history["best_epoch"]), epochs[-1])


@dataclass(frozen=True, kw_only=True)
class AuditSummary:
    """An audit of the data."""

    folder: str
    findings: Sequence[Finding]
    """The worst first."""


@dataclass(frozen=True, kw_only=True)
class StudyStep:
    """A step of a study file, and how it ended."""

    name: str
    state: str
    """done, failed, left out, stopped or running."""
    seconds: float = 0.0
    reason: str = ""
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that a report tells."""

    title: str
    comparison: Comparison
    tables: Mapping[str, pd.DataFrame]
    """Method → its predictions, the best first; the images stand in the same order in all."""
    runs: Mapping[str, MethodRun]
    """Method → its run."""
    images: PackedImages | None = None
    """The prepared data; None where it is not at hand."""
    quarantined: Mapping[str, int] = field(default_factory=dict)
    """Reason → files that could not be used."""
    audit: AuditSummary | None = None
    environment: Sequence[tuple[str, str]] = ()
    """Names and versions of what the report was made with."""
    commands: Sequence[str] = ()
    """The commands that make all of it again, in their order."""
    steps: Sequence[StudyStep] = ()
    """The steps of the study file that made it, where one did."""
    family_findings: Sequence[Finding] = ()
    """What sets CLIP against CNN."""

    @property
    def kind(self) -> Kind[Any]:
        """The kind of the predictions."""
        return get_kind(self.comparison.kind)
