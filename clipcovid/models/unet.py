"""Segmentation networks of segmentation-models-pytorch, by architecture, encoder and weights."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from clipcovid.config import UserError
from clipcovid.models import availability
from clipcovid.models.normalization import ImageNormalizer
from clipcovid.models.state_dicts import check_weights, error_reason, load_matching

STRIDE = 32  # of the encoders' last features: other sides are padded at the right and below, and cut again


class Segmenter(torch.nn.Module):
    """Logits (n, regions, size, size) of images of 0–255, (n, h, w) or (n, h, w, 3).

    The probabilities from which on pixels count as foreground, one a region, go with the weights.
    """

    thresholds: torch.Tensor

    def __init__(self, network: torch.nn.Module, normalizer: ImageNormalizer, regions: int) -> None:
        super().__init__()
        self.pixels, self.body = normalizer, network
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

    availability.check_smp_encoder_available(encoder, weights)
    timm_model = encoder.startswith("tu-")
    if not timm_model and encoder not in smp.encoders.encoders:
        close = ", ".join(sorted(name for name in smp.encoders.encoders if name[:4] == encoder[:4])[:4])
        raise UserError(
            f"--encoder {encoder!r} is not an encoder of segmentation-models-pytorch: use "
            f"{close or 'resnet18, efficientnet-b0'}, …, "
            "or tu- and the name of a timm model."
        )
    own: Any = (timm_model or "imagenet") if weights == "imagenet" else None
    try:
        state = None if weights in ("imagenet", "none") else _encoder_state(arch, encoder, Path(weights))
        torch.manual_seed(seed)
        body: Any = smp.create_model(arch, encoder, own, in_channels=channels, classes=regions)
        if state is not None:
            _load_encoder(body.encoder, state)
    except UserError:
        raise
    except Exception as error:  # the hub, pickle, torch and the decoders each raise their own kinds
        raise UserError(
            f"{arch} with the encoder {encoder} and the weights {weights!r} can't be had ({error_reason(error)}): give "
            "--weights a local file of this encoder or none, or another --encoder."
        ) from error
    check_weights(body.encoder.state_dict(), f"--weights {weights}")
    mean, std = (list(MEAN), list(STD)) if channels == 3 else ([sum(MEAN) / 3], [sum(STD) / 3])
    return Segmenter(
        body.to(memory_format=torch.channels_last), ImageNormalizer(mean, std, size, torch.float32), regions
    )


def _encoder_state(arch: str, encoder: str, path: Path) -> dict[str, torch.Tensor]:
    """A file's tensors under the names of the encoder for colour images, for which files are made."""
    import segmentation_models_pytorch as smp

    colour: Any = smp.create_model(arch, encoder, None, in_channels=3, classes=1).encoder
    return load_matching(path, colour.state_dict(), f"--encoder {encoder}", "--weights", allow_extra=True)


def _load_encoder(encoder: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load the tensors; a stem for gray images gets the colour stem's sum over its channels."""
    own = encoder.state_dict()
    for name, value in state.items():
        gray = value.shape != own[name].shape and own[name].shape[1] == 1
        own[name] = value.sum(dim=1, keepdim=True) if gray else value
    encoder.load_state_dict(own)
