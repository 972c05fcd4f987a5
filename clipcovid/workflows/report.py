"""How a job reports its run: the scores on the terminal, the folder, and the run in MLflow."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console

from clipcovid.config import RunConfig
from clipcovid.data.manifest import Manifest
from clipcovid.evaluate.console import print_scores
from clipcovid.evaluate.scores import Scores
from clipcovid.runs import Run
from clipcovid.tracking.datasets import TRAINING_SPLITS, TrackedDataset, describe_data
from clipcovid.tracking.runs import Status, track
from clipcovid.tracking.store import ui_command, ui_page


@dataclass(frozen=True, kw_only=True)
class ChildRun:
    """A run that MLflow shows beneath another's: a fold, a draw of shots, or a trial."""

    run: Run
    config: RunConfig
    """The config that its parameters are logged from."""
    manifest: Manifest | None = None
    """Its data, where they are not those of its parent."""
    splits: Sequence[str] = TRAINING_SPLITS
    """The splits of them that it used."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """MLflow tags beside those of its parent."""
    status: Status = "FINISHED"


def data_tags(manifest: Manifest) -> dict[str, str]:
    """The MLflow tags that name a run's data: the hashes of the manifest and its split, and the data set's name."""
    return {"manifest": manifest.content_hash, "split": manifest.split_hash, "dataset": manifest.dataset}


def report_run(
    run: Run,
    config: RunConfig,
    tags: Mapping[str, str] | None = None,
    *,
    manifest: Manifest | None = None,
    splits: Sequence[str] = TRAINING_SPLITS,
    scores: Scores | None = None,
    children: Iterable[ChildRun] = (),
    title: str = "Run",
) -> None:
    """Print a split's `scores`, where there are any, and the run's folder; show the run and its children in MLflow.

    `manifest`, `splits`: the data that the run used. `config.out` says where the MLflow store is. `children` are read only
    if MLflow took the run; their tags are `tags` and their own.
    """
    if scores is not None:
        print_scores(scores, Console())
    print(f"{title}: {run.folder}")
    shown = ChildRun(run=run, config=config, manifest=manifest, splits=splits, tags=tags or {})
    if _show(shown) and all(
        _show(replace(child, manifest=child.manifest or manifest, tags={**(tags or {}), **child.tags}), parent=run)
        for child in children
    ):
        print(f"MLflow: {ui_command(config.out)}")
        if page := ui_page(config.out):
            print(f"  shows {page}")


def _show(shown: ChildRun, parent: Run | None = None) -> bool:
    """Show a run in MLflow with its data; True if it worked."""
    config, manifest, tags = shown.config, shown.manifest, dict(shown.tags)
    data: tuple[TrackedDataset, ...] = ()
    if manifest is not None:
        tags = data_tags(manifest) | tags
        data = describe_data(manifest, getattr(config, "data", None), shown.splits)
    return track(shown.run, config, tags=tags, data=data, parent=parent, status=shown.status)
