"""Segmentation networks of segmentation-models-pytorch, by architecture, encoder and weights."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from clipcovid.config import UserError, first_line
from clipcovid.models.cnn import load_backbone
from clipcovid.models.pixels import Pixels

STRIDE = 32  # of the encoders' last features: other sides are padded at the right and below, and cut again


class Segmenter(torch.nn.Module):
    """Logits (n, regions, size, size) of images of 0–255, (n, h, w) or (n, h, w, 3).

    The probabilities from which on pixels count as foreground, one a region, go with the weights.
    """

    thresholds: torch.Tensor

    def __init__(self, body: torch.nn.Module, pixels: Pixels, regions: int) -> None:
        super().__init__()
        self.pixels, self.body = pixels, body
        self.register_buffer("thresholds", torch.full((regions,), 0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, without a sigmoid."""
        values = self.pixels(images)
        side = values.shape[-1]
        if more := -side % STRIDE:
            values = F.pad(values, (0, more, 0, more), mode="replicate").contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.body(values)
        return logits[..., :side, :side]


def build_segmenter(
    arch: str, encoder: str, weights: str, *, regions: int, channels: int, size: int, seed: int
) -> Segmenter:
    """The network with fresh decoder and head. Random numbers follow from `seed`.

    `weights` are the encoder's: imagenet, a file of them, or none; what can't be loaded is a `UserError`. `channels`: 1 for
    gray images, whose stem is the colour stem's sum over its channels, or 3. `size`: the input's side.
    """
    import segmentation_models_pytorch as smp
    from timm.data.constants import IMAGENET_DEFAULT_MEAN as MEAN
    from timm.data.constants import IMAGENET_DEFAULT_STD as STD

    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise UserError(f"--weights {weights}: no such file; or use imagenet or none.")
    timm_model = encoder.startswith("tu-")
    if not timm_model and encoder not in smp.encoders.encoders:
        close = ", ".join(sorted(name for name in smp.encoders.encoders if name[:4] == encoder[:4])[:4])
        raise UserError(
            f"--encoder {encoder!r} is none of segmentation-models-pytorch's: use {close or 'resnet18, efficientnet-b0'}, …, "
            "or tu- and the name of a timm model."
        )
    torch.manual_seed(seed)
    published: Any = (timm_model or "imagenet") if weights == "imagenet" else None
    try:
        # A file's stem is a colour one: the network is made for colour first, then its stem is summed for gray.
        made_for = channels if weights in ("imagenet", "none") else 3
        body: Any = smp.create_model(arch, encoder, published, in_channels=made_for, classes=regions)
        if weights not in ("imagenet", "none"):
            load_backbone(body.encoder, weights)
            body.encoder.set_in_channels(channels, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # the hub, pickle, torch and the decoders each raise their own kinds
        raise UserError(
            f"{arch} with the encoder {encoder} and the weights {weights!r} can't be had ({first_line(error)}): give "
            "--weights a local file of this encoder or none, or another --encoder."
        ) from error
    mean, std = (list(MEAN), list(STD)) if channels == 3 else ([sum(MEAN) / 3], [sum(STD) / 3])
    return Segmenter(body.to(memory_format=torch.channels_last), Pixels(mean, std, size, torch.float32), regions)
