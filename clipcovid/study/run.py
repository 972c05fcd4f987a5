"""Runs the steps of a study: in the order of what they wait for, as many at once as there is room, each in its process."""

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipcovid.identity import digest
from clipcovid.io.files import lock_folder, refuse_unknown_files, unlock_folder, write_json
from clipcovid.runs import read_run_metadata
from clipcovid.study.estimate import Estimates
from clipcovid.study.file import Study
from clipcovid.study.outcomes import PLAN_FILE, Outcome, Outcomes, State, step_key
from clipcovid.study.plan import Step, add_best_settings
from clipcovid.study.process import StepProcess, exit_reason, last_line, open_log
from clipcovid.study.room import ComputePool
from clipcovid.study.settings import command_args
from clipcovid.terminal import format_duration, terminal_width
from clipcovid.tracking import provenance

STUDY_FILES = r"(plan|steps)\.json|logs/.*\.log"
POLL_S = 0.2  # seconds between looks at the running steps
SAVE_S = 10.0  # seconds after which the time spent is kept, however the study ends


class Runner:
    """The steps of one study, as they run."""

    def __init__(self, study: Study, steps: Sequence[Step], room: ComputePool, estimates: Estimates) -> None:
        self.study, self.steps, self.room, self.estimates = study, list(steps), room, estimates
        self.outcomes = Outcomes.read(study.folder)
        self.waiting = {step.name: step for step in steps}
        self.running: dict[str, tuple[Step, StepProcess]] = {}
        self.ran: set[str] = set()
        """The steps that were started, not found done, but for those that prepare data and always are."""
        self.spent_before = self.outcomes.spent_s
        self.began = self.saved = time.monotonic()
        self.told_to_wait: set[str] = set()

    def run(self) -> Outcomes:
        """Run what is not done; where it is stopped, the running steps are stopped in order first."""
        self._open_folder()
        try:
            while self.waiting or self.running:
                self._end_finished()
                self._start_ready()
                self._show_progress()
                if self.running or self.waiting:
                    time.sleep(POLL_S)
        except BaseException as stopped:
            self._stop(signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else signal.SIGTERM)
            raise
        finally:
            self._save()
            unlock_folder(self.study.folder)
        return self.outcomes

    def _open_folder(self) -> None:
        folder = self.study.folder
        if not (folder / PLAN_FILE).exists():
            refuse_unknown_files(folder, STUDY_FILES, "name: the study's folder")
        lock_folder(folder)
        plan = {"study": self.study.settings.name, "steps": [step.to_json() for step in self.steps]}
        write_json(folder / PLAN_FILE, plan)
        known = {step.name for step in self.steps}
        self.outcomes.steps = {name: outcome for name, outcome in self.outcomes.steps.items() if name in known}

    def _start_ready(self) -> None:
        """Start what waits for nothing else and has room; settle what is done already, or can't be done."""
        for step in list(self.waiting.values()):
            before = {*step.needs, *step.after, *step.input_folders, *step.optional_folders}
            if before & {*self.waiting, *self.running}:
                continue
            if reason := self._why_left_out(step):
                self._end(step, "left out", reason)
                continue
            words = self._words(step)
            key = step_key(words)
            done = self.outcomes.steps.get(step.name, Outcome(state="left out"))
            stale = step.prepares or (step.command == "report" and self.ran)
            if done.state == "done" and done.key == key and not stale and (not step.marker or step.marker.exists()):
                del self.waiting[step.name]
                self._say(f"{step.name}: done before, in {format_duration(done.seconds)}.")
            elif self._is_over_budget(step):
                self._end(step, "left out", f"the budget of {self.study.settings.budget} was spent")
            else:
                self._start(step, words, key)

    def _why_left_out(self, step: Step) -> str:
        """Why a step whose predecessors have ended can't be done; "" where it can."""
        missing = [name for name in step.needs if not self.outcomes.is_done(name)]
        if missing:
            return f"{missing[0]} is {self.outcomes.steps[missing[0]].state}"
        if step.input_folders and not any(self.outcomes.is_done(name) for name in step.input_folders):
            return f"none of {', '.join(step.input_folders)} is done"
        return ""

    def _words(self, step: Step) -> list[str]:
        """The step's command line: with what it gathers, and the settings that its sweep found."""
        command, *words = step.args
        if step.best_of:
            words = [*add_best_settings(words, step.best_of, command)]
        gathered = [str(folder) for name, folder in step.input_folders.items() if self.outcomes.is_done(name)]
        gathered = [str(folder) for name, folder in step.combined.items() if self.outcomes.is_done(name)] or gathered
        added: dict[str, list[Path]] = {}
        for name, (setting, folder) in step.optional_folders.items():
            if self.outcomes.is_done(name) or name not in self.outcomes.steps:
                added.setdefault(setting, []).append(folder)
        return [command, *gathered, *words, *command_args(added)]

    def _is_over_budget(self, step: Step) -> bool:
        return step.is_method and self._spent() > self.study.settings.budget_s

    def _spent(self) -> float:
        return self.spent_before + time.monotonic() - self.began

    def _start(self, step: Step, words: list[str], key: str) -> None:
        """Start a step, if there is room and no process of an earlier start is left of it."""
        variables = self.room.acquire(step)
        if variables is None:
            return
        self._set_aside(step, words)
        log = open_log(self.log(step))
        if log is None:
            self.room.release(step)
            if step.name not in self.told_to_wait:
                self.told_to_wait.add(step.name)
                self._say(f"{step.name}: waits until the process of an earlier start has ended (see {self.log(step)}).")
            return
        del self.waiting[step.name]
        self.ran |= set() if step.prepares else {step.name}
        variables |= {provenance.STUDY_VARIABLE: self.study.settings.name, "COLUMNS": str(terminal_width())}
        self._say(f"$ clipcovid {shlex.join(words)}")
        self.running[step.name] = step, StepProcess(words, log, variables)
        self.outcomes.steps[step.name] = Outcome(state="running", key=key, words=tuple(words))
        self._save()

    def _set_aside(self, step: Step, words: list[str]) -> None:
        """Rename what this step made of other runs before, as a run folder holds one run alone."""
        before = self.outcomes.steps.get(step.name)
        identity = read_run_metadata(step.folder).get("identity")
        if step.is_derived and before and before.words and list(before.words) != words and identity:
            aside = step.folder.with_name(f"{step.folder.name}-{digest(identity, 8)}")
            while aside.exists():
                aside = aside.with_name(f"{aside.name}-again")
            step.folder.rename(aside)
            self._say(f"{step.name}: it is of other runs or settings now; the former one is {aside}.")

    def log(self, step: Step) -> Path:
        """Where a step's output goes."""
        return self.study.folder / "logs" / f"{step.name}.log"

    def _end_finished(self) -> None:
        for step, process in list(self.running.values()):
            status = process.poll()
            if status is None:
                continue
            if status:
                self._end(step, "failed", exit_reason(status, self.log(step)))
            elif step.marker and not step.marker.exists():
                self._end(step, "failed", f"it ended well, but {step.marker} is missing")
            else:
                self._end(step, "done")

    def _end(self, step: Step, state: State, reason: str = "") -> None:
        """Note how a step ended, and say so."""
        self.waiting.pop(step.name, None)
        outcome = Outcome(state=state, reason=reason)
        if step.name in self.running:
            _, process = self.running.pop(step.name)
            self.room.release(step)
            begun = self.outcomes.steps[step.name]
            work = self.estimates.work(step) if state == "done" and self.estimates.are_prepared([step]) else 0.0
            outcome = replace(begun, state=state, reason=reason, seconds=round(process.seconds, 1), work=work)
        self.outcomes.steps[step.name] = outcome
        self._save()
        after = f" after {format_duration(outcome.seconds)}" if outcome.seconds else ""
        self._say(f"{step.name}: {state}{after}{f' ({reason})' if reason else ''}.", error=state == "failed")

    def _stop(self, number: int) -> None:
        """Pass a signal on to the running steps, and wait for them."""
        for _, process in self.running.values():
            process.send_signal(number)
        for step, process in self.running.values():
            process.wait()
            begun, seconds = self.outcomes.steps[step.name], round(process.seconds, 1)
            stopped = replace(begun, state="stopped", reason="the study was stopped", seconds=seconds)
            self.outcomes.steps[step.name] = stopped

    def _save(self) -> None:
        self.outcomes.spent_s = self._spent()
        self.outcomes.write()
        self.saved = time.monotonic()

    def _show_progress(self) -> None:
        """One line, where there is a terminal: how many steps are done, and what the running ones say."""
        if time.monotonic() - self.saved > SAVE_S:
            self._save()
        if not sys.stdout.isatty() or not self.running:
            return
        ended = len(self.steps) - len(self.waiting) - len(self.running)
        now = [f"{name} {format_duration(process.seconds)}" for name, (_, process) in self.running.items()]
        step, process = next(iter(self.running.values()))
        facts = [f"{ended} of {len(self.steps)} steps", *now]
        seconds = self.estimates.seconds_of([step, *self.waiting.values()])
        if seconds is not None:
            facts.append(f"about {format_duration(max(0.0, seconds - process.seconds))} left")
        facts.append(last_line(self.log(step)))
        print(f"\r\x1b[K{' · '.join(facts)[: terminal_width() - 1]}", end="", flush=True)

    def _say(self, text: str, error: bool = False) -> None:
        """A line of its own, above the line of progress."""
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
