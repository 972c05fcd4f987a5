"""From the stored pixels to a model's input, the same few lines for every model, and from its maps back to the frame."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from clipcovid.config import ImagesConfig

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts RGB to gray


class Pixels(torch.nn.Module):
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


def unfit(maps: np.ndarray, shape: tuple[int, int], config: ImagesConfig) -> np.ndarray:
    """Bring float32 (k, size, size) back to `shape`: (k, h, w), the frame that `fit_image` fitted.

    Bilinear, antialiased where the frame is smaller, as Pillow resizes (several times as slowly); 0 where it was cut.
    """
    (height, width), (count, size) = shape, maps.shape[:2]
    short, long = min(height, width), max(height, width)
    if config.fit == "crop":
        across, down = (size, int(size * long / short)) if width <= height else (int(size * long / short), size)
        frames = np.zeros((count, down, across), np.float32)
        left, top = round((across - size) / 2), round((down - size) / 2)
        frames[:, top : top + size, left : left + size] = maps
        maps = frames
    elif config.fit == "pad":
        across, down = max(1, round(size * width / long)), max(1, round(size * height / long))
        left, top = (size - across) // 2, (size - down) // 2
        maps = maps[:, top : top + down, left : left + across]
    values = torch.from_numpy(np.ascontiguousarray(maps, np.float32)).unsqueeze(0)
    resized: np.ndarray = F.interpolate(values, size=shape, mode="bilinear", antialias=True)[0].numpy()
    return resized
