"""The environment variables that we set, all of them: each only where the user did not, and none by an import.

Other processes inherit them: what Ray's workers and torch need has to be there before they start.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

RAY_DEFAULTS = {  # of any cluster that is started or joined
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning about GPU variables
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports wait for the controller's look, by default every 2 s
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line twice
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own would end an interrupted sweep as if it were done
    "TQDM_MININTERVAL": "0.5",
}
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
OWN_CLUSTER_DEFAULTS = {  # of a cluster of ours: its workers are on this machine
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": LOOPBACK,
}
MLFLOW_DEFAULTS = {  # its own defaults retry an unreachable server for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model needs what it imports, not what the working directory's project locks
}


def set_home() -> None:
    """Name a home where the user has none, as a number without a name in a container: libraries keep caches there."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()


def set_defaults(variables: Mapping[str, str]) -> None:
    """Set each variable that is not set."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
