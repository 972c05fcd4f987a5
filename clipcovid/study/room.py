"""How many steps have room at once on the cores and GPUs that there are."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from clipcovid.config import ComputeConfig
from clipcovid.ray_backend.cluster import cluster_nodes, connect, find_cluster
from clipcovid.ray_backend.resources import available_cores
from clipcovid.study.plan import Step

GPU_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(kw_only=True)
class ComputePool:
    """The cores and GPUs that steps compute on; what does not compute with torch runs beside them."""

    cores: float
    gpus: tuple[str, ...] = ()
    """The GPUs of this machine by their numbers; on a cluster, Ray gives them out."""
    is_cluster: bool = False
    taken: dict[str, tuple[float, tuple[str, ...]]] = field(default_factory=dict)
    """Step → the cores and GPUs that it has."""

    @classmethod
    def detect(cls, compute: ComputeConfig) -> "ComputePool":
        """What the running Ray cluster has, if a job would join one, else this machine."""
        if compute.workers != 0 and find_cluster(compute.address):
            connect(compute)
            nodes = cluster_nodes()
            return cls(
                cores=sum(cpus for cpus, _ in nodes),
                gpus=tuple(map(str, range(int(sum(gpus for _, gpus in nodes))))),
                is_cluster=True,
            )
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        there = [str(number) for number, _ in enumerate(GPU_DRIVER.iterdir())] if GPU_DRIVER.exists() else []
        gpus = there if shown is None else [name for name in shown.split(",") if name and name != "-1"]
        return cls(cores=float(available_cores()), gpus=tuple(gpus))

    def acquire(self, step: Step) -> dict[str, str] | None:
        """The variables to start a step with, whose room is taken until `release`; None where it has to wait."""
        beside = [name for name, (cores, _) in self.taken.items() if not cores]
        if not step.computes:
            if len(beside) >= max(1, self.cores // 2):
                return None
            self.taken[step.name] = 0.0, ()
            return {}
        cores, gpus = self._demand(step.compute)
        used = [gpu for _, taken in self.taken.values() for gpu in taken]
        free = [gpu for gpu in self.gpus if gpu not in used]
        if sum(taken for taken, _ in self.taken.values()) + cores > self.cores or gpus > len(free):
            return None
        self.taken[step.name] = cores, tuple(free[:gpus])
        return {} if self.is_cluster or not gpus else {"CUDA_VISIBLE_DEVICES": ",".join(free[:gpus])}

    def release(self, step: Step) -> None:
        """Give back what a step has taken."""
        self.taken.pop(step.name)

    def _demand(self, compute: ComputeConfig) -> tuple[float, int]:
        """The cores and GPUs that a job takes: what it asks for, at most all; all, where it leaves that open."""
        workers = compute.workers or 1
        each = compute.cpus_per_worker if compute.workers else compute.threads
        cores = self.cores if compute.workers is None or each is None else min(self.cores, workers * each)
        if compute.gpus_per_worker is None or compute.workers is None:
            return cores, len(self.gpus)
        return cores, min(len(self.gpus), -int(-workers * compute.gpus_per_worker // 1))
