"""How the steps of a study ended, kept in its folder so that a study that is run again goes on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipcovid.config import config_from_dict
from clipcovid.evaluate.text_table import TextTable
from clipcovid.identity import digest
from clipcovid.io.files import read_json_object, write_json
from clipcovid.runs import SUCCESS_MARKER
from clipcovid.study.plan import PREPARED, Step
from clipcovid.terminal import format_duration

PLAN_FILE, STEPS_FILE = "plan.json", "steps.json"
State = Literal["running", "done", "failed", "left out", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a step ended."""

    state: State
    reason: str = ""
    """Why it is not done."""
    seconds: float = 0.0
    """What its last start took."""
    work: float = 0.0
    """The seconds that were expected (see `Estimates.work`), before any step was measured."""
    words: tuple[str, ...] = ()
    """The command line that was started."""
    key: str = ""
    """What it was made from (see `step_key`)."""


@dataclass(kw_only=True)
class Outcomes:
    """The outcomes of a study's steps, and the time spent."""

    folder: Path
    steps: dict[str, Outcome] = field(default_factory=dict)
    spent_s: float = 0.0
    """Seconds in which the study has run, all its starts together."""

    @classmethod
    def read(cls, folder: Path) -> "Outcomes":
        """What the study's folder holds; empty for a new one."""
        content = read_json_object(folder / STEPS_FILE)
        steps = {name: config_from_dict(Outcome, entry) for name, entry in content.get("steps", {}).items()}
        return cls(folder=folder, steps=steps, spent_s=content.get("spent_s", 0.0))

    def write(self) -> None:
        """Keep them in the study's folder."""
        steps = {name: dataclasses.asdict(outcome) for name, outcome in self.steps.items()}
        write_json(self.folder / STEPS_FILE, {"spent_s": round(self.spent_s, 1), "steps": steps})

    def is_done(self, name: str) -> bool:
        """Whether a step is done."""
        return name in self.steps and self.steps[name].state == "done"

    def was_started_by(self, name: str, words: Sequence[str]) -> bool:
        """Whether the command line that a step was last started by begins with these words."""
        return self.steps[name].words[: len(words)] == tuple(words)

    def table(self, steps: Sequence[Step]) -> TextTable:
        """A row a step."""
        rows = []
        for step in steps:
            outcome = self.steps.get(step.name, Outcome(state="left out", reason="the study ended before"))
            rows.append([step.name, outcome.state, format_duration(outcome.seconds), outcome.reason])
        return TextTable(title="Steps", headers=["Step", "State", "Time", "Why"], sections=[rows], wrap_cells=True)


def step_key(words: Sequence[str]) -> str:
    """What a step is made from: its command line, and the state of the files and folders that it names.

    A folder counts by its markers, which are written last. This only spares starting a command that would find everything
    done: whether it is, each command tells by its own identity.
    """
    return digest([[word, _file_state(Path(word))] for word in words], 16)


def _file_state(path: Path) -> list[Any]:
    places = [path / name for name in (PREPARED, SUCCESS_MARKER, "best.json")] if path.is_dir() else [path]
    states = [place.stat() for place in places if place.exists()]
    return [[state.st_mtime_ns, state.st_size] for state in states]
