"""Find images or captions by words or by an image.

    clipcovid search --data data/medpix2 --run outputs/caption-resnet18 --text "axial CT of the chest"
    clipcovid search --data data/medpix2 --run outputs/caption-resnet18 --image scan.png --find captions
    clipcovid search --data data/quex --clip.pretrained openai --text pneumonia --where label=Normal split=test

Searches a prepared data set. Prints what each query finds with the cosine similarities, and writes a table and a contact
sheet into a run folder.
"""

from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipcovid.config import RESEARCH_ONLY
from clipcovid.data.manifest import read_manifest
from clipcovid.data.packed import PackedImages
from clipcovid.evaluate import plots
from clipcovid.inference.search import SearchConfig, SearchResult, make_search_identity, search
from clipcovid.io.files import atomic_write
from clipcovid.runs import finish_run, start_run

MAX_NAME_LENGTH = 40  # letters of an image's name in the table


def main(config: SearchConfig) -> None:
    """Search, print, and draw."""
    manifest = read_manifest(config.data)
    run = start_run(config, method="search", identity=make_search_identity(config, manifest))
    found, _ = search(config, manifest)
    packed, console = PackedImages(config.data, manifest), Console()
    for number, result in enumerate(found):
        console.print(results_table(result))
        images = packed.images(manifest.positions(result.table["image_id"]))
        texts = [f"{row['rank']}. {row['score']:.3f} {row['caption'] or row['label']}" for row in result_rows(result)]
        sheet = plots.contact_sheet_figure(images, texts, title=f"{config.find} for {result.query!r}")
        print(f"Contact sheet: {plots.save_figures({f'{number:02}-{config.find}': sheet}, run.folder)[0]}")
    table = pd.concat([result.table.assign(query=result.query) for result in found], ignore_index=True)
    path = run.folder / "found.csv"
    with atomic_write(path) as partial:
        table.to_csv(partial, index=False)
    finish_run(run)
    print(f"Table: {path}")
    console.print(f"[dim]{RESEARCH_ONLY}[/]")


def results_table(result: SearchResult) -> Table:
    """What a query found, for the terminal."""
    table = Table("", "cosine", "image", "class", "caption", title=escape(result.query), box=box.SIMPLE_HEAD)
    table.columns[2].overflow = "fold"
    for row in result_rows(result):
        name = row["image_id"]  # its end tells it from others
        texts = (
            name if len(name) <= MAX_NAME_LENGTH else f"…{name[1 - MAX_NAME_LENGTH :]}",
            row["label"],
            row["caption"][:100],
        )
        table.add_row(str(row["rank"]), f"{row['score']:.3f}", *map(escape, texts))
    return table


def result_rows(result: SearchResult) -> list[dict[str, Any]]:
    """What a query found, the best first."""
    return [{str(key): value for key, value in row.items()} for row in result.table.to_dict("records")]
