"""Image files → masks of their lungs and infections → the class of what a mask leaves of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from clipcovid.config import ImagesConfig, UserError
from clipcovid.data.images import fit_image, fit_mask
from clipcovid.data.masked import MaskMode, mask_image
from clipcovid.inference.image_models import BATCH_SIZE, load_classifier, load_segmenter


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """The images, and the trained runs that predict them one after the other."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files or URIs."""
    segment: tuple[Path, ...]
    """Segmentation runs: one for both regions, or one for the lungs and maybe one for infections."""
    classify: Path
    """The run of an image classifier, best trained on a set of clipcovid apply-masks with the same --keep."""
    keep: MaskMode = "lungs"
    """What the classifier sees: lungs, infection, lungs-black, or crop, the box around the lungs."""
    out: Path = Path("outputs")
    """Where run folders are: the overlays, a PNG an image, go into one of their own."""
    name: str = ""
    """The run folder's name. Default: cascade and a hash of the images and the runs."""
    json: bool = False
    """Print JSON, and nothing else on stdout."""

    def __post_init__(self) -> None:
        if not self.images or not self.segment:
            raise UserError("Name at least one image, and at least one --segment run.")


@dataclass(frozen=True, kw_only=True)
class CascadeResult:
    """The masks and the class of one image."""

    image: str
    pixels: np.ndarray
    """As the file has them."""
    masks: dict[str, np.ndarray]
    """Region → bool, of the file's size."""
    probabilities: dict[str, float]
    """Class → 0–1."""
    infected_share: float | None
    """Of the lungs' pixels, 0–1; None where the lungs or the infection were not segmented, or no lungs were found."""

    @property
    def label(self) -> str:
        """The likeliest class."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])


def cascade(config: CascadeConfig, images: dict[str, np.ndarray]) -> list[CascadeResult]:
    """The results of images, uint8 (h, w) or (h, w, 3) by name, in their order: one forward pass of each model, in batches.

    A run of another kind, or one that lacks the region that `keep` needs, is a `UserError`.
    """
    segmenters = [load_segmenter(run) for run in config.segment]
    region = "infection" if config.keep == "infection" else "lung"
    if not any(region in segmenter.regions for segmenter in segmenters):
        raise UserError(f"--keep {config.keep} needs the {region}: give a --segment run that finds it.")
    classifier, results = load_classifier(config.classify), list[CascadeResult]()
    for names in _batches(list(images)):
        pixels = [images[name] for name in names]
        masks: list[dict[str, np.ndarray]] = [{} for _ in names]
        for segmenter in segmenters:
            for known, found in zip(masks, segmenter.masks(pixels), strict=True):
                known |= found
        size = classifier.images
        masked = [
            mask_image(fit_image(image, size), _fit(found[region], size), config.keep)
            for image, found in zip(pixels, masks, strict=True)
        ]
        for name, found, row in zip(names, masks, classifier.probabilities(masked), strict=True):
            results.append(
                CascadeResult(
                    image=name,
                    pixels=images[name],
                    masks=found,
                    probabilities=dict(zip(classifier.classes, row.tolist(), strict=True)),
                    infected_share=_infected_share(found),
                )
            )
    return results


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), BATCH_SIZE):
        yield names[start : start + BATCH_SIZE]


def _fit(mask: np.ndarray, size: ImagesConfig) -> np.ndarray:
    return fit_mask(mask.astype(np.uint8) * 255, (mask.shape[0], mask.shape[1]), size)


def _infected_share(masks: dict[str, np.ndarray]) -> float | None:
    lungs, infection = masks.get("lung"), masks.get("infection")
    if lungs is None or infection is None or not lungs.any():
        return None
    return float((infection & lungs).sum() / lungs.sum())
