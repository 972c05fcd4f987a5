"""Who listens where, and what it says to a client without a token."""

import http.client
import ipaddress
import threading
import urllib.error
import urllib.request
from pathlib import Path

import grpc

CALLS = (  # of the GCS, the raylet, the object manager, workers, and agents
    "NodeInfoGcsService/CheckAlive",
    "InternalKVGcsService/InternalKVGet",
    "JobInfoGcsService/GetAllJobInfo",
    "NodeManagerService/GetSystemConfig",
    "NodeManagerService/GetResourceLoad",
    "ObjectManagerService/FreeObjects",
    "CoreWorkerService/GetCoreWorkerStats",
    "CoreWorkerService/PushTask",
    "ReporterService/GetTraceback",
)


def listening(root: int) -> set[tuple[str, int]]:
    """The addresses that a process and all that it started listen on."""
    sockets = {}
    for family, width in (("tcp", 4), ("tcp6", 16)):
        for line in Path("/proc/net", family).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] != "0A":
                continue
            raw, port = fields[1].split(":")
            number = b"".join(bytes.fromhex(raw[at : at + 8])[::-1] for at in range(0, 2 * width, 8))
            sockets[f"socket:[{fields[9]}]"] = str(ipaddress.ip_address(number)), int(port, 16)
    found = set()
    for pid in family_of(root):
        try:
            links = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
        except OSError:  # it has ended
            continue
        found |= {sockets[link] for link in links & sockets.keys()}
    return found


def family_of(root: int) -> set[int]:
    """A process and all that it started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def without_token(port: int) -> set[str]:
    """What a port of this machine answers to gRPC calls, and to HTTP's GET, of a client that has no token."""
    said = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        for call in CALLS:
            try:
                channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=3)
                said.add(f"{call} is done")
            except grpc.RpcError as error:
                said.add(error.code().name)
    for path in ("/", "/api/jobs/", "/api/local_raylet_healthz"):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=3) as answer:
                said.add(f"{path} has {answer.read(30)!r}")
        except urllib.error.HTTPError as error:
            said.add(str(error.code))
        except (OSError, http.client.HTTPException):
            continue
    return said


class Watch(threading.Thread):
    """Collects while it runs where a process listens, and asks each port once, as it comes."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.ended = root, threading.Event()
        self.addresses: set[tuple[str, int]] = set()
        self.answers: dict[int, set[str]] = {}

    def run(self) -> None:
        while not self.ended.wait(0.3):
            new = listening(self.root) - self.addresses
            self.addresses |= new
            for _, port in new:
                self.answers[port] = without_token(port)

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.ended.set()
        self.join()
