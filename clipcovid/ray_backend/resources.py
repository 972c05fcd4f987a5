"""What the cluster has, what a job asks of it, and the preflight that compares them: Ray itself would wait for ever."""

import dataclasses
import math
import os
import platform
from pathlib import Path

from clipcovid.config import ComputeConfig, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourcePlan:
    """What a job will use."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads: int
    batch_size: int

    @property
    def device(self) -> str:
        """`cuda` or `cpu`."""
        return "cuda" if self.gpus_per_worker else "cpu"

    def __str__(self) -> str:
        each = f"{self.gpus_per_worker:g} GPU, " if self.gpus_per_worker else ""
        if not self.workers:
            return f"this process ({each}{self.threads} thread{'s' * (self.threads != 1)})"
        return (
            f"{self.workers} worker{'s' * (self.workers != 1)} × ({each}{self.cpus_per_worker:g} CPU, "
            f"{self.threads} thread{'s' * (self.threads != 1)}), batches of {self.batch_size}"
        )


def plan_resources(
    config: ComputeConfig,
    nodes: list[tuple[float, float]],
    *,
    gpu: bool,
    items: int | None = None,
    max_per_node: int | None = None,
    oversubscribe: bool = True,
) -> ResourcePlan:
    """Fill in what `config` leaves open from the nodes' (CPUs, GPUs), and check that it fits.

    `gpu`: whether the work can use one. `items`: pieces of work there are; more workers than that are not started.
    `max_per_node`: how many workers without a GPU a node gets at most, default one a core. `oversubscribe`: more workers
    than cores share them; those that wait for one another at every step would only be slower. Asking for more than there
    is, which Ray would wait for without a word, is a `UserError`.
    """
    if config.workers == 0:
        return _plan_local(config, gpu)
    cpus, gpus = (sum(column) for column in zip(*nodes, strict=True))
    per_gpu = config.gpus_per_worker if config.gpus_per_worker is not None else float(gpu and gpus >= 1)
    per_cpu = config.cpus_per_worker
    if per_cpu is None and not config.workers and not per_gpu:
        per_cpu = float(max(1, max(cpu for cpu, _ in nodes) // max_per_node)) if max_per_node else 1.0
    workers = config.workers or max(1, int(gpus / per_gpu) if per_gpu else _max_workers(nodes, per_cpu or 1, 0))
    if not config.workers and items is not None:
        workers = max(1, min(workers, items))
    if per_cpu is None:
        share = cpus / workers
        per_cpu = float(int(share)) if share >= 1 else int(share * 100) / 100 if oversubscribe or per_gpu else 1.0
        while per_cpu > 1 and _max_workers(nodes, per_cpu, per_gpu) < workers:  # uneven nodes
            per_cpu -= 1
    room = _max_workers(nodes, per_cpu, per_gpu)
    if workers > room or per_cpu <= 0:
        worker = f"{per_cpu:g} CPU" + f" and {per_gpu:g} GPU" * bool(per_gpu)
        raise UserError(
            f"{workers} worker{'s' * (workers != 1)} of {worker} each do not fit: the cluster has {cpus:g} CPUs and "
            f"{gpus:g} GPUs on {len(nodes)} node{'s' * (len(nodes) != 1)}, room for {room}. Use fewer --compute.workers, "
            "or less --compute.cpus-per-worker or --compute.gpus-per-worker."
        )
    return ResourcePlan(
        workers=workers,
        cpus_per_worker=per_cpu,
        gpus_per_worker=per_gpu,
        threads=config.threads or max(1, math.ceil(per_cpu)),
        batch_size=config.batch_size or (256 if per_gpu else 32),
    )


def available_cores() -> int:
    """The cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plan_local(config: ComputeConfig, gpu: bool) -> ResourcePlan:
    """What work in this process uses: all cores, and a GPU where it can use one and there is one."""
    gpus = 0.0
    if gpu and config.gpus_per_worker != 0:
        import torch  # whoever asks for a GPU needs it anyway

        gpus = float(torch.cuda.is_available())
        if config.gpus_per_worker and not gpus:
            raise UserError("There is no GPU on this machine: leave --compute.gpus-per-worker out.")
    cores = available_cores()
    return ResourcePlan(
        workers=0,
        cpus_per_worker=0,
        gpus_per_worker=gpus,
        threads=config.threads or cores,
        batch_size=config.batch_size or (256 if gpus else 32),
    )


def _max_workers(nodes: list[tuple[float, float]], per_cpu: float, per_gpu: float) -> int:
    """How many workers fit on the nodes."""

    def on(cpu: float, gpu: float) -> float:
        fits = [total / needed + 1e-9 for total, needed in ((cpu, per_cpu), (gpu, per_gpu)) if needed]
        return min(fits, default=math.inf)

    room = sum(on(cpu, gpu) // 1 for cpu, gpu in nodes)
    return int(room) if math.isfinite(room) else 10**6


def cpu_computes_bf16() -> bool:
    """Whether this machine's CPU multiplies matrices in bfloat16 natively (AMX, AVX512-BF16, or Arm's BF16)."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if platform.system() == "Linux" else ""
    return any(flag in flags.split() for flag in ("amx_bf16", "avx512_bf16", "bf16"))


def resolve_precision(precision: str, device: str) -> str:
    """`auto` → bf16 where the device computes in it, else fp32; fp16 on a CPU is a `UserError`."""
    if precision == "fp16" and device == "cpu":
        raise UserError("--clip.precision fp16 needs a GPU: use bf16, fp32 or auto on a CPU.")
    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" or cpu_computes_bf16() else "fp32"
