"""Several training processes in a test: what each of them gives, in the order of their ranks."""

import os
import socket
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(work, world: int, *arguments: Any) -> list[Any]:
    """Call `work(*arguments)` in `world` processes that can talk to one another through gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    with context.Manager() as manager:
        found = manager.dict()
        mp.start_processes(_rank, (work, world, port, arguments, found), nprocs=world, start_method="spawn")
        return [found[rank] for rank in range(world)]


def _rank(rank, work, world, port, arguments, found):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        found[rank] = work(*arguments)
    finally:
        dist.destroy_process_group()
