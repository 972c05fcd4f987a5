"""From the stored pixels to a model's input, the same few lines for every model, and from its maps back to the frame."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts RGB to gray


class ImageNormalizer(torch.nn.Module):
    """Normalised input (n, 3 or 1, size, size), channels last in memory, from images (n, h, w) or (n, h, w, 3) of 0–255."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], size: int, dtype: torch.dtype) -> None:
        """`mean` and `std` in 0–1, one value a channel of the model; `size` is its side; `dtype` that of its input."""
        super().__init__()
        self.size, self.dtype = size, dtype
        spread = torch.tensor(list(std))
        self.register_buffer("scale", (1 / (255 * spread)).to(dtype), persistent=False)
        self.register_buffer("offset", (-torch.tensor(list(mean)) / spread).to(dtype), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Resize where the size differs (bicubic, antialiased, as uint8 would be rounded), normalise, match channels."""
        raw = images.unsqueeze(3) if images.ndim == 3 else images
        if raw.shape[3] == 3 and len(self.scale) == 1:
            raw = raw.float() @ torch.tensor(LUMINANCE, device=raw.device).unsqueeze(1)
        values = raw.to(self.dtype)
        if values.shape[1:3] != (self.size, self.size):
            resized = F.interpolate(raw.permute(0, 3, 1, 2).float(), size=self.size, mode="bicubic", antialias=True)
            values = resized.clamp_(0, 255).round_().to(self.dtype).permute(0, 2, 3, 1)
        # One fused pass, channels last, that also expands gray to three channels on the device: a third of the bytes.
        return torch.addcmul(self.offset, values, self.scale).permute(0, 3, 1, 2)


def undo_fit(maps: np.ndarray, shape: tuple[int, int], geometry: tuple[int, int, int, int]) -> np.ndarray:
    """Bring float32 (k, size, size) back to `shape`: (k, h, w), the frame before it was fitted.

    `geometry` is the frame's `resize_geometry`.

    Bilinear, antialiased where the frame is smaller, as Pillow resizes (several times as slowly); 0 where it was cut.
    """
    (across, down, left, top), size = geometry, maps.shape[1]
    right, bottom = across - left - size, down - top - size
    values = F.pad(torch.from_numpy(maps).unsqueeze(0), (left, right, top, bottom))  # a negative margin is cut off
    resized: np.ndarray = F.interpolate(values, size=shape, mode="bilinear", antialias=True)[0].numpy()
    return resized
