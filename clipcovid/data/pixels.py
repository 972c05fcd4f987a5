"""Values to 8-bit pixels, and why a file can't be used: what every decoder shares."""

import numpy as np

STRETCHED_NOTE = "is scaled from its own darkest to its brightest value"
"""The note on an image of more than 8 bits, or a DICOM, whose file names no range of values."""


class BadImage(Exception):
    """A file that can't be used. Its text is the reason, one short sentence without anything of a DICOM's tags."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise `BadImage` for sides that are no image, or a bomb."""
    if width < 1 or height < 1:
        raise BadImage(f"declares no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise BadImage(f"declares {width}x{height} pixels, more than --max-pixels {max_pixels}")


def to_uint8(array: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Scale linearly so that `low` (default: the least value) becomes 0 and `high` 255; uint8 is left as it is."""
    if array.dtype == np.uint8 and low is None:
        return array
    if not np.isfinite(array).all():
        raise BadImage("holds NaN or infinite values")
    low, high = (float(array.min()), float(array.max())) if low is None or high is None else (low, high)
    if low == high:
        raise BadImage(f"constant: every pixel is {low:g}")
    scaled = (array.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8)
