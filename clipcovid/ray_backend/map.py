"""Spread pieces of work over the cluster with Ray Data, with progress: what prepare, embed and predict run on."""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from clipcovid.errors import UserError
from clipcovid.ray_backend.private import silence_progress
from clipcovid.ray_backend.resources import ResourcePlan

Item = dict[str, Any]
RESTARTS = 2  # Ray itself starts a dying actor again for ever


def prefetch(read: Callable[[Any], Any], keys: Sequence[Any]) -> Iterator[Any]:
    """`read(key)` of all keys in order; a thread reads the next one while the caller works on the last."""
    with ThreadPoolExecutor(1) as executor:
        pending = [executor.submit(read, key) for key in keys[:1]]
        for key in [*keys[1:], None]:
            if not pending:
                return
            value = pending.pop().result()
            if key is not None:
                pending.append(executor.submit(read, key))
            yield value


def chdir_to_driver_cwd(cwd: Path) -> None:
    """Work in the driver's directory, where this machine has it: a relative path means there what it meant to the user.

    (Ray's workers stand where the cluster was started, or in a folder of Ray Train's.)
    """
    if cwd.is_dir():
        os.chdir(cwd)


def parallel_map(
    items: Sequence[Item],
    work: Callable[..., Item] | type,
    resources: ResourcePlan,
    *,
    total: int,
    label: str,
    settings: dict[str, Any],
) -> Iterator[Item]:
    """Run `work` on every item and yield its results as they finish, in no order.

    A function runs as tasks, called with an item and `settings`. A class runs as a pool of actors, built once each with
    `settings` and called with items. A result says in `images` how far it brings the progress bar, which ends at `total`.
    A worker that dies is replaced and its item done again, so work must be idempotent; one that dies `RESTARTS` + 1
    times, and any `UserError` raised in a worker, is a `UserError` here. Without workers it is all done in this process.
    """
    from tqdm import tqdm

    if not items:
        return
    with tqdm(total=total, desc=label, unit="img", smoothing=0.05) as bar:
        for result in (_run_ray if resources.workers else _run_local)(items, work, resources, settings):
            if result.get("failed"):
                raise UserError(result["failed"])
            bar.update(result["images"])
            yield result


def _run_local(
    items: Sequence[Item], work: Callable[..., Item] | type, resources: ResourcePlan, settings: dict[str, Any]
) -> Iterator[Item]:
    if isinstance(work, type):
        yield from map(work(**settings), items)
    else:
        yield from (work(item, **settings) for item in items)


def _run_ray(
    items: Sequence[Item], work: Callable[..., Item] | type, resources: ResourcePlan, settings: dict[str, Any]
) -> Iterator[Item]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours counts images, theirs blocks
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    silence_progress()
    options: dict[str, Any] = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker or None}
    workers = min(resources.workers, len(items))
    # By reference: Ray would warn of large ones, and send them with each task.
    guard = {"work": work, "settings": ray.put(settings), "cwd": Path.cwd()}
    work_on: Any = ray.data.from_items(list(items), override_num_blocks=len(items)).map
    if isinstance(work, type):
        pool = ActorPoolStrategy(size=workers)
        results = work_on(_GuardedActor, compute=pool, fn_constructor_kwargs=guard, **options)
    else:
        results = work_on(_guarded_task, compute=TaskPoolStrategy(size=workers), fn_kwargs=guard, **options)
    yield from results.iter_rows()


def _guarded_task(item: Item, *, work: Callable[..., Item], settings: Any, cwd: Path) -> Item:
    """A task: the work's result, with the settings that the reference names."""
    import ray

    return _result(item, partial(work, **ray.get(settings)), cwd)


def _result(item: Item, work: Callable[..., Item], cwd: Path) -> Item:
    """The work's result, or its `UserError` as a result: raised here, Ray would bury it in pages of its own."""
    chdir_to_driver_cwd(cwd)
    try:
        return work(item) | {"failed": ""}
    except UserError as error:
        return item | {"images": 0, "failed": str(error)}


class _GuardedActor:
    """An actor around another: errors become results, and dying again and again becomes an error."""

    def __init__(self, *, work: type, settings: Any, cwd: Path) -> None:
        import ray

        self.failed, self.work, self.cwd = _restart_error(), None, cwd
        chdir_to_driver_cwd(cwd)
        try:
            self.work = None if self.failed else work(**ray.get(settings))
        except UserError as error:
            self.failed = str(error)

    def __call__(self, item: Item) -> Item:
        if self.work is None:
            return item | {"images": 0, "failed": self.failed}
        return _result(item, self.work, self.cwd)


def _restart_error() -> str:
    """What to say where this actor was started again too often, else ""; counted in a file named after the actor."""
    import ray

    context = ray.get_runtime_context()
    with warnings.catch_warnings():  # Ray asks itself in a way that it has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        if not context.was_current_actor_reconstructed:
            return ""
    count = Path(tempfile.gettempdir()) / f"clipcovid-restarts-{context.get_actor_id()}"
    with count.open("a") as file:
        file.write("+")
    if count.stat().st_size <= RESTARTS:
        return ""
    count.unlink()
    return (
        f"A worker died {RESTARTS + 1} times. Most often memory runs out: use fewer --compute.workers or a smaller "
        "--compute.batch-size; what is finished is kept."
    )
