"""What a run rests on beside its settings: who ran which revision of the code, with which packages."""

import getpass
import os
import platform
import subprocess
from importlib.metadata import distributions, version
from pathlib import Path

REVISION_VARIABLE = "CLIPCOVID_REVISION"
"""The git commit of a copy without `.git`, such as a submitted job's working directory."""
STUDY_VARIABLE = "CLIPCOVID_STUDY"  # the name of the study that a job is a step of, which the study's process sets


def study() -> dict[str, str]:
    """The study that this job is a step of; empty for none."""
    name = os.environ.get(STUDY_VARIABLE, "")
    return {"clipcovid.study": name} if name else {}


def user() -> dict[str, str]:
    """Who runs this; empty for a user id without a name, as containers have."""
    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):
        return {}


def revision() -> dict[str, str]:
    """The git commit of this code and whether it was changed since; outside of a checkout what `REVISION_VARIABLE` names."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--", "."))
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.changed": str(changed).lower()}
    except (OSError, subprocess.CalledProcessError):
        declared = os.environ.get(REVISION_VARIABLE, "")
        return {"mlflow.source.git.commit": declared} if declared else {}


def versions() -> dict[str, str]:
    """Versions of what results depend on most."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "ray", "open_clip_torch")}


def packages() -> list[str]:
    """Every installed package as `name==version`."""
    return sorted({f"{package.name}=={package.version}" for package in distributions()}, key=str.lower)
