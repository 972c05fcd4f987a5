"""The training loop: every task's, on one process or on many. No Ray and no MLflow here."""

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from clipcovid.config import TrainConfig, UserError
from clipcovid.data.augment import Augment
from clipcovid.distributed import all_gather_object, all_reduce_mean, broadcast, rank, world_size
from clipcovid.errors import TrainingStopped
from clipcovid.methods.task import Batch, Examples, Output, Predictor, Task
from clipcovid.randomness import stream_seed
from clipcovid.terminal import Countdown, fitted_line, format_duration
from clipcovid.training.batches import epoch_batches, iter_batches, split_microbatches
from clipcovid.training.checkpoint import TrainingCheckpoint, TrainingProgress, trainable_state
from clipcovid.training.optimizer import ExponentialMovingAverage, build_optimizer, set_lr
from clipcovid.training.threads import ThreadAdapter

Report = Callable[[dict[str, float]], None]
LOG_INTERVAL_S = 10.0  # seconds


@dataclass(frozen=True, kw_only=True)
class DeviceContext:
    """What a process computes on."""

    device: torch.device
    precision: str
    """`fp32`, or `bf16` for autocast."""
    batch_size: int = 64
    """Images in a forward pass without gradients."""

    def autocast(self) -> Any:
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def fit(
    task: Task[Any, Any],
    module: torch.nn.Module,
    train: Examples,
    val: Examples,
    *,
    config: TrainConfig,
    device_context: DeviceContext,
    checkpoint: TrainingCheckpoint,
    report: Report,
    log: Callable[[str], None] = print,
) -> TrainingProgress:
    """Train `module`, on `device_context.device`, from where `checkpoint` left off; it ends with the weights to keep.

    At each validation the state is written and `report` gets its metrics, on all processes. A loss or gradient that is not
    finite stops before the weights change, with the batch's images named.
    """
    assert config.optim.lr > 0, "the config is to be resolved before"
    assert config.optim.epochs > 0, "the config is to be sized before"
    optim, say = config.optim, log if rank() == 0 else _ignore_log
    optimizer, average = build_optimizer(module, optim), ExponentialMovingAverage(module, optim.ema)
    progress = checkpoint.restore(module, optimizer, average.weights)
    if progress.epoch:
        say(f"Going on after epoch {progress.epoch} of {optim.epochs}.")
    net = module
    if world_size() > 1:
        net = DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=optim.accumulate == 1)
    loop = TrainingLoop(task, net, module, train, config, device_context, optimizer, average, say)
    while progress.epoch < optim.epochs and not progress.stopped:
        metrics = loop.epoch(progress.epoch)
        progress.epoch += 1
        if progress.epoch % task.validate_every and progress.epoch < optim.epochs:
            continue
        with average.swapped_in(module):
            broadcast(module.buffers())  # each process's batch norms saw its own share
            outputs = predict(task.predictor(module.eval()), val, device_context, say)
            scores = task.validation_scores(val, outputs)
            metrics |= {f"val/{name}": value for name, value in scores.items()}
            improved = progress.update(scores[task.monitor[0]], task.monitor[1])
            if improved and rank() == 0:
                checkpoint.save_best(trainable_state(module))
        progress.stopped = bool(optim.patience) and progress.epochs_without_improvement >= optim.patience
        progress.history.append(metrics)
        if rank() == 0:
            checkpoint.save(module, optimizer, average.weights, progress)
        say(format_epoch(metrics, optim.epochs, task.monitor[0], improved))
        report(metrics)
    if progress.stopped:
        say(f"Stopped early: no better {task.monitor[0]} since epoch {progress.best_epoch}.")
    all_gather_object(None)  # what rank 0 wrote is there
    if optim.keep == "best":
        checkpoint.restore_best(module)
    else:
        average.copy_to(module)
    broadcast(module.buffers())
    module.eval()
    return progress


class StepCheck:
    """One step's stop flag, copied from the device in the background, with the loss and the rows of its batch."""

    def __init__(self, stopped: torch.Tensor, loss: torch.Tensor, rows: list[int]) -> None:
        self.flag, self.loss, self.rows = stopped.to("cpu", non_blocking=True, copy=True), loss, rows
        self.arrived = torch.cuda.current_stream(stopped.device).record_event() if stopped.is_cuda else None

    def stopped(self) -> bool:
        """Wait for the flag alone, not for what the device does after this step."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.flag)


class TrainingLoop:
    """What stays the same from epoch to epoch."""

    def __init__(
        self,
        task: Task[Any, Any],
        net: torch.nn.Module,
        module: torch.nn.Module,
        train: Examples,
        config: TrainConfig,
        device_context: DeviceContext,
        optimizer: torch.optim.Optimizer,
        average: ExponentialMovingAverage,
        log: Callable[[str], None],
    ) -> None:
        self.task, self.net, self.module, self.train = task, net, module, train
        self.config, self.device_context, self.optimizer, self.average, self.say = (
            config,
            device_context,
            optimizer,
            average,
            log,
        )
        self.augment = Augment(config.augment, config.seed)
        self.weights = [weight for weight in module.parameters() if weight.requires_grad]
        fixed = config.compute.threads or device_context.device.type != "cpu"
        self.threads = ThreadAdapter(1 if fixed else torch.get_num_threads())
        self.stopped = torch.zeros((), dtype=torch.bool, device=device_context.device)
        """Whether a loss or gradient was not finite: no later step changes the weights."""
        self.unchecked = deque[StepCheck]()
        self.said, self.began = time.time(), time.time()

    def epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training images; means over all of them, and how fast it was."""
        optim = self.config.optim
        if optim.batch_size % world_size():
            raise UserError(
                f"--optim.batch-size {optim.batch_size} can't be shared evenly among {world_size()} workers."
            )
        torch.manual_seed(stream_seed("dropout", self.config.seed, epoch, rank()))
        batch_indices = epoch_batches(len(self.train), optim.batch_size, self.config.seed, epoch, rank(), world_size())
        self.net.train()
        sums: dict[str, torch.Tensor] = {}
        started, seen, lr = time.time(), 0, 0.0
        for step, batch in enumerate(iter_batches(self.train, batch_indices, self.device_context.device)):
            total = epoch * len(batch_indices) + step
            lr = set_lr(self.optimizer, optim, total, optim.epochs * len(batch_indices))
            self.threads.adapt()
            scalars = self.step(batch, epoch)
            self.check_steps(pending=1 if self.device_context.device.type == "cuda" else 0)
            self.average.update(self.module, total)
            for name, value in scalars.items():
                sums[name] = sums[name] + value if name in sums else value
            seen += len(batch["row"]) * world_size()
            if time.time() - self.said > LOG_INTERVAL_S or total == 0:
                self.progress(
                    epoch, step + 1, len(batch_indices), float(scalars["loss"]), lr, seen / (time.time() - started)
                )
        self.check_steps()
        names = sorted(sums)
        means = all_reduce_mean(torch.stack([sums[name] for name in names]).float() / len(batch_indices)).tolist()
        seconds = time.time() - started
        metrics = {"epoch": float(epoch + 1), "lr": lr, "seconds": seconds, "images_per_s": seen / seconds}
        return metrics | {f"train/{name}": value for name, value in zip(names, means, strict=True)}

    def step(self, batch: Batch, epoch: int) -> dict[str, torch.Tensor]:
        """One step of the optimizer; the batch's scalars."""
        optim = self.config.optim
        if "image" in batch:
            batch["image"] = self.augment(batch["image"], epoch, batch["row"])
        if "masks" in batch:
            batch["masks"] = self.augment.transform_masks(batch["masks"], epoch, batch["row"])
        micro = split_microbatches(batch, optim.accumulate)
        totals: dict[str, torch.Tensor] = {}
        for number, part in enumerate(micro):
            last = number == len(micro) - 1
            with nullcontext() if last or world_size() == 1 else cast(Any, self.net).no_sync():
                with self.device_context.autocast():
                    scalars = self.task.loss(self.net, part)
                share = len(part["row"]) / len(batch["row"])
                (scalars["loss"] * share).backward()
                for name, value in scalars.items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() * share
        norm = torch.nn.utils.clip_grad_norm_(self.weights, optim.clip_norm or math.inf)
        # Gradients are shared, so all processes come to the same answer.
        self.stopped |= ~torch.isfinite(norm + totals["loss"])
        self.optimizer.found_inf = self.stopped.float()  # type: ignore[attr-defined]  # fused AdamW then changes nothing
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.unchecked.append(StepCheck(self.stopped, totals["loss"], batch["row"]))
        return totals

    def check_steps(self, pending: int = 0) -> None:
        """Raise `TrainingStopped` if a step was not finite, the last `pending` left out, so that no GPU runs out of work."""
        while len(self.unchecked) > pending:
            check = self.unchecked.popleft()
            if check.stopped():
                self.raise_nonfinite(check)

    def raise_nonfinite(self, check: "StepCheck") -> None:
        """Raise `TrainingStopped`, naming the images of the batches whose loss is not finite, or of all where it is."""
        ids = self.train.rows["image_id"].iloc[check.rows].tolist()
        reports = all_gather_object((bool(torch.isfinite(check.loss)), ids))
        bad_ids = [image for finite, images in reports if not finite for image in images]
        what = "The loss" if bad_ids else "The gradient"
        bad_ids = bad_ids or [image for _, images in reports for image in images]
        more = f" and {len(bad_ids) - 10} more" if len(bad_ids) > 10 else ""
        raise TrainingStopped(
            f"{what} is not finite: training stopped before the weights changed. The batch: {', '.join(bad_ids[:10])}{more}. "
            "Look at these images, or lower --optim.lr."
        )

    def progress(self, epoch: int, step: int, steps: int, loss: float, lr: float, speed: float) -> None:
        """Say where training is."""
        epochs, size = self.config.optim.epochs, len(self.train) / steps
        seconds_left = ((epochs - epoch) * steps - step) * size / speed
        self.said = time.time()
        position = [f"epoch {epoch + 1}/{epochs}", f"step {step}/{steps}", f"loss {loss:.4f}"]
        self.say(
            fitted_line(
                position, [f"{speed:.0f} img/s", f"lr {lr:.2e}"], last=[f"{format_duration(seconds_left)} left"]
            )
        )


def predict(
    predictor: Predictor, examples: Examples, device_context: DeviceContext, log: Callable[[str], None] | None = None
) -> np.ndarray:
    """Outputs (n, …) of all examples in their order, on every process: each predicts its share, none is lost.

    They are float32, or what arrays the predictor gives, at once or in a future. `log` hears how far it is.
    """
    share = np.arange(len(examples))[rank() :: world_size()]
    batch_indices = [
        share[start : start + device_context.batch_size] for start in range(0, len(share), device_context.batch_size)
    ]
    countdown, reported, results = Countdown("predicting · batch", len(batch_indices)), time.monotonic(), []
    with torch.no_grad(), device_context.autocast():
        for done, batch in enumerate(iter_batches(examples, batch_indices, device_context.device), 1):
            results.append(_array(predictor(batch)))
            if log and time.monotonic() - reported > LOG_INTERVAL_S:
                reported = time.monotonic()
                log(countdown.line(done))
    arrays = [result.result() if isinstance(result, Future) else result for result in results]
    shares = all_gather_object(np.concatenate(arrays) if arrays else None)
    first = next(array for array in shares if array is not None)
    outputs = np.empty((len(examples), *first.shape[1:]), first.dtype)
    for number, array in enumerate(shares):
        if array is not None:
            outputs[number :: world_size()] = array
    return outputs


def _array(output: Output) -> np.ndarray | Future[np.ndarray]:
    return output.float().cpu().numpy() if isinstance(output, torch.Tensor) else output


def format_epoch(metrics: dict[str, float], epochs: int, monitor: str, improved: bool) -> str:
    """An epoch's loss and monitored score, and what else the terminal is wide enough for; `history.json` has all of it."""
    texts = {name: f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith(("train/", "val/"))}
    first = [texts.pop(name) for name in ("train/loss", f"val/{monitor}") if name in texts]
    others = [texts[name] for name in sorted(texts, key=lambda name: not name.startswith("val/"))]
    last = [f"{metrics['images_per_s']:.0f} img/s", *["best"] * improved]
    return fitted_line([f"epoch {metrics['epoch']:.0f}/{epochs}", *first], others, last=last)


def _ignore_log(text: str) -> None:
    """Other processes than the first say nothing."""
