"""A study from its plan to its end: what is printed before, and what came of it."""

import sys

from rich.console import Console

from clipcovid.errors import RESEARCH_ONLY
from clipcovid.evaluate.text_table import TextTable
from clipcovid.study.estimate import Estimates, unknown_models
from clipcovid.study.file import Study
from clipcovid.study.outcomes import Outcomes
from clipcovid.study.plan import Step, plan_study
from clipcovid.study.process import last_output
from clipcovid.study.room import ComputePool
from clipcovid.study.run import Runner
from clipcovid.study.tracking import show_study
from clipcovid.terminal import format_duration


def do_study(study: Study) -> bool:
    """Run what is not done of a study, print its comparison and how each step ended; whether nothing failed."""
    steps = plan_study(study)
    room = ComputePool.detect(study.settings.compute)
    runner = Runner(study, steps, room, _estimates(study, steps, room))
    outcomes = runner.run()
    console = Console(highlight=False)
    for step in steps:
        if step.command == "compare" and outcomes.is_done(step.name):
            console.print(last_output(runner.log(step)), markup=False, soft_wrap=True)
    table = outcomes.table(steps)
    console.print(table.rich(console.width))
    if runner.ran:
        show_study(study, steps, outcomes)
    failed = [name for name, outcome in outcomes.steps.items() if outcome.state == "failed"]
    if failed:
        print(
            f"{len(failed)} step{'s' * (len(failed) != 1)} failed ({', '.join(failed)}): {study.folder / 'logs'} says why. "
            "Run the same command again to try them again, and what was left out for them.",
            file=sys.stderr,
        )
    print(f"Study: {study.folder}")
    return not failed


def print_plan(study: Study) -> None:
    """Print the steps with their estimates, and how these were made."""
    steps = plan_study(study)
    room = ComputePool.detect(study.settings.compute)
    estimates, outcomes = _estimates(study, steps, room), Outcomes.read(study.folder)
    console, rows = Console(highlight=False), []
    seconds = disk = 0.0
    for step in steps:
        done = outcomes.is_done(step.name) and (
            bool(step.input_folders) or outcomes.was_started_by(step.name, step.args)
        )
        time, room_on_disk = (0.0, 0.0) if done else (estimates.seconds(step), estimates.disk(step))
        seconds, disk = seconds + time, disk + room_on_disk
        waits = "its runs" if step.input_folders else ", ".join([*step.needs, *step.after])
        shown = ["done", ""] if done else [format_duration(time), f"{room_on_disk / 1e6:,.0f} MB"]
        rows.append([step.name, step.command, waits, *shown])
    total = [["all", "", "", format_duration(seconds), f"{disk / 1e6:,.0f} MB"]]
    heads = ["Step", "Command", "After", "About", "Disk"]
    table = TextTable(
        title=f"The plan of {study.settings.name}", headers=heads, sections=[rows, total], wrap_cells=True
    )
    console.print(table.rich(console.width))
    for note in _notes(study, steps, estimates, seconds):
        print(f"note: {note}")
    print(RESEARCH_ONLY)


def _estimates(study: Study, steps: list[Step], room: ComputePool) -> Estimates:
    return Estimates(steps=steps, out=study.settings.out, cores=room.cores, gpus=len(room.gpus))


def _notes(study: Study, steps: list[Step], estimates: Estimates, seconds: float) -> list[str]:
    """How the estimates were made, and what of the plan they speak against."""
    measured = sum(map(len, estimates.measured.values()))
    basis = (
        f"corrected by {measured} finished step{'s' * (measured != 1)} in {study.settings.out}"
        if measured
        else "not measured on this machine yet, and so right within a factor of three at best"
    )
    what = f"{estimates.gpus} GPUs" if estimates.gpus else f"{estimates.cores:g} core{'s' * (estimates.cores != 1)}"
    notes = [
        f"Times are those of one step after the other on {what}, from images × epochs × the model's operations, {basis}."
    ]
    if unknown := unknown_models(steps):
        notes.append(f"Of {', '.join(unknown)} the operations are not known: an average model's are taken.")
    if seconds > study.settings.budget_s:
        notes.append(f"That is more than the budget of {study.settings.budget}: the last methods would be left out.")
    return notes
