"""The run folder: `outputs/<run>/{config.json, metrics.json, predictions/<split>.parquet, checkpoint/, figures/, _SUCCESS}`.

`metrics.json` maps each scored split to its scores (`evaluate.scores.Scores.to_json`). The marker comes last.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcovid.config import RunConfig, UserError, flatten_resolved
from clipcovid.identity import digest
from clipcovid.io.files import (
    lock_folder,
    read_json_object,
    refuse_unknown_files,
    unknown_file,
    unlock_folder,
    write_json,
    write_text,
)

SUCCESS_MARKER = "_SUCCESS"
STORE_FILE, ARTIFACTS_FOLDER = "mlflow.db", "mlartifacts"  # of the MLflow store in `out`, beside the run folders
STORE_NAMES = rf"{re.escape(STORE_FILE)}(-\w+)?|{ARTIFACTS_FOLDER}"  # with the files that sqlite keeps beside its own
UNSTARTED_FILES = (
    r"(config|prompts)\.json|state/(failed\.txt|ray/.*)"  # the files of a run that ended before it did anything
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one method, in its folder."""

    folder: Path
    method: str
    identity: dict[str, Any]
    job: str = ""
    """What kind of job it is of: train, crossval, predict, …; "" where it is not known."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def is_done(self) -> bool:
        """Whether all of it is there."""
        return (self.folder / SUCCESS_MARKER).exists()

    @property
    def finished_note(self) -> str:
        """What a job says that finds it finished."""
        return f"{self.folder} is finished already: nothing was left to do."

    def metrics(self) -> dict[str, Any]:
        """Split → scores, of what has been scored so far."""
        return read_metrics(self.folder)

    def history(self) -> list[dict[str, float]]:
        """A training's lines, one a validation; none for what is not trained."""
        path = self.folder / "history.json"
        return json.loads(path.read_text(encoding="utf-8"))["epochs"] if path.exists() else []


def read_metrics(folder: Path) -> dict[str, Any]:
    """Split → scores, of a run's folder; empty where nothing was scored."""
    path = folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_run_metadata(folder: Path) -> dict[str, Any]:
    """method, identity and config of the run in a folder; empty where its `config.json` is missing, or no run's."""
    metadata = read_json_object(folder / "config.json")
    return metadata if {"method", "identity"} <= metadata.keys() else {}


def check_run_name(name: str, out: Path, flag: str = "--name") -> None:
    """Refuse, as a `UserError`, a name of a run that is a path, or the name of what the MLflow store keeps in `out`."""
    if name in (".", "..") or Path(name).name != name:
        raise UserError(f"{flag} {name} must be a plain name: the run's folder is made in --out {out}.")
    if re.fullmatch(STORE_NAMES, name, re.IGNORECASE):
        raise UserError(
            f"{flag} {name} is the name of what the MLflow store keeps in --out {out}: choose another name."
        )


def run_folder(config: RunConfig, *, method: str, identity: dict[str, Any], stem: str = "") -> Path:
    """The folder `config.name` in `config.out`, by default named by `stem`, or else the method, and the identity's hash.

    Models have names with slashes and colons (hf-hub:org/name): folders get dashes. A --name that is none for a run
    (`check_run_name`) is a `UserError`.
    """
    check_run_name(config.name, config.out)
    default = f"{re.sub(r'[^a-zA-Z0-9_.+-]+', '-', stem or method)}-{digest(identity, 8)}"
    return config.out / (config.name or default)


def find_finished_run(
    config: RunConfig,
    *,
    method: str,
    identity: dict[str, Any],
    stem: str = "",
    job: str = "",
) -> Run | None:
    """The run in its folder (see `run_folder`) where it is finished, else None. Nothing is written."""
    folder = run_folder(config, method=method, identity=identity, stem=stem)
    run = Run(folder=folder, method=method, identity=identity, job=job or method)
    return run if run.is_done and read_run_metadata(folder).get("identity") == identity else None


def start_run(config: RunConfig, *, method: str, identity: dict[str, Any], stem: str = "", job: str = "") -> Run:
    """The run in its folder (see `run_folder`), which this process holds until `finish_run` or its end.

    A folder that holds another run, or files that no run wrote, or that another process writes to, is a `UserError`. A run
    that ended before it did anything is no other run: a corrected command takes its name.
    """
    folder = run_folder(config, method=method, identity=identity, stem=stem)
    if not read_run_metadata(folder):
        refuse_unknown_files(folder, "", "--name")
    lock_folder(folder)
    stored = read_run_metadata(folder).get("identity", identity)
    if stored != identity and unknown_file(folder, UNSTARTED_FILES):
        unlock_folder(folder)
        differs = sorted(key for key in {*stored, *identity} if stored.get(key) != identity.get(key))
        raise UserError(f"{folder} holds another run ({', '.join(differs)} differ): choose another --name.")
    write_json(folder / "config.json", {"method": method, "identity": identity, "config": flatten_resolved(config)})
    return Run(folder=folder, method=method, identity=identity, job=job or method)


def finish_run(run: Run) -> None:
    """Write the marker that says that everything else is there."""
    write_text(run.folder / SUCCESS_MARKER, "")
    unlock_folder(run.folder)
