"""All that is used of what Ray keeps to itself, in one place: the next version may drop any of it without a word.

Each use says what would be lost; where a name is gone, that is the `UserError`. A test looks every name up.
"""

import functools
import importlib
import logging
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any, cast

from clipcovid.errors import UserError

PRIVATE_NAMES = {  # module:name → what it is for
    "ray._private.ray_constants:ENABLE_RAY_CLUSTER": "keeps a cluster of this machine on loopback",
    "ray._private.worker:get_dashboard_url": "tells whether Ray Train can clean up behind a dead driver",
    "ray._raylet:Config.initialize": "lets a token be set after Ray was imported",
    "ray.train.torch:TorchTrainer._create_default_callbacks": "leaves out Ray Train's clean-up where it has no dashboard",
    "ray.train.torch:TorchTrainer._register_sigint_handler": "leaves Ctrl-C to the job",
    "ray.train.torch.config:_TorchBackend": "lets workers meet in a file instead of on all interfaces",
    "ray.train.torch.config:_set_torch_distributed_env_vars": "lets workers meet in a file instead of on all interfaces",
    "ray.train.torch.config:_setup_torch_process_group": "lets workers meet in a file instead of on all interfaces",
}
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # the call of a cluster's head that any version of Ray answers
ADDRESS_FILE = (
    "ray_current_cluster"  # in Ray's folder for temporary files: the address of the last cluster started here
)
HEAD_RESOURCE = "node:__internal_head__"  # of which only the head node has some
WORKER_START_ERROR_PREFIX = (
    "WorkerGroupStartup"  # the start of the names of Ray Train's errors where workers can't be started
)
TEMP_DIR_OPTION = "_temp_dir"  # of `ray.init`: the folder of its sockets
CLEANER_CALLBACK = "PlacementGroupCleanerCallback"  # of Ray Train, in ray.train.v2.api.data_parallel_trainer
PROGRESS_LOGGER = "ray.data._internal.progress"  # warns that Ray Data's own bars are off
REPORT_LOGGER = "ray.train.v2._internal.execution.context"  # logs each worker's reports, under its file's name


def load_private(name: str) -> Any:
    """The object of an entry of `PRIVATE_NAMES`; raises `UserError` where this Ray no longer has it."""
    module, _, path = name.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        import ray

        raise UserError(
            f"Ray {ray.__version__} has no {module}.{path}, which {PRIVATE_NAMES[name]}: install the version of Ray that "
            "constraints.txt names, or use --compute.workers 0."
        ) from error


def stay_on_loopback() -> None:
    """Let this node's address be 127.0.0.1, as Ray has it on a Mac; else Ray replaces 127.0.0.1 by the machine's own."""
    load_private("ray._private.ray_constants:ENABLE_RAY_CLUSTER")
    cast(Any, importlib.import_module("ray._private.ray_constants")).ENABLE_RAY_CLUSTER = False


def reload_auth_mode() -> None:
    """Let Ray read `RAY_AUTH_MODE` anew, where it was imported before that was set."""
    load_private("ray._raylet:Config.initialize")("")


def has_dashboard() -> bool:
    """Whether the cluster that this process is connected to has a dashboard."""
    return bool(load_private("ray._private.worker:get_dashboard_url")())


def silence_progress() -> None:
    """Keep Ray Data's warning that its progress bars are off from the terminal."""
    logging.getLogger(PROGRESS_LOGGER).setLevel(logging.ERROR)


def silence_reports() -> None:
    """Keep the lines in which Ray Train logs every report of a worker from the terminal."""
    module = sys.modules.get(REPORT_LOGGER)
    if module is not None:
        logging.getLogger(module.__file__).setLevel(logging.WARNING)


def trainer_class(*, clean_up: bool) -> Any:
    """`TorchTrainer` with Ctrl-C left to the job, and with what cleans up behind a dead driver only where asked for.

    The cleaner asks the dashboard, and complains every second where there is none. Ray Train's handler of Ctrl-C waits for
    a controller that may be waiting for workers.
    """
    from ray.train.torch import TorchTrainer

    create_callbacks = load_private("ray.train.torch:TorchTrainer._create_default_callbacks")
    load_private("ray.train.torch:TorchTrainer._register_sigint_handler")

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = create_callbacks(self)
            return [callback for callback in callbacks if clean_up or type(callback).__name__ != CLEANER_CALLBACK]

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    return Trainer


def file_rendezvous_config() -> Any:
    """A `TorchConfig` whose workers, all of one machine, make their process group through a file.

    Torch's own meeting point listens on all interfaces, and takes orders from anyone.
    """
    import ray
    from ray.train.torch import TorchConfig

    set_environment = load_private("ray.train.torch.config:_set_torch_distributed_env_vars")
    join_group = load_private("ray.train.torch.config:_setup_torch_process_group")

    class Backend(load_private("ray.train.torch.config:_TorchBackend")):  # type: ignore[misc]  # a class known when it runs
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(set_environment)
            gpus = worker_group.get_resources_per_worker().get("GPU", 0)
            group = {
                "backend": "nccl" if gpus else "gloo",
                "world_size": len(worker_group),
                "init_method": (Path(tempfile.gettempdir()) / f"clipcovid-{uuid.uuid4().hex}").as_uri(),
                "timeout_s": backend_config.timeout_s,
            }
            join = functools.partial(worker_group.execute_single_async, **group)
            ray.get([join(rank, join_group, world_rank=rank) for rank in range(len(worker_group))])

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config()
