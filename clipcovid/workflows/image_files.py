"""Image files that a command names: those that can be read are used, the others are an error in the end."""

from collections.abc import Mapping, Sequence

import numpy as np

from clipcovid.config import ImagesConfig, UserError
from clipcovid.data.images import BadImage, open_image


def read_images(paths: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Path → pixels, uint8 (h, w) or (h, w, 3), of the images that can be read; path → reason of the others."""
    images, errors = {}, {}
    for path in paths:
        try:
            images[path] = open_image(path, max_pixels=ImagesConfig().max_pixels)
        except BadImage as error:
            errors[path] = str(error)
    return images, errors


def raise_errors(errors: Mapping[str, str]) -> None:
    """Raise a `UserError` that names the images that could not be read, where there are any."""
    if errors:
        raise UserError("; ".join(f"{path}: {reason}" for path, reason in errors.items()))
