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

from clipcovid.config import RESEARCH_ONLY, UserError
from clipcovid.data.images import BadImage, pixel_hash
from clipcovid.evaluate import plots
from clipcovid.evaluate.segmentation import UNTESTED
from clipcovid.identity import cascade_identity
from clipcovid.inference.cascade import CascadeConfig, Seen, cascade, read_image
from clipcovid.methods.checkpoints import read_checkpoint
from clipcovid.runs import finish_run, read_metrics, start_run


def main(config: CascadeConfig) -> None:
    """Look at what can be read, print and draw it, and end with status 2 where something could not."""
    images: dict[str, np.ndarray] = {}
    bad = {}
    for path in config.images:
        try:
            images[path] = read_image(path)
        except BadImage as error:
            bad[path] = str(error)
    if images:
        run = start_run(config, method="cascade", identity=_identity(config, images))
        seen = cascade(config, images)
        overlays = [draw(number, one, run.folder) for number, one in enumerate(seen)]
        finish_run(run)
        show(seen, overlays, config)
        for folder in config.segment:
            if UNTESTED in read_metrics(folder).get("test", {}).get("notes", []):
                print(f"note: the infections are those of {folder}. On its test images: {UNTESTED}", file=sys.stderr)
    if bad:
        raise UserError("; ".join(f"{path}: {reason}" for path, reason in bad.items()))


def _identity(config: CascadeConfig, images: dict[str, np.ndarray]) -> dict[str, Any]:
    runs = [read_checkpoint(run)[2] for run in (*config.segment, config.classify)]
    return cascade_identity(runs, config.keep, {name: pixel_hash(image) for name, image in images.items()})


def draw(number: int, one: Seen, out: Path) -> Path:
    """Write an image's overlay; its number keeps files of one name apart."""
    share = "" if one.infected_share is None else f", {one.infected_share:.0%} of the lungs infected"
    title = f"{one.label} ({one.probabilities[one.label]:.2f}){share}"
    figure = plots.outlines(one.pixels, one.masks, title=title)
    return plots.save({f"{number:03}-{Path(one.image).stem}": figure}, out)[0]


def show(seen: list[Seen], overlays: list[Path], config: CascadeConfig) -> None:
    """Print what was found in each image."""
    if config.json:
        found = [
            {"image": one.image, "label": one.label, "probabilities": one.probabilities}
            | {"infected_share": one.infected_share, "overlay": str(overlay)}
            for one, overlay in zip(seen, overlays, strict=True)
        ]
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("image", "class", *seen[0].probabilities, "infected share"):
        table.add_column(head, overflow="fold")
    for one in seen:
        share = "" if one.infected_share is None else f"{one.infected_share:.1%}"
        values = (f"{value:.3f}" for value in one.probabilities.values())
        table.add_row(escape(Path(one.image).name), escape(one.label), *values, share)
    console = Console()
    console.print(table)
    console.print(f"Overlays, in this order: {escape(str(overlays[0].parent))}")
    console.print(f"[dim]{RESEARCH_ONLY}[/]")
