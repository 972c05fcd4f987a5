"""A study in MLflow: a run of its own, with the runs of its steps beneath it."""

from collections.abc import Sequence

from clipcovid.runs import Run
from clipcovid.study.file import Study
from clipcovid.study.outcomes import Outcomes
from clipcovid.study.plan import Step
from clipcovid.tracking.runs import nest_runs, track


def show_study(study: Study, steps: Sequence[Step], outcomes: Outcomes) -> None:
    """Show the study, and beneath it the runs that its done steps have shown; FAILED where a step failed."""
    run = Run(folder=study.folder, method="study", identity={"study": study.settings.name}, job="study")
    failed = any(outcome.state == "failed" for outcome in outcomes.steps.values())
    if track(
        run, study.settings, tags={"clipcovid.study": study.settings.name}, status="FAILED" if failed else "FINISHED"
    ):
        nest_runs(run, study.settings.out, [step.folder for step in steps if outcomes.is_done(step.name)])
