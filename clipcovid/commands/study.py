"""Do all that one file says: prepare, train, compare, report.

    clipcovid study study.yaml --dry-run
    clipcovid study study.yaml
    clipcovid study --schema > study-schema.json

One file names the data, the encoders, the methods with their settings, seeds, sweeps and cross-validations. Its steps run in
their order, as many at once as the cluster has room for, each with a log. Killed and run again, it goes on where it was; a
step that fails leaves out only what needs it, and is told at the end.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from clipcovid.errors import UserError
from clipcovid.study.file import read_study
from clipcovid.study.schema import print_schema
from clipcovid.study.study import do_study, print_plan


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The study file, and what to do with it."""

    study: tyro.conf.Positional[Path | None] = None
    """The study file: YAML, or JSON (.json)."""
    dry_run: bool = False
    """Print the plan, with an estimate of its time and its room on the disk, and do nothing."""
    schema: bool = False
    """Print the JSON schema of study files, by which editors complete and check them, and do nothing."""


def main(config: StudyConfig) -> None:
    """Do the study; exit status 1 where a step failed."""
    if config.schema:
        print_schema()
        return
    if config.study is None:
        raise UserError("Which study? Name its file, as in: clipcovid study study.yaml.")
    study = read_study(config.study)
    if config.dry_run:
        print_plan(study)
    elif not do_study(study):
        raise SystemExit(1)
