"""Which images are in which batch, and their way to the device."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from clipcovid.config import UserError
from clipcovid.methods.task import Batch, Examples
from clipcovid.ray_backend.map import prefetch


def epoch_batches(count: int, size: int, seed: int, epoch: int, rank: int, world: int) -> list[np.ndarray]:
    """This process's share of each batch of an epoch: positions, (size / world,) int64 each.

    The order is a permutation drawn from (seed, epoch): it can be replayed, and the batches are the same for any number of
    processes. What is left over at the end is left out, another rest in each epoch; fewer images than a batch are one.
    """
    size = min(size, count)
    if size // world == 0:
        raise UserError(f"{count} training images are too few for {world} workers: use fewer --compute.workers.")
    size -= size % world
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [order[start : start + size][rank::world] for start in range(0, count - size + 1, size)]


def iter_batches(examples: Examples, batch_indices: Sequence[np.ndarray], device: torch.device) -> Iterator[Batch]:
    """Batches on the device, each read while the one before is worked on."""

    def read(indices: np.ndarray) -> Batch:
        return {name: to_tensor(value, pin=device.type == "cuda") for name, value in examples.read(indices).items()}

    for batch in prefetch(read, batch_indices):
        yield {name: to_device(value, device) for name, value in batch.items()}


def to_tensor(value: object, *, pin: bool) -> object:
    """Arrays become tensors, in memory that a GPU copies from by itself where it is pinned; lists stay."""
    if not isinstance(value, np.ndarray):
        return value
    tensor = torch.from_numpy(value)
    return tensor.pin_memory() if pin else tensor


def to_device(value: object, device: torch.device) -> object:
    """Tensors on the device; lists stay."""
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


def split_microbatches(batch: Batch, count: int) -> list[Batch]:
    """The batch in `count` parts of nearly equal size."""
    if count == 1:
        return [batch]
    cuts = np.array_split(np.arange(len(batch["row"])), count)
    return [{name: value[cut[0] : cut[-1] + 1] for name, value in batch.items()} for cut in cuts if len(cut)]
