"""Segment X-rays, and classify what the masks leave.

    clipcovid cascade scan.png --segment outputs/segment --classify outputs/cnn-lungs
    clipcovid cascade scans/*.png --segment outputs/lung outputs/infection --classify outputs/cnn-lungs --json

For each image: the class, its probabilities, the infected share of the lungs, and an overlay PNG in a run folder.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipcovid.config import RESEARCH_ONLY
from clipcovid.data.images import pixel_hash
from clipcovid.evaluate import plots
from clipcovid.evaluate.segmentation import NO_NEGATIVES_NOTE
from clipcovid.identity import cascade_identity
from clipcovid.inference.cascade import CascadeConfig, CascadeResult, cascade
from clipcovid.methods.checkpoints import read_checkpoint
from clipcovid.runs import finish_run, read_metrics, start_run
from clipcovid.workflows.image_files import raise_errors, read_images


def main(config: CascadeConfig) -> None:
    """Segment and classify the images that can be read, print and draw the results, and name the others in an error."""
    images, errors = read_images(config.images)
    if images:
        run = start_run(config, method="cascade", identity=_identity(config, images))
        results = cascade(config, images)
        overlays = [write_overlay(number, result, run.folder) for number, result in enumerate(results)]
        finish_run(run)
        print_results(results, overlays, config)
        for folder in config.segment:
            if NO_NEGATIVES_NOTE in read_metrics(folder).get("test", {}).get("notes", []):
                print(
                    f"note: the infections are those of {folder}. On its test images: {NO_NEGATIVES_NOTE}",
                    file=sys.stderr,
                )
    raise_errors(errors)


def _identity(config: CascadeConfig, images: dict[str, np.ndarray]) -> dict[str, Any]:
    checkpoints = [read_checkpoint(run)[2] for run in (*config.segment, config.classify)]
    return cascade_identity(checkpoints, config.keep, {name: pixel_hash(image) for name, image in images.items()})


def write_overlay(number: int, result: CascadeResult, folder: Path) -> Path:
    """Write an image's overlay; `number` keeps images with the same file name apart."""
    share = "" if result.infected_share is None else f", {result.infected_share:.0%} of the lungs infected"
    title = f"{result.label} ({result.probabilities[result.label]:.2f}){share}"
    figure = plots.mask_outline_figure(result.pixels, result.masks, title=title)
    return plots.save_figures({f"{number:03}-{Path(result.image).stem}": figure}, folder)[0]


def print_results(results: list[CascadeResult], overlays: list[Path], config: CascadeConfig) -> None:
    """Print the class, the probabilities and the infected share of each image, as a table or as JSON."""
    if config.json:
        records = [
            {"image": result.image, "label": result.label, "probabilities": result.probabilities}
            | {"infected_share": result.infected_share, "overlay": str(overlay)}
            for result, overlay in zip(results, overlays, strict=True)
        ]
        print(json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("image", "class", *results[0].probabilities, "infected share"):
        table.add_column(heading, overflow="fold")
    for result in results:
        share = "" if result.infected_share is None else f"{result.infected_share:.1%}"
        values = (f"{value:.3f}" for value in result.probabilities.values())
        table.add_row(escape(Path(result.image).name), escape(result.label), *values, share)
    console = Console()
    console.print(table)
    console.print(f"Overlays, in this order: {escape(str(overlays[0].parent))}")
    console.print(f"[dim]{RESEARCH_ONLY}[/]")
