"""What the training processes say to one another; alone, each function answers for itself."""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist


def world_size() -> int:
    """How many training processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 for the one that writes."""
    return dist.get_rank() if world_size() > 1 else 0


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Tensors (n, …) of all processes one after another, (world × n, …); gradients flow back to each."""
    return tensor if world_size() == 1 else cast(torch.Tensor, _Gather.apply(tensor))


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is summed over the processes, each of which used all of it."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        found = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(found, tensor.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def all_gather_object(value: Any) -> list[Any]:
    """What each process gives, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite these tensors in every process with those of the first."""
    for tensor in tensors if world_size() > 1 else ():
        dist.broadcast(tensor, 0)


def all_reduce_mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over all processes."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values
