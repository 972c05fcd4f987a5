"""What an audit is asked for."""

import dataclasses
from pathlib import Path
from typing import Literal

from clipcovid.audit.encoder_facts import check_public_sets
from clipcovid.errors import UserError

FailOn = Literal["high", "medium", "low", "never"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What to audit, and against what."""

    data: Path
    """A prepared folder."""
    against: tuple[Path, ...] = ()
    """Other prepared folders, which may share images and patients with --data: training sets, external test sets."""
    fail_on: FailOn = "high"
    """The least severity of a finding that makes the exit status 1."""
    accept: Path | None = None
    """The near_duplicates.csv of an earlier audit, with yes beside the pairs that are no duplicates or may stay."""
    encoders: tuple[str, ...] = ()
    """Encoders that are to be used on --data: MODEL:WEIGHTS of --clip.model and --clip.pretrained, a hub model, a timm
    architecture, or a run's folder. Default: those that --data has embeddings of."""
    contains: tuple[str, ...] = ()
    """Public data sets that --data has images of, e.g. nih-chestxray14. Default: those that its source and columns name."""
    out: Path = Path("outputs")
    """Where run folders and the MLflow store go."""
    name: str = ""
    """The run folder's name. Default: audit and a hash of the data."""
    seed: int = 0
    """Seed of folds and resamples."""

    def __post_init__(self) -> None:
        check_public_sets(self.contains)
        folders = [folder.resolve() for folder in (self.data, *self.against)]
        if twice := [folder for number, folder in enumerate(folders) if folder in folders[:number]]:
            raise UserError(f"{twice[0]} is named twice: give each prepared folder once, as --data or in --against.")
