"""How a job reports its run: the scores on the terminal, the folder, and the run in MLflow."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.console import Console

from clipcovid.config import RunConfig
from clipcovid.data.manifest import Manifest
from clipcovid.evaluate.console import print_scores
from clipcovid.evaluate.scores import Scores
from clipcovid.runs import Run
from clipcovid.tracking import Status, track, ui_command


@dataclass(frozen=True, kw_only=True)
class ChildRun:
    """A run that MLflow shows beneath another's: a fold, a draw of shots, or a trial."""

    run: Run
    config: RunConfig
    """The config that its parameters are logged from."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """MLflow tags beside those of its parent."""
    status: Status = "FINISHED"


def data_tags(manifest: Manifest) -> dict[str, str]:
    """The MLflow tags that name a run's data: the hashes of the manifest and its split, and the data set's name."""
    return {"manifest": manifest.content_hash, "split": manifest.split_hash, "dataset": manifest.dataset}


def report(
    run: Run,
    config: RunConfig,
    tags: Mapping[str, str],
    *,
    scores: Scores | None = None,
    children: Iterable[ChildRun] = (),
    title: str = "Run",
) -> None:
    """Print a split's `scores`, where there are any, and the run's folder; show the run and its children in MLflow.

    `config.out` says where the MLflow store is. `children` are read only if MLflow took the run.
    """
    if scores is not None:
        print_scores(scores, Console())
    print(f"{title}: {run.folder}")
    if track(run, config, tags=dict(tags)) and all(
        track(child.run, child.config, tags={**tags, **child.tags}, parent=run, status=child.status)
        for child in children
    ):
        print(f"MLflow: {ui_command(config.out)}")
