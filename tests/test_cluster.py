import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from clipcovid.config import ComputeConfig, UserError
from clipcovid.ray_backend import cluster
from clipcovid.ray_backend.cluster import MODE, TOKEN, TOKEN_PATH, authenticate, find_cluster


class Head(grpc.GenericRpcHandler):
    """Answers as the head of a cluster does: whatever is asked, of whoever has the token."""

    def __init__(self, token):
        self.token = token

    def service(self, details):
        known = dict(details.invocation_metadata).get("authorization", "")

        def answer(request, context):
            if self.token and known != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def head():
    """Starts a head with a token, or with "" an open one; gives its address."""
    servers = []

    def start(token=""):
        server = grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers([Head(token)])
        servers.append(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


@pytest.fixture(autouse=True)
def user(monkeypatch, tmp_path):
    """A user without a token, or anything else of Ray's."""
    for name in (MODE, TOKEN, TOKEN_PATH, "RAY_ADDRESS", "TMPDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(cluster, "SYSTEM_TEMP", str(tmp_path / "nothing"))


@pytest.fixture
def last_started(tmp_path):
    """Sets the address that the last `ray start` of this machine left."""
    (tmp_path / "ray").mkdir()
    return (tmp_path / "ray" / "ray_current_cluster").write_text


def test_the_running_cluster_is_found(head, last_started, monkeypatch):
    address = head()
    assert find_cluster("auto") == ""
    last_started(address)
    assert find_cluster("auto") == address
    assert find_cluster("local") == ""
    monkeypatch.setenv("RAY_ADDRESS", address)
    last_started("127.0.0.1:1")
    assert find_cluster("auto") == address


def test_a_cluster_is_looked_for_where_ray_puts_it(head, last_started, monkeypatch, tmp_path):
    address = head()
    last_started(address)
    monkeypatch.delenv("RAY_TMPDIR")
    assert find_cluster("auto") == ""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert find_cluster("auto") == address


def test_the_address_that_a_killed_cluster_left_is_not_waited_for(last_started):
    last_started("127.0.0.1:1")
    assert find_cluster("auto") == ""


@pytest.mark.parametrize("given", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:1"])
def test_an_address_where_none_answers_is_one_sentence(given, monkeypatch):
    with pytest.raises(UserError, match=rf"No Ray cluster answers at {given}: start one"):
        find_cluster(given)
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(UserError, match=rf"No Ray cluster answers at {given}"):
        find_cluster("auto")


def test_a_server_of_something_else_is_given_up_in_five_seconds():
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        with pytest.raises(UserError, match="No Ray cluster answers"):
            find_cluster(f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - began < 5


def test_an_open_cluster_is_joined_as_the_user_has_it(head):
    authenticate(head())
    assert MODE not in os.environ


@pytest.mark.parametrize(("interface", "alone"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_a_cluster_on_loopback_alone_is_told_from_one_that_has_the_machines_address(interface, alone, monkeypatch):
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", True)  # off where a test started a cluster
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([Head("")])
    port = server.add_insecure_port(f"{interface}:0")
    server.start()
    assert cluster.listens_on_loopback_alone(f"127.0.0.1:{port}") == alone
    assert not cluster.listens_on_loopback_alone(f"10.0.0.1:{port}")
    server.stop(None)


@pytest.mark.parametrize("place", ["variable", "path", "home"])
def test_a_token_is_used_where_the_cluster_asks_for_one(head, place, monkeypatch, tmp_path):
    file = tmp_path / "home" / ".ray" / "auth_token"
    file.parent.mkdir(parents=True)
    if place == "variable":
        monkeypatch.setenv(TOKEN, "secret")
    elif place == "path":
        monkeypatch.setenv(TOKEN_PATH, str(tmp_path / "token"))
        (tmp_path / "token").write_text("secret\n")
    else:
        file.write_text("secret")
    authenticate(head("secret"))
    assert os.environ[MODE] == "token"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "asks for a token"),
        ({MODE: "disabled", TOKEN: "secret"}, "asks for a token"),
        ({MODE: "token", TOKEN: "wrong"}, "does not take this token"),
        ({TOKEN: "wrong"}, "does not take this token"),
        ({MODE: "token"}, "RAY_AUTH_MODE is token, but there is none"),
    ],
)
def test_a_missing_or_wrong_token_is_one_sentence_and_soon(head, given, says, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    address, began = head("secret"), time.monotonic()
    with pytest.raises(
        UserError, match=rf"{says}: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN .*--compute\.address local"
    ):
        cluster.connect(ComputeConfig(address=address)) if not cluster._is_connected() else authenticate(address)
    assert time.monotonic() - began < 5


def test_no_import_sets_an_environment_variable():
    code = (
        "import os; before = dict(os.environ)\n"
        "import clipcovid.ray_backend.cluster, clipcovid.ray_backend.tune, clipcovid.ray_backend.map\n"
        "import clipcovid.ray_backend.train, clipcovid.inference.predict, clipcovid.data.prepare\n"
        "import clipcovid.workflows.train, clipcovid.tracking.runs\n"
        "assert os.environ == before, set(os.environ.items()) - set(before.items())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
