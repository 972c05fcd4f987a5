"""Training on Ray Train's workers: what runs on each of them is given, so nothing is known here of what they train."""

import logging
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from clipcovid.config import UserError
from clipcovid.io.files import write_text
from clipcovid.ray_backend.cluster import own_cluster
from clipcovid.ray_backend.map import chdir_to_driver_cwd
from clipcovid.ray_backend.resources import ResourcePlan
from clipcovid.terminal import set_terminal_width, terminal_width

Report = Callable[[dict[str, float]], None]
RESTARTS = 3  # of all workers, after one of them died
STARTS = 1  # tried again where the cluster has no room for all of them any more; each is waited for a minute
FAILED = "failed.txt"
PREFIX = "(RayTrainWorker pid=123456) "  # of a worker's lines on the driver's terminal


def train_on_workers(job: Any, train: Callable[..., None], report: Report | None) -> None:
    """Run `train(job, report=…, log=…)` on the plan's workers; where one dies, all begin anew, from their last state.

    `job` has the `run`, the `config` and the `plan`. Mistakes of the user's in the workers, workers that die again and
    again, and a cluster that has no room for them any more are `UserError`s.
    """
    import ray
    from ray.train import ControllerError, TrainingFailedError

    folder = job.run.folder.resolve()
    failed = folder / "state" / FAILED
    failed.unlink(missing_ok=True)
    local = replace(
        job, run=replace(job.run, folder=folder), config=replace(job.config, data=job.config.data.resolve())
    )
    settings = {"job": ray.put(local), "train": train, "place": Path.cwd(), "columns": terminal_width() - len(PREFIX)}
    try:
        _trainer(settings, job.plan, folder / "state" / "ray", report).fit()
    except TrainingFailedError as error:
        if failed.exists():
            pass
        elif isinstance(error, ControllerError):
            if type(error.controller_failure).__name__.startswith("WorkerGroupStartup"):
                raise UserError(_no_room(job.plan)) from error
            raise
        elif all(isinstance(each, ray.exceptions.RayActorError) for each in cast(Any, error).worker_failures.values()):
            raise UserError(
                f"A training worker died {RESTARTS + 1} times. Most often memory runs out: use fewer --compute.workers or a "
                "smaller --optim.batch-size; the same command goes on after the last epoch."
            ) from error
        else:
            raise
    if failed.exists():
        raise UserError(failed.read_text(encoding="utf-8"))


def _no_room(plan: ResourcePlan) -> str:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node["Resources"].get(kind, 0.0) for node in alive) for kind in ("CPU", "GPU"))
    each = f"{plan.cpus_per_worker:g} CPU" + f" and {plan.gpus_per_worker:g} GPU" * bool(plan.gpus_per_worker)
    return (
        f"{plan.workers} workers of {each} each could not be started: the cluster has {cpus:g} CPUs and {gpus:g} GPUs on "
        f"{len(alive)} node{'s' * (len(alive) != 1)}. Bring its nodes back, or use fewer --compute.workers: the same command "
        "goes on after the last epoch."
    )


def _trainer(settings: dict[str, Any], plan: ResourcePlan, folder: Path, report: Report | None) -> Any:
    from ray._private.worker import get_dashboard_url
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchTrainer

    class Reporter(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if report:
                report(metrics[0])

    class Trainer(TorchTrainer):
        """Without what cleans up behind a dead driver, and with Ctrl-C left to the job.

        The cleaner asks the dashboard; where there is none, as on a cluster of ours, which ends with its driver anyway, it
        complains every second. Ray Train's handler of Ctrl-C waits for a controller that may be waiting for workers.
        """

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = cast(Any, super())._create_default_callbacks()
            if get_dashboard_url() and not own_cluster():
                return callbacks
            return [each for each in callbacks if type(each).__name__ != "PlacementGroupCleanerCallback"]

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    each = {"CPU": plan.cpus_per_worker} | ({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {})
    return Trainer(
        _worker,
        train_loop_config=settings,
        torch_config=_torch_config(),
        scaling_config=ScalingConfig(
            num_workers=plan.workers, use_gpu=bool(plan.gpus_per_worker), resources_per_worker=each
        ),
        run_config=cast(Any, RunConfig)(  # ray.train exports the v2 class, of which type checkers see the old one
            name=f"try-{time.time_ns()}",
            storage_path=str(folder),
            failure_config=cast(Any, FailureConfig)(
                max_failures=RESTARTS, max_preemption_failures=RESTARTS, controller_failure_limit=STARTS
            ),
            callbacks=cast(Any, [Reporter()]),
            logging_config=LoggingConfig(log_level="CRITICAL"),  # what ends the training is raised
        ),
    )


def _torch_config() -> Any:
    """How the workers' process group is made; on a cluster of ours they meet in a file.

    Torch's own meeting point listens on all interfaces, and takes orders from anyone.
    """
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

    if not own_cluster():
        return TorchConfig()

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_set_torch_distributed_env_vars)
            gpus = worker_group.get_resources_per_worker().get("GPU", 0)
            meeting = Path(tempfile.gettempdir()) / f"clipcovid-{uuid.uuid4().hex}"
            group = {
                "backend": "nccl" if gpus else "gloo",
                "world_size": len(worker_group),
                "init_method": meeting.as_uri(),
                "timeout_s": backend_config.timeout_s,
            }
            ranks = range(len(worker_group))
            ray.get(
                [
                    worker_group.execute_single_async(rank, _setup_torch_process_group, world_rank=rank, **group)
                    for rank in ranks
                ]
            )

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config()


def _worker(settings: dict[str, Any]) -> None:
    import ray
    import ray.train

    inner = sys.modules.get("ray.train.v2._internal.execution.context")
    if inner is not None:  # it logs every report of every worker, under its file's name
        logging.getLogger(inner.__file__).setLevel(logging.WARNING)
    chdir_to_driver_cwd(settings["place"])
    set_terminal_width(settings["columns"])
    job = ray.get(settings["job"])
    failed = job.run.folder / "state" / FAILED
    if failed.exists():  # this is another try, and there is no use in it
        return
    from clipcovid.training.loop import TrainingStopped

    try:
        settings["train"](job, report=ray.train.report, log=print)
    except UserError as error:
        write_text(failed, str(error))
        if not isinstance(error, TrainingStopped):
            raise  # the other workers may not know, and wait
