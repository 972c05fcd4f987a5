"""Training speed, as ratios measured in one run: our loop against a bare PyTorch loop, workers, probes.

    python benchmarks/train.py
    python benchmarks/train.py --models tiny resnet18 --rounds 7
    python benchmarks/train.py --models ViT-B-32 --batch-size 128 --steps 20
    python benchmarks/train.py --models unet --batch-size 8 --no-workers --no-probe

`ours` is `train.loop` on packed-like images in memory: read, moved, stepped, averaged and watched as in every training,
without augmentation and with it; `bare` is forward, backward and step on tensors that are there already: same model,
optimizer, precision and threads. They take turns; figures are medians of the rounds' ratios. Of `unet` also the images per
second of jobs/predict.py's worker, from packed pixels to masks in a table, by those of the model alone: where the truth is
unknown, and where each mask is scored against it.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from clipcovid.cli import run_job
from clipcovid.config import AugmentConfig, ClipConfig, ComputeConfig, ImagesConfig, OptimConfig
from clipcovid.data.manifest import read_manifest
from clipcovid.data.prepare import PrepareConfig, prepare
from clipcovid.data.sources import PhantomConfig
from clipcovid.inference.predict import PredictionActor
from clipcovid.io.files import write_json
from clipcovid.methods.cnn.config import CnnConfig
from clipcovid.methods.configs import NO_AUGMENT
from clipcovid.methods.contrastive import ContrastiveTask
from clipcovid.methods.finetune.config import FinetuneConfig
from clipcovid.methods.probe.config import ProbeConfig
from clipcovid.methods.probe.task import ProbeTask
from clipcovid.methods.segment.config import SegmentConfig
from clipcovid.methods.segment.task import SegmentationTask
from clipcovid.methods.task import Batch, Examples, Task, make_task, save_checkpoint, target_reader
from clipcovid.ray_backend.resources import ResourcePlan, resolve_precision
from clipcovid.training.batches import to_device, to_tensor
from clipcovid.training.loop import DeviceContext, TrainingLoop
from clipcovid.training.optimizer import ExponentialMovingAverage, build_optimizer

CLASSES = ("COVID-19", "Non-COVID", "Normal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    models: tuple[str, ...] = ("tiny", "ViT-B-32", "resnet18")
    """CLIPs to fine-tune, resnet18, and unet, a segmentation."""
    batch_size: int = 32
    """Images in a step."""
    steps: int = 4
    """Steps in a turn."""
    rounds: int = 5
    """How often each contender takes its turn."""
    workers: bool = True
    """Also measure two processes against one."""
    beside: bool = False
    """Also measure what two trainings at once leave one another, and what sharing cores costs one that is alone."""
    probe: bool = True
    """Also measure a probe on cached embeddings against a head trained through the encoder."""
    out: Path | None = None
    """A JSON file for every single figure."""


def make_contender_task(
    model: str, batch_size: int, method: Literal["full", "lora"] = "full"
) -> tuple[Task[Any, Any], int]:
    """The task of a model, and the side of its images."""
    optim = OptimConfig(batch_size=batch_size, epochs=1000)
    common: dict[str, Any] = {"data": Path("unused"), "optim": optim, "augment": NO_AUGMENT}
    size = 128 if model in ("tiny", "resnet18", "unet") else 224
    if model == "unet":
        return make_task(SegmentConfig(weights="none", **common), CLASSES, ImagesConfig(size=size)), size
    if model == "resnet18":
        return make_task(CnnConfig(arch=model, weights="none", **common), CLASSES, ImagesConfig(size=size)), size
    clip = ClipConfig(model=model, pretrained="none")
    return make_task(FinetuneConfig(clip=clip, method=method, **common), CLASSES, ImagesConfig(size=size)), size


def make_state(task: Task[Any, Any]) -> Any:
    """The towers of a contrastive task; others are measured without a state."""
    return task.setup(Path("unused"), cast(Any, None)) if isinstance(task, ContrastiveTask) else None


def random_examples(task: Task[Any, Any], state: Any, size: int, count: int) -> Examples:
    """Random images in memory, with what the task needs beside them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
    labels = [CLASSES[number % 3] for number in range(count)]
    rows = pd.DataFrame({"image_id": [str(number) for number in range(count)], "label": labels})
    about = target_reader(rows, CLASSES, "none")
    if isinstance(task, SegmentationTask):
        masks = np.where(rng.random((count, 1, size, size)) > 0.7, 255, 0).astype(np.uint8)
        return Examples(rows=rows, read=lambda take: {"image": images[take], "masks": masks[take]} | about(take))
    if not isinstance(task, ContrastiveTask):
        return Examples(rows=rows, read=lambda take: {"image": images[take]} | about(take))
    tokens = state.tokenizer([f"a chest X-ray of {name}" for name in CLASSES]).numpy()

    def read(take: np.ndarray) -> Batch:
        found = about(take)
        return {"image": images[take], "tokens": tokens, "text_index": found["label"], "key": found["label"]} | found

    return Examples(rows=rows, read=read)


def make_contenders(model: str, config: Config, device_context: DeviceContext) -> dict[str, Callable[[int], None]]:
    """What takes turns, each a function of how many steps to do."""
    task, size = make_contender_task(model, config.batch_size)
    state = make_state(task)
    some = random_examples(task, state, size, config.batch_size * config.steps)
    made = {}
    for name, augment in (("ours", NO_AUGMENT), ("ours, augmenting", AugmentConfig())):
        module = task.build(some, state).to(device_context.device).train()
        settings = dataclasses.replace(task.config, augment=augment)
        optimizer, average = build_optimizer(module, settings.optim), ExponentialMovingAverage(module, 0)
        loop = TrainingLoop(task, module, module, some, settings, device_context, optimizer, average, lambda text: None)
        made[name] = lambda epoch, loop=loop: loop.epoch(epoch)
    module = task.build(some, state).to(device_context.device).train()
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    takes = np.split(np.arange(len(some)), config.steps)
    batches = [
        {k: to_device(to_tensor(v, pin=False), device_context.device) for k, v in some.read(take).items()}
        for take in takes
    ]

    def bare(epoch: int) -> None:
        for batch in batches:
            with device_context.autocast():
                loss = task.loss(module, batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return {"bare": bare, **made}


def step_ratios(model: str, config: Config, device_context: DeviceContext) -> dict[str, Any]:
    """Images per second of each contender, and the medians of the rounds' ratios to the bare loop."""
    turns = make_contenders(model, config, device_context)
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    images = config.batch_size * config.steps
    for turn in range(config.rounds + 1):
        order = list(turns.items())
        for name, work in order if turn % 2 else reversed(order):
            began = time.perf_counter()
            work(turn)
            if device_context.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                speeds[name].append(images / (time.perf_counter() - began))
    found: dict[str, Any] = {"speeds": speeds, "images_per_s": {n: statistics.median(s) for n, s in speeds.items()}}
    for name in ("ours", "ours, augmenting"):
        ratios = [ours / bare for ours, bare in zip(speeds[name], speeds["bare"], strict=True)]
        found[f"{name} ÷ bare"] = (statistics.median(ratios), min(ratios), max(ratios))
    return found


def mask_prediction_ratios(config: Config, device_context: DeviceContext, images: int = 200) -> dict[str, list[float]]:
    """Of each round, images per second of a prediction worker ÷ those of the model alone on batches in memory.

    `masks`: of images whose truth is unknown. `masks, scored`: each is also counted against its truth, with distances.
    """
    gpus, threads = float(device_context.device.type == "cuda"), torch.get_num_threads()
    chosen = ResourcePlan(
        workers=0, cpus_per_worker=1, gpus_per_worker=gpus, threads=threads, batch_size=config.batch_size
    )
    ratios: dict[str, list[float]] = {"masks": [], "masks, scored": []}
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder, "data"), Path(folder, "run")
        here = ComputeConfig(workers=0)
        phantoms = PhantomConfig(images=images, size=128)
        prepare(PrepareConfig(out=data, phantom=phantoms, images=ImagesConfig(size=128), compute=here))
        task, _ = make_contender_task("unet", config.batch_size)
        nothing = Examples(rows=pd.DataFrame(), read=lambda indices: {})
        save_checkpoint(task, task.build(nothing, None), None, run, choices={})
        known = read_manifest(data)
        unknown = dataclasses.replace(known, table=known.table.assign(lung_mask="", infection_mask=""))
        workers = {
            name: PredictionActor(run=run, data=data, manifest=manifest, resources=chosen)
            for name, manifest in zip(ratios, (unknown, known), strict=True)
        }
        pixels = torch.from_numpy(workers["masks"].packed.images(range(images))).to(device_context.device)
        module: Any = workers["masks"].module

        def alone() -> None:
            with torch.no_grad(), device_context.autocast():
                for start in range(0, images, config.batch_size):
                    module(pixels[start : start + config.batch_size])

        item = {"path": str(Path(folder, "part.parquet")), "rows": list(range(images))}
        works = {"alone": alone} | {name: partial(worker, item) for name, worker in workers.items()}
        for turn in range(config.rounds + 1):
            seconds = {}
            for name in list(works)[:: 1 if turn % 2 else -1]:
                began = time.perf_counter()
                works[name]()
                seconds[name] = time.perf_counter() - began
            for name in ratios if turn else ():
                ratios[name].append(seconds["alone"] / seconds[name])
    return ratios


def _run_rank(rank: int, world: int, config: Config, folder: str) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world
        )
    task, size = make_contender_task("tiny", config.batch_size * 2)
    state = make_state(task)
    some = random_examples(task, state, size, config.batch_size * 2 * config.steps)
    module = task.build(some, state).train()
    net: Any = torch.nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True) if world > 1 else module
    device_context = DeviceContext(device=torch.device("cpu"), precision=resolve_precision("auto", "cpu"))
    optimizer = build_optimizer(module, task.config.optim)
    loop = TrainingLoop(
        task,
        net,
        module,
        some,
        task.config,
        device_context,
        optimizer,
        ExponentialMovingAverage(module, 0),
        lambda text: None,
    )
    speeds = [loop.epoch(epoch)["images_per_s"] for epoch in range(config.rounds + 1)][1:]
    if rank == 0:
        Path(folder, f"speed-{world}").write_text(str(statistics.median(speeds)))


def two_worker_speedup(config: Config) -> float:
    """Images per second of two processes ÷ one with all threads, tiny CLIP at the same global batch."""
    with tempfile.TemporaryDirectory() as folder:
        for world in (1, 2):
            torch.multiprocessing.spawn(_run_rank, (world, config, folder), nprocs=world)
        one, two = (float(Path(folder, f"speed-{world}").read_text()) for world in (1, 2))
    return two / one


SETTLE_S = 6.0  # seconds that a training has to find out how many threads it has room for


def _train_beside(config: Config, fixed: bool, orders: Any) -> None:
    """Train for as many seconds as each order says, and answer with the images per second; an order of 0 ends it."""
    device_context = DeviceContext(device=torch.device("cpu"), precision=resolve_precision("auto", "cpu"))
    task, size = make_contender_task("resnet18", config.batch_size)
    threads = torch.get_num_threads() if fixed else None
    settings = dataclasses.replace(task.config, compute=ComputeConfig(threads=threads))
    state = make_state(task)
    images = random_examples(task, state, size, config.batch_size)
    module = task.build(images, state).train()
    optimizer, average = build_optimizer(module, settings.optim), ExponentialMovingAverage(module, 0)
    loop = TrainingLoop(task, module, module, images, settings, device_context, optimizer, average, lambda text: None)
    epoch = 0
    while seconds := orders.recv():
        began = time.perf_counter()
        ends = [began]  # of the last step before what is counted, and of those that are
        steps = 0
        while len(ends) < 2 or ends[-1] < began + SETTLE_S + seconds:
            epoch += 1
            loop.epoch(epoch)
            now = time.perf_counter()
            steps += 1
            ends = [now] if steps < 5 or ends[-1] < began + SETTLE_S else [*ends, now]
        orders.send((len(ends) - 1) * config.batch_size / (ends[-1] - ends[0]))


def measure_side_by_side(config: Config, seconds: float = 8.0) -> dict[str, dict[str, list[float]]]:
    """Images per second of a ResNet18's training that is alone, and of the slower of two beside one another, in turns.

    `ours` computes with a thread for each core or fewer, as there is room; `fixed` with a thread for each core.
    """
    context = torch.multiprocessing.get_context("spawn")
    found: dict[str, dict[str, list[float]]] = {}
    trainees: dict[str, list[Any]] = {"ours": [], "fixed": []}
    for name, pipes in trainees.items():
        for _ in range(2):
            ours, theirs = context.Pipe()
            context.Process(target=_train_beside, args=(config, name == "fixed", theirs), daemon=True).start()
            pipes.append(ours)
    for turn in range(config.rounds):
        for name, both in list(trainees.items())[:: -1 if turn % 2 else 1]:
            for what, working in (("alone", both[:1]), ("beside", both)):
                for orders in working:
                    orders.send(seconds)
                found.setdefault(name, {}).setdefault(what, []).append(min(orders.recv() for orders in working))
    for orders in [*trainees["ours"], *trainees["fixed"]]:
        orders.send(0)
    return found


def probe_speed(config: Config, device_context: DeviceContext, images: int = 300) -> dict[str, float]:
    """Seconds of a linear probe on cached embeddings, and of the same head trained through the encoder for as many epochs
    as the cached one needs to come within one image of its final training accuracy."""
    task, size = make_contender_task("tiny", config.batch_size)
    state = make_state(task)
    some = random_examples(task, state, size, images)
    module: Any = task.build(some, state).eval()
    began = time.perf_counter()
    with torch.no_grad():
        parts = np.array_split(np.arange(images), max(1, images // 32))
        features = torch.cat(
            [module.clip.encode_image(module.to_input(torch.from_numpy(some.read(p)["image"]))) for p in parts]
        )
    forward = time.perf_counter() - began
    labels = torch.from_numpy(some.read(np.arange(images))["label"])
    probe = ProbeTask(ProbeConfig(data=Path("unused"), penalties=(1e-3,)), CLASSES, ImagesConfig())
    embedded = Examples(rows=some.rows, read=lambda indices: {"embedding": features.numpy()[indices]})
    heads = probe.build(embedded, cast(Any, None)).train()
    optimizer = build_optimizer(heads, probe.config.optim)
    batch = {"embedding": features, "label": labels, "weight": torch.ones(images)}
    right, seconds = [], []
    began = time.perf_counter()
    for _ in range(probe.config.optim.epochs):
        probe.loss(heads, batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        right.append(int((heads(features)[0].argmax(dim=-1) == labels).sum()))
        seconds.append(time.perf_counter() - began)
    needed = next(epoch for epoch, count in enumerate(right, 1) if count >= right[-1] - 1)
    return {
        "epochs": needed,
        "cached_s": seconds[needed - 1],
        "through_encoder_s": seconds[needed - 1] + needed * forward,
        "ratio": (seconds[needed - 1] + needed * forward) / seconds[needed - 1],
    }


def main(config: Config) -> None:
    """Measure, and print."""
    console, found = Console(), dict[str, Any]()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device_context = DeviceContext(device=torch.device(device), precision=resolve_precision("auto", device))
    console.print(f"{device}, {device_context.precision}, {torch.get_num_threads()} threads")
    table = Table("model", "bare img/s", "ours ÷ bare", "augmenting ÷ bare")
    for model in config.models:
        found[model] = step_ratios(model, config, device_context)
        shares = [found[model][f"{name} ÷ bare"] for name in ("ours", "ours, augmenting")]
        cells = (f"{middle:.3f} ({low:.2f}–{high:.2f})" for middle, low, high in shares)
        table.add_row(model, f"{found[model]['images_per_s']['bare']:.1f}", *cells)
    console.print(table)
    if "unet" in config.models:
        found["predicted masks"] = mask_prediction_ratios(config, device_context)
        for name, ratios in found["predicted masks"].items():
            console.print(
                f"unet, prediction worker ÷ model alone, {name}: {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f}–{max(ratios):.2f})"
            )
    if config.workers and device == "cpu":
        found["two workers ÷ one"] = two_worker_speedup(config)
        console.print(f"two workers ÷ one, tiny: {found['two workers ÷ one']:.2f}")
    if config.beside and device == "cpu":
        found["beside"] = measure_side_by_side(config)
        for name, speeds in found["beside"].items():
            shares = [both / one for both, one in zip(speeds["beside"], speeds["alone"], strict=True)]
            console.print(f"{name}, the slower of two ÷ one alone: {statistics.median(shares):.2f} ({shares})")
        ours, fixed = (found["beside"][name]["alone"] for name in ("ours", "fixed"))
        shares = [one / other for one, other in zip(ours, fixed, strict=True)]
        console.print(f"alone, ours ÷ fixed threads: {statistics.median(shares):.3f} ({shares})")
    if config.probe:
        found["probe"] = probe_speed(config, device_context)
        console.print(f"probe: {found['probe']}")
    if config.out:
        write_json(config.out, found)


if __name__ == "__main__":
    run_job(Config, main, __doc__)
