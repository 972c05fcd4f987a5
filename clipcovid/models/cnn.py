"""Image classifiers and feature extractors of timm, by name and weights."""

from pathlib import Path
from typing import Any

import torch

from clipcovid.config import UserError, first_line
from clipcovid.models.pixels import Pixels


class Network(torch.nn.Module):
    """A timm model that takes images of 0–255, (n, h, w) or (n, h, w, 3), and gives its head's outputs (n, k)."""

    def __init__(self, body: torch.nn.Module, pixels: Pixels) -> None:
        super().__init__()
        self.pixels, self.body = pixels, body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Outputs (n, k), without a softmax."""
        return self.body(self.pixels(images))


def build_cnn(
    arch: str, weights: str, *, outputs: int, channels: int, image_size: int, packed_size: int, seed: int
) -> Network:
    """The model with a fresh head of `outputs`. Random numbers follow from `seed`.

    `weights`: pretrained, a file, or none; what can't be loaded is a `UserError`. `channels`: 1 for gray images, whose
    stem is the colour stem's sum over its channels (timm's `adapt_input_conv`), or 3. `image_size`: the input's side, 0
    for that of the packed images, or for the only one that the architecture takes.
    """
    import timm

    defaults = timm_defaults(arch, weights)
    size = image_size or (defaults.input_size[1] if defaults and defaults.fixed_input_size else packed_size)
    settings: dict[str, Any] = {"in_chans": channels}
    if defaults and defaults.fixed_input_size and size != defaults.input_size[1]:
        settings["img_size"] = size
    if weights not in ("pretrained", "none"):
        settings["pretrained_cfg_overlay"] = {"file": weights}
    torch.manual_seed(seed)
    try:
        if "pretrained_cfg_overlay" in settings:
            head = timm.models.load_state_dict(weights)[f"{defaults.classifier if defaults else None}.weight"]
            settings["pretrained_cfg_overlay"]["num_classes"] = settings["num_classes"] = len(head)
        # With the head of the weights timm loads strictly; asked for another head, it passes over what is missing.
        body: Any = timm.create_model(arch, pretrained=weights != "none", **settings)
        body.reset_classifier(outputs)
    except Exception as error:  # the hub, pickle and torch each raise their own kinds
        raise UserError(
            f"The weights {weights!r} for {arch} can't be had ({first_line(error)}): give --weights a local file of this "
            "architecture, or none for random weights."
        ) from error
    mean, std = body.pretrained_cfg["mean"], body.pretrained_cfg["std"]
    if channels == 1:
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    return Network(body.to(memory_format=torch.channels_last), Pixels(mean, std, size, torch.float32))


def timm_defaults(arch: str, weights: str) -> Any:
    """What timm knows of an architecture (None where nothing); one that is none, and weights that can't be: `UserError`."""
    import timm

    if not timm.is_model(arch):
        close = ", ".join(timm.list_models(f"*{arch.split('_')[0]}*")[:4] or ["resnet18", "vit_base_patch16_224"])
        raise UserError(f"--arch {arch!r} is not a timm architecture: use {close}, …")
    defaults = timm.get_pretrained_cfg(arch)
    if weights not in ("pretrained", "none") and not Path(weights).is_file():
        raise UserError(f"--weights {weights}: no such file; or use pretrained or none.")
    if weights == "pretrained" and not (defaults and defaults.has_weights):
        raise UserError(f"{arch} has no published weights: give --weights a file, or none for random weights.")
    return defaults


def load_backbone(encoder: torch.nn.Module, path: str) -> None:
    """Load a classifier's weights (of timm or torchvision, say), or a whole segmenter's, without anything missing."""
    import timm

    state = timm.models.load_state_dict(path)
    if inner := {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}:
        state = inner
    own = encoder.state_dict()
    missing = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if missing:
        raise UserError(
            f"--weights {path} are not of this encoder: {len(missing)} of its {len(own)} tensors are missing or of another "
            f"shape, {missing[0]} for one."
        )
    encoder.load_state_dict({key: state[key] for key in own})
