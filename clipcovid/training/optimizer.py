"""AdamW with a learning rate for each layer and name, its schedule, and the moving average of the weights."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clipcovid.config import OptimConfig, UserError
from clipcovid.training.checkpoint import trainable_state

BLOCK_PATTERN = re.compile(r"(?:resblocks|blocks|layers?|stages|features)\.?(?:[a-z]*)(\d+)")
STEM_PATTERN = re.compile(
    r"(?:^|\.)(?:conv1|bn1|stem|patch_embed|conv_stem|token_embedding|embeddings|class_embedding|cls_token|"
    r"positional_embedding|pos_embed|ln_pre|norm_pre)(?:\.|$)"
)


def layer_of(name: str) -> int | None:
    """A parameter's layer: 0 for embeddings and stems, 1 and up for blocks, None for what comes after all blocks."""
    if match := BLOCK_PATTERN.search(name):
        return int(match[1]) + 1
    return 0 if STEM_PATTERN.search(name) else None


def build_optimizer(module: torch.nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters, in groups of equal `scale` (of the learning rate) and decay.

    Layer-wise decay: lr · decay^(layers above), as in BEiT (Bao et al. 2022); each tower counts its own layers. An
    `lr_scale` that no parameter's name starts with is a `UserError`.
    """
    named = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    scales = dict(entry.partition("=")[::2] for entry in config.lr_scale)
    if unused := [start for start in scales if not any(_matches_prefix(name, start) for name, _ in named)]:
        tops = sorted({".".join(name.split(".")[:2]) for name, _ in named})
        raise UserError(
            f"--optim.lr-scale {unused[0]}: no trained parameter is called so; they start with {', '.join(tops)}."
        )
    towers: dict[str, int] = {}
    for name, _ in named:
        towers[_tower(name)] = max(towers.get(_tower(name), 0), layer_of(name) or 0)
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, weight in named:
        layer, top = layer_of(name), towers[_tower(name)] + 1
        scale = config.layer_decay ** (top - (top if layer is None else layer))
        fitting = [start for start in scales if _matches_prefix(name, start)]
        scale *= float(scales[max(fitting, key=len)]) if fitting else 1.0
        decay = config.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((scale, decay), []).append(weight)
    entries = [{"params": weights, "scale": scale, "weight_decay": decay} for (scale, decay), weights in groups.items()]
    return torch.optim.AdamW(entries, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def _matches_prefix(name: str, start: str) -> bool:
    """Whether a name starts with `start`, at its beginning or after the wrapper that all names share."""
    return name.startswith(start) or name.partition(".")[2].startswith(start)


def _tower(name: str) -> str:
    block = BLOCK_PATTERN.search(name) or STEM_PATTERN.search(name)
    return name[: block.start()] if block else name.rpartition(".")[0].partition(".")[0]


def set_lr(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps: int) -> float:
    """Set the learning rates of step `step` of `steps` (linear warm-up, then a cosine to zero); gives the peak group's."""
    warm = math.ceil(config.warmup * steps)
    share = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
    for group in optimizer.param_groups:
        group["lr"] = config.lr * share * group["scale"]
    return config.lr * share


class ExponentialMovingAverage:
    """The exponential moving average of what training changes (Polyak averaging); nothing where `decay` is 0."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.clone() for name, value in trainable_state(module).items()} if decay else {}

    def update(self, module: torch.nn.Module, step: int) -> None:
        """Take in the weights after step `step`; early on the average forgets faster, so that the start does not stay."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in trainable_state(module).items() if self.decay else ():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    @contextmanager
    def swapped_in(self, module: torch.nn.Module) -> Iterator[None]:
        """The module has the averaged weights inside, its own again afterwards."""
        weights = {name: value.clone() for name, value in trainable_state(module).items()} if self.decay else {}
        self.copy_to(module)
        try:
            yield
        finally:
            for name, value in trainable_state(module).items() if self.decay else ():
                value.copy_(weights[name])

    def copy_to(self, module: torch.nn.Module) -> None:
        """Give the module the averaged weights, where there are any."""
        for name, value in trainable_state(module).items() if self.decay else ():
            value.copy_(self.weights[name])
