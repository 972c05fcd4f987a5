"""Training on Ray Train's workers: what runs on each of them is given, so nothing is known here of what they train."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from clipcovid.errors import TrainingStopped, UserError
from clipcovid.io.files import write_text
from clipcovid.ray_backend import private
from clipcovid.ray_backend.cluster import is_own_cluster
from clipcovid.ray_backend.map import chdir_to_driver_cwd
from clipcovid.ray_backend.resources import ResourcePlan
from clipcovid.terminal import set_terminal_width, terminal_width

Report = Callable[[dict[str, float]], None]
RESTARTS = 3  # of all workers, after one of them died
START_RETRIES = 1  # tried again where the cluster has no room for all of them any more; each is waited for a minute
FAILURE_FILE = "failed.txt"
LOG_PREFIX = "(RayTrainWorker pid=123456) "  # of a worker's lines on the driver's terminal


def train_on_workers(job: Any, train: Callable[..., None], report: Report | None) -> None:
    """Run `train(job, report=…, log=…)` on the plan's workers; where one dies, all begin anew, from their last state.

    `job` has the `run`, the `config` and the `plan`. Mistakes of the user's in the workers, workers that die again and
    again, and a cluster that has no room for them any more are `UserError`s.
    """
    import ray
    from ray.train import ControllerError, TrainingFailedError

    folder = job.run.folder.resolve()
    failed = folder / "state" / FAILURE_FILE
    failed.unlink(missing_ok=True)
    local = replace(
        job, run=replace(job.run, folder=folder), config=replace(job.config, data=job.config.data.resolve())
    )
    settings = {"job": ray.put(local), "train": train, "cwd": Path.cwd(), "columns": terminal_width() - len(LOG_PREFIX)}
    try:
        _trainer(settings, job.plan, folder / "state" / "ray", report).fit()
    except TrainingFailedError as error:
        if failed.exists():
            pass
        elif isinstance(error, ControllerError):
            if type(error.controller_failure).__name__.startswith(private.WORKER_START_ERROR_PREFIX):
                raise UserError(_placement_message(job.plan)) from error
            raise
        elif all(
            isinstance(failure, ray.exceptions.RayActorError) for failure in cast(Any, error).worker_failures.values()
        ):
            raise UserError(
                f"A training worker died {RESTARTS + 1} times. Most often memory runs out: use fewer --compute.workers or a "
                "smaller --optim.batch-size; the same command goes on after the last epoch."
            ) from error
        else:
            raise
    if failed.exists():
        raise UserError(failed.read_text(encoding="utf-8"))


def _placement_message(plan: ResourcePlan) -> str:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node["Resources"].get(kind, 0.0) for node in alive) for kind in ("CPU", "GPU"))
    worker = f"{plan.cpus_per_worker:g} CPU" + f" and {plan.gpus_per_worker:g} GPU" * bool(plan.gpus_per_worker)
    return (
        f"{plan.workers} workers of {worker} each could not be started: the cluster has {cpus:g} CPUs and {gpus:g} GPUs on "
        f"{len(alive)} node{'s' * (len(alive) != 1)}. Bring its nodes back, or use fewer --compute.workers: the same command "
        "goes on after the last epoch."
    )


def _trainer(settings: dict[str, Any], plan: ResourcePlan, folder: Path, report: Report | None) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig

    class Reporter(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if report:
                report(metrics[0])

    resources = {"CPU": plan.cpus_per_worker} | ({"GPU": plan.gpus_per_worker} if plan.gpus_per_worker else {})
    # A cluster of ours ends with its driver: there is nothing to clean up behind it.
    trainer = private.trainer_class(clean_up=private.has_dashboard() and not is_own_cluster())
    return trainer(
        _worker,
        train_loop_config=settings,
        torch_config=private.file_rendezvous_config() if is_own_cluster() else TorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=plan.workers, use_gpu=bool(plan.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=cast(Any, RunConfig)(  # ray.train exports the v2 class, of which type checkers see the old one
            name=f"try-{time.time_ns()}",
            storage_path=str(folder),
            failure_config=cast(Any, FailureConfig)(
                max_failures=RESTARTS, max_preemption_failures=RESTARTS, controller_failure_limit=START_RETRIES
            ),
            callbacks=cast(Any, [Reporter()]),
            logging_config=LoggingConfig(log_level="CRITICAL"),  # what ends the training is raised
        ),
    )


def _worker(settings: dict[str, Any]) -> None:
    import ray
    import ray.train

    private.silence_reports()
    chdir_to_driver_cwd(settings["cwd"])
    set_terminal_width(settings["columns"])
    job = ray.get(settings["job"])
    failed = job.run.folder / "state" / FAILURE_FILE
    if failed.exists():  # this is another try, and there is no use in it
        return
    try:
        settings["train"](job, report=ray.train.report, log=print)
    except UserError as error:
        write_text(failed, str(error))
        if not isinstance(error, TrainingStopped):
            raise  # the other workers may not know, and wait
