"""The Ray cluster that a job works on: one that is there, or one of its own, on this machine alone and with a token.

Who can reach a cluster's ports can run code on it. So a cluster that we start listens on loopback and takes only clients
that know its token, a new one for each cluster, which its processes inherit and no file holds.
"""

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipcovid import environment
from clipcovid.config import ComputeConfig, UserError, summarize_error
from clipcovid.ray_backend import private

OWN_CLUSTER_VARIABLE = "CLIPCOVID_OWN_CLUSTER"  # set in all processes of a cluster that `connect` started
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
PROBE_TIMEOUT = 4.0  # seconds in which a cluster has to answer
MAX_TEMP_LENGTH = 30  # bytes: below it Ray has sockets, whose whole paths may have 107
SYSTEM_TEMP = "/tmp"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")


def connect(config: ComputeConfig) -> None:
    """Join the running Ray cluster, or start a local one; idempotent, and nothing where no worker is asked for.

    An address where none answers, or one that does not take our token, is a `UserError`.
    """
    if config.workers == 0:
        return
    environment.set_defaults(environment.RAY_DEFAULTS)
    if _is_connected():
        return
    address = find_cluster(config.address)
    with _keep_sigterm_handler():
        if address:
            authenticate(address)
            _join(address)
        else:
            _start()


def _is_connected() -> bool:
    """Whether this process works on a cluster; asked without importing Ray."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _join(address: str) -> None:
    os.environ.pop(OWN_CLUSTER_VARIABLE, None)
    import ray

    private.reload_auth_mode()
    if listens_on_loopback_alone(address):
        private.stay_on_loopback()
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise UserError(f"The Ray cluster at {address} can't be joined ({summarize_error(error)}).") from error


def _start() -> None:
    """Start a cluster on this machine: on loopback, and with a token where the user did not decide otherwise."""
    environment.set_defaults(environment.OWN_CLUSTER_DEFAULTS | {MODE: "token", OWN_CLUSTER_VARIABLE: "1"})
    if not os.environ.get(TOKEN_PATH):
        os.environ.setdefault(TOKEN, secrets.token_hex(32))
    import ray

    private.stay_on_loopback()
    private.reload_auth_mode()
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 10**9}
    if len(os.fsencode(_temp_folder())) > MAX_TEMP_LENGTH:
        print(f"note: the path of {_temp_folder()} is too long for Ray's sockets: they are in {SYSTEM_TEMP}/ray.")
        options[private.TEMP_DIR_OPTION] = f"{SYSTEM_TEMP}/ray"
    try:
        ray.init(address="local", logging_level=logging.WARNING, **options)
    except OSError as error:
        raise UserError(
            f"Ray can't be started ({summarize_error(error)}): name a folder that can be written in RAY_TMPDIR, or use "
            "--compute.workers 0."
        ) from error


def listens_on_loopback_alone(address: str) -> bool:
    """Whether a cluster at a loopback `address` (host:port) can't be reached by the machine's own address."""
    host, _, port = address.rpartition(":")
    if host not in LOOPBACK_HOSTS:
        return False
    from ray.util import get_node_ip_address

    return not _probe(f"{get_node_ip_address()}:{port}")


@contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Leave SIGTERM to whoever has it: Ray's own handler would print the stack of a job that is stopped."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before not in (None, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _temp_folder() -> str:
    """Where Ray keeps its sockets and logs, in a folder `ray`."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SYSTEM_TEMP


def find_cluster(wanted: str) -> str:
    """The address of the cluster to join, "" for none: `wanted`, or for `auto` RAY_ADDRESS or the last one started here.

    Ray itself waits for minutes for a cluster that is gone, such as a head that was killed and so left its address
    behind: it is asked for an answer first. Silence where an address was given is a `UserError`.
    """
    if wanted == "local":
        return ""
    address = os.environ.get("RAY_ADDRESS", "") if wanted == "auto" else wanted
    if address not in ("", "auto"):
        if not _probe(address):
            raise UserError(f"No Ray cluster answers at {address}: start one, or use --compute.address local.")
        return address
    for folder in dict.fromkeys((_temp_folder(), SYSTEM_TEMP)):
        path = Path(folder) / "ray" / private.ADDRESS_FILE
        last = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        if last and _probe(last):
            return last
    return ""


def authenticate(address: str) -> None:
    """Turn on our token where the cluster at `address` asks for one; none, or a wrong one, is a `UserError`.

    Ray itself would try for half a minute, and end with a traceback.
    """
    mode, token = os.environ.get(MODE, "").lower(), _token()
    way_out = (
        f"set {MODE}=token and {TOKEN} or {TOKEN_PATH} to the cluster's (`ray get-auth-token` prints it there), or use "
        "--compute.address local."
    )
    if mode == "token" and not token:
        raise UserError(f"{MODE} is token, but there is none: {way_out}")
    if _probe(address) != "refuses":
        return
    if not token or mode not in ("", "token"):
        raise UserError(f"The Ray cluster at {address} asks for a token: {way_out}")
    if _probe(address, token) == "refuses":
        raise UserError(f"The Ray cluster at {address} does not take this token: {way_out}")
    os.environ[MODE] = "token"


def _token() -> str:
    """The user's token, from where Ray reads it; "" for none."""
    if token := os.environ.get(TOKEN):
        return token
    path = Path(os.environ.get(TOKEN_PATH) or "~/.ray/auth_token")
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, RuntimeError):  # no file, or no home
        return ""


def _probe(address: str, token: str = "") -> str:
    """What a cluster says: `takes` or `refuses` a client with this token, "" for nothing within `PROBE_TIMEOUT`."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return "takes"  # Ray has the certificates
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(address.removeprefix("ray://"), options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(private.CHECK_ALIVE)(b"", timeout=PROBE_TIMEOUT, metadata=metadata)
        except grpc.RpcError as error:
            answers = {
                grpc.StatusCode.UNAUTHENTICATED: "refuses",
                grpc.StatusCode.UNIMPLEMENTED: "takes",  # of Ray Client, which has other calls
            }
            return answers.get(error.code(), "")
    return "takes"


def is_own_cluster() -> bool:
    """Whether the cluster is one that `connect` started: it ends with its driver, and has no dashboard."""
    return bool(os.environ.get(OWN_CLUSTER_VARIABLE))


def cluster_nodes() -> list[tuple[float, float]]:
    """(CPUs, GPUs) of each node of the cluster that `connect` joined; none without one."""
    if not _is_connected():
        return []
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive]
