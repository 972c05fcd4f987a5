"""Images of a report, with the outlines of true and predicted masks."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup

from clipcovid.config import ImagesConfig
from clipcovid.data.images import fit_mask
from clipcovid.data.packed import PackedImages
from clipcovid.evaluate.examples import ExampleGroup, ExampleImage
from clipcovid.report.page import gallery_html, image_html

MASK_COLOURS = {"lung_mask": (0, 200, 255), "infection_mask": (0, 255, 0)}
PREDICTED_COLOUR = (255, 60, 60)
MAX_SIDE = 256  # pixels


def galleries(groups: Sequence[ExampleGroup], packed: PackedImages) -> tuple[Markup | str, ...]:
    """A gallery for each group, and what the outlines mean; a group without images is its title alone."""
    parts: list[Markup | str] = [
        gallery_html([_example_html(image, packed) for image in group.images], group.title)
        if group.images
        else f"{group.title}."
        for group in groups
    ]
    return (*_legend(groups, packed), *parts)


def _legend(groups: Sequence[ExampleGroup], packed: PackedImages) -> list[str]:
    kinds = [kind for kind in MASK_COLOURS if (packed.manifest.table[kind] != "").any()]
    names = {"lung_mask": "cyan: true lungs", "infection_mask": "green: true infection"}
    told = [names[kind] for kind in kinds]
    if any(image.masks for group in groups for image in group.images):
        told.append("red: predicted")
    return [f"Outlines: {', '.join(told)}."] if told else []


def _example_html(example: ExampleImage, packed: PackedImages) -> Markup:
    at = packed.manifest.positions(pd.Series([example.image_id]))
    pixels = packed.images(at)[0]
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    for kind, shade in MASK_COLOURS.items():
        mask = packed.masks(kind, at)[0]
        if mask is not None and (not example.masks or kind in example.masks):
            colour = _draw_outline(colour, mask > 0, shade)
    how = ImagesConfig(**packed.manifest.info["images"])
    for mask in example.masks.values():
        fitted = fit_mask(mask.astype(np.uint8) * 255, mask.shape, how)
        colour = _draw_outline(colour, fitted > 0, PREDICTED_COLOUR)
    caption = Markup("{}<br><small>{}</small>").format(example.caption, example.image_id)
    return image_html(colour, caption, max_side=MAX_SIDE)


def _draw_outline(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """A copy of an image (h, w, 3) with the inner border of a mask, bool (h, w), in a colour."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    drawn = image.copy()
    drawn[mask & ~inside] = colour
    return drawn
