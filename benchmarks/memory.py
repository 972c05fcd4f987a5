"""Peak memory of fine-tuning a CLIP with LoRA, beside that of full fine-tuning.

python benchmarks/memory.py
python benchmarks/memory.py --model tiny --batch-size 64
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from train import make_contender_task, make_state, random_examples

from clipcovid.cli import run_job
from clipcovid.io.files import write_json
from clipcovid.training.batches import to_tensor
from clipcovid.training.optimizer import build_optimizer

METHODS: tuple[Literal["full", "lora"], ...] = ("full", "lora")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is fine-tuned."""

    model: str = "ViT-B-32"
    """An open_clip architecture, or tiny."""
    batch_size: int = 32
    """Images in a step."""


def _measure_peak(config: Config, method: Literal["full", "lora"], folder: str) -> None:
    task, size = make_contender_task(config.model, config.batch_size, method)
    state = make_state(task)
    examples = random_examples(task, state, size, config.batch_size)
    module = task.build(examples, state).train()
    optimizer = build_optimizer(module, task.config.optim)
    batch = {name: to_tensor(value, pin=False) for name, value in examples.read(np.arange(config.batch_size)).items()}
    for _ in range(2):
        task.loss(module, batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    status = Path("/proc/self/status").read_text()  # getrusage counts what the parent had before it became this process
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    write_json(Path(folder, method), {"peak_gb": peak, "trained": trained})


def measure_methods(config: Config) -> dict[str, dict[str, float]]:
    """Method → `peak_gb` and the number of `trained` weights, each measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            process = torch.multiprocessing.get_context("spawn").Process(
                target=_measure_peak, args=(config, method, folder)
            )
            process.start()
            process.join()
        return {method: json.loads(Path(folder, method).read_text()) for method in METHODS}


def main(config: Config) -> None:
    """Measure, and print."""
    peaks = measure_methods(config)
    for method, measured in peaks.items():
        print(
            f"{config.model}, {method}: {measured['peak_gb']:.2f} GB at most, {measured['trained']:,} weights trained"
        )
    print(f"LoRA ÷ full: {peaks['lora']['peak_gb'] / peaks['full']['peak_gb']:.2f}")


if __name__ == "__main__":
    run_job(Config, main, __doc__)
