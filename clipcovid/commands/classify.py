"""Classify images of your own by words of your own.

    clipcovid classify scan.png --classes "a chest X-ray of pneumonia, a normal chest X-ray"
    clipcovid classify photos/*.jpg --classes "a dog, a cat, a bird" --top 2 --json

Zero-shot CLIP: each image's probability for each text.
"""

import csv
import dataclasses
import json
import re
import sys
from typing import Literal

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipcovid.config import RESEARCH_ONLY, ClipConfig, ImagesConfig, UserError
from clipcovid.data.images import fit_image
from clipcovid.inference.zeroshot import classify
from clipcovid.prompts import CLASSES, PHRASES, TEMPLATE
from clipcovid.ray_backend.resources import resolve_precision
from clipcovid.workflows.image_files import raise_errors, read_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """The images, and the texts to choose among."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files or URIs."""
    classes: str = ", ".join(TEMPLATE.replace("{}", PHRASES[name][0]) for name in CLASSES)
    """The texts to choose among, with commas between them; a text that holds a comma stands in double quotes."""
    top: int | None = None
    """How many of the likeliest texts to print. Default: all."""
    json: bool = False
    """Print JSON, and nothing else on stdout: a list of {image, probabilities}."""
    clip: ClipConfig = ClipConfig()
    """The encoder."""
    fit: Literal["squash", "crop", "pad"] = "crop"
    """How an image is brought to the encoder's square. crop: as CLIP was trained. Prepared data sets are squashed."""
    seed: int = 0
    """Seed of random weights."""

    def __post_init__(self) -> None:
        if not self.images:
            raise UserError("Name at least one image.")
        if len(self.texts) < 2 or len(set(self.texts)) < len(self.texts):
            raise UserError(f"--classes {self.classes!r} must be two or more different texts with commas between them.")
        if self.top is not None and self.top < 1:
            raise UserError(f"--top {self.top} must be at least 1.")

    @property
    def texts(self) -> list[str]:
        """The texts to choose among."""
        try:
            texts = next(csv.reader([re.sub(r'"\s+,', '",', self.classes)], skipinitialspace=True, strict=True), [])
        except csv.Error as error:
            raise UserError(
                f"--classes {self.classes!r} can't be read ({error}): quotes stand around a text."
            ) from None
        return [text.strip() for text in texts if text.strip()]


def main(config: ClassifyConfig) -> None:
    """Classify the images that can be read, print the results, and name the others in an error."""
    from clipcovid.models.clip import load_clip  # torch: `--help` does without
    from clipcovid.models.clip_model import default_device

    device = default_device()
    precision = resolve_precision(config.clip.precision, device)
    clip = load_clip(config.clip, seed=config.seed, device=device, precision=precision)
    if cut := clip.count_truncated(config.texts)["tokens"]:
        print(f"warning: {cut} tokens of the texts are beyond the model's context and are cut off.", file=sys.stderr)
    size = ImagesConfig(size=clip.image_size, mode="rgb", fit=config.fit)
    images, errors = read_images(config.images)
    if images:
        pixels = [fit_image(image, size) for image in images.values()]
        print_results(list(images), classify(clip, pixels, config.texts), config)
    raise_errors(errors)


def print_results(images: list[str], probabilities: np.ndarray, config: ClassifyConfig) -> None:
    """Print the likeliest texts of each image, the likeliest first."""
    ranked = [
        {config.texts[index]: float(row[index]) for index in np.argsort(-row, kind="stable")[: config.top]}
        for row in probabilities
    ]
    if config.json:
        records = [{"image": image, "probabilities": texts} for image, texts in zip(images, ranked, strict=True)]
        print(json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False))
        return
    table = Table("image", "text", box=box.SIMPLE_HEAD)
    table.add_column("probability", justify="right")
    for image, texts in zip(images, ranked, strict=True):
        for rank, (text, probability) in enumerate(texts.items()):
            table.add_row("" if rank else escape(image), escape(text), f"{probability:.4f}")
    console = Console()
    console.print(table)
    console.print(f"[dim]{RESEARCH_ONLY}[/]")
