"""Image classifiers and feature extractors of timm, by name and weights."""

import sys
from pathlib import Path
from typing import Any

import torch

from clipcovid.config import UserError
from clipcovid.models import availability
from clipcovid.models.normalization import ImageNormalizer
from clipcovid.models.state_dicts import State, check_weights, error_reason, load_matching


class TimmClassifier(torch.nn.Module):
    """A timm model that takes images of 0–255, (n, h, w) or (n, h, w, 3), and gives its head's outputs (n, k)."""

    def __init__(self, backbone: torch.nn.Module, normalizer: ImageNormalizer) -> None:
        super().__init__()
        self.pixels, self.body = normalizer, backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Outputs (n, k), without a softmax."""
        return self.body(self.pixels(images))


def build_cnn(
    arch: str, weights: str, *, outputs: int, channels: int, image_size: int, packed_size: int, seed: int
) -> TimmClassifier:
    """The model with a fresh head of `outputs`. Random numbers follow from `seed`.

    `weights`: pretrained, a file, or none; what can't be loaded is a `UserError`. `channels`: 1 for gray images, whose
    stem is the colour stem's sum over its channels (timm's `adapt_input_conv`), or 3. `image_size`: the input's side, 0
    for that of the packed images, or for the only one that the architecture takes.
    """
    import timm

    availability.check_timm_available(arch, weights)
    defaults = timm_input_defaults(arch, weights)
    size = image_size or (defaults.input_size[1] if defaults and defaults.fixed_input_size else packed_size)
    settings: dict[str, Any] = {"in_chans": channels}
    if defaults and defaults.fixed_input_size and size != defaults.input_size[1]:
        settings["img_size"] = size
    torch.manual_seed(seed)
    try:
        body: Any = timm.create_model(arch, pretrained=weights == "pretrained", **settings)
        if weights not in ("pretrained", "none"):
            load_backbone(body, arch, weights, channels=channels)
        body.reset_classifier(outputs)
    except UserError:
        raise
    except Exception as error:  # the hub, pickle and torch each raise their own kinds
        raise UserError(
            f"The weights {weights!r} for {arch} can't be had ({error_reason(error)}): give --weights a local file of this "
            "architecture, or none for random weights."
        ) from error
    check_weights(body.state_dict(), f"--weights {weights}")
    mean, std = body.pretrained_cfg["mean"], body.pretrained_cfg["std"]
    if channels == 1:
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    return TimmClassifier(body.to(memory_format=torch.channels_last), ImageNormalizer(mean, std, size, torch.float32))


def timm_input_defaults(arch: str, weights: str) -> Any:
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


def load_backbone(body: Any, arch: str, path: str, *, channels: int = 3) -> None:
    """Load a classifier's file into a timm model of the architecture `arch`, whatever head it was trained with.

    A colour stem is summed where the model has one of its `channels`, and places are interpolated where it has another
    input size, as timm does with its own weights. Whatever else differs is a `UserError`.
    """
    from timm.models import load_pretrained

    rename = getattr(sys.modules[type(_build_timm(arch)).__module__], "checkpoint_filter_fn", None)
    state, stem = _classifier_state(arch, Path(path), channels, rename)
    pretrained_cfg = body.pretrained_cfg | {"state_dict": state, "num_classes": -1}  # no head: the model's own stays
    pretrained_cfg["input_size"] = (stem, *body.pretrained_cfg["input_size"][1:])  # else timm warns of a gray stem
    load_pretrained(body, pretrained_cfg, in_chans=channels, filter_fn=rename, strict=False)


def _classifier_state(arch: str, path: Path, channels: int, rename: Any) -> tuple[State, int]:
    """The file's tensors but for its head, and the channels of its stem: 3, or as many as are asked for."""
    refused: list[UserError] = []
    for stem in dict.fromkeys((3, channels)):
        plain = _build_timm(arch, in_chans=stem)
        heads = (
            [plain.get_classifier()] if isinstance(plain.get_classifier(), torch.nn.Module) else plain.get_classifier()
        )
        ends = tuple(
            f"{name}." for name, inner in plain.named_modules() if name and any(inner is head for head in heads)
        )
        model_state = {name: value for name, value in plain.state_dict().items() if not name.startswith(ends)}
        convert = (lambda state, plain=plain: rename(dict(state), plain)) if rename else None
        try:
            return load_matching(path, model_state, arch, "--weights", allow_extra=True, convert=convert), stem
        except UserError as error:
            refused.append(error)
    raise refused[0]


def _build_timm(arch: str, **settings: Any) -> Any:
    """The classifier as timm publishes its weights, without memory for them where that can be."""
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(arch, **settings)
    except (RuntimeError, NotImplementedError):  # some architectures compute with their weights as they are built
        return timm.create_model(arch, **settings)
