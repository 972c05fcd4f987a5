"""Low-rank adapters on open_clip models, through peft."""

from collections.abc import Sequence
from typing import Any, cast

import torch

from clipcovid.config import UserError, summarize_error


def add_adapters(model: torch.nn.Module, *, r: int, alpha: float, dropout: float, targets: Sequence[str]) -> Any:
    """Put adapters into `model`, in place; only they stay trainable. Gives peft's handle, for `merge_adapters`.

    A target that no module is called is a `UserError`.
    """
    from peft import LoraConfig, LoraModel

    for target in targets:
        if not any(name.split(".")[-1] == target for name, _ in model.named_modules()):
            kinds = {name.split(".")[-1] for name, inner in model.named_modules() if list(inner.parameters(False))}
            raise UserError(
                f"--lora.targets {target}: the model has no module of that name; it has {', '.join(sorted(kinds)[:20])}."
            )
    config = LoraConfig(
        r=r, lora_alpha=cast(Any, alpha), lora_dropout=dropout, target_modules=list(targets), use_rslora=True
    )
    try:
        return LoraModel(model, config, "default")
    except ValueError as error:  # a module of a kind that peft knows no adapter for
        raise UserError(f"--lora.targets {', '.join(targets)}: {summarize_error(error)}") from error


def merge_adapters(adapted: Any) -> torch.nn.Module:
    """The model with its adapters' updates added to its weights, and no trace of adapters."""
    merged: torch.nn.Module = adapted.merge_and_unload()
    return merged


def check_targets(model: torch.nn.Module, loss: torch.Tensor) -> None:
    """Raise `UserError` where an adapter gets no gradient from `loss`; gradients are cleared again.

    Attention's `out_proj` is one: PyTorch reads its weight without calling it, so an adapter on it would train nothing.
    """
    loss.backward()
    idle = {
        name.split(".lora_")[0].split(".")[-1]
        for name, weight in model.named_parameters()
        if "lora_B" in name and (weight.grad is None or not weight.grad.any())  # A's is zero while B is
    }
    model.zero_grad()
    if idle:
        raise UserError(
            f"--lora.targets {', '.join(sorted(idle))}: adapters there get no gradient and would train nothing; use attn, "
            "c_fc and c_proj."
        )
