"""Prepare a data set: manifest, packed images, quarantine.

    clipcovid prepare --source phantom --out data/phantom
    clipcovid prepare --source covidquex --root COVID-QU-Ex --out data/quex
    clipcovid prepare --source table --root scans.csv --columns.path image --columns.label finding --out data/scans

Run again, it goes on where it stopped, or says that it is done.
"""

from rich import box
from rich.console import Console
from rich.table import Table

from clipcovid.data.prepare import PrepareConfig, PrepareResult, count_by_split, prepare, summarize_reasons


def main(config: PrepareConfig) -> None:
    """Prepare the data set, and print its contents."""
    print_preparation(prepare(config), config, Console(markup=False, emoji=False))  # names may look like markup


def print_preparation(prepared: PrepareResult, config: PrepareConfig, console: Console) -> None:
    """Print notes, images by class and split, patients, masks, captions, duplicates and the quarantine."""
    manifest, info = prepared.manifest, prepared.manifest.info
    for note in info.get("notes", []):
        console.print(f"note: {note}", soft_wrap=True)
    for warning in info.get("warnings", []):
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    counts = count_by_split(manifest).set_index("split")
    table = Table(title=f"{manifest.dataset}: {len(manifest.table)} images in {config.out}", box=box.SIMPLE_HEAD)
    for column in ("", *counts.index):
        table.add_column(column, justify="right" if column else "left")
    for name in counts:
        table.add_row(str(name), *map(str, counts[name]), end_section=name in manifest.classes[-1:])
    console.print(table)
    duplicates = info["duplicates"]
    console.print(
        f"Images with the pixels of another: {duplicates['within']} within a split, {duplicates['across']} across splits."
    )
    if merged := info["parts"]["merged"]:
        console.print(
            f"{merged} images of several parts were merged by content; {info['parts']['moved']} were in different splits "
            "and went to the stricter one."
        )
    for label, count in info["left_out"].items():
        console.print(f"Left out: {count} images labelled {label!r}, which is not among --classes.")
    quarantine = prepared.quarantine
    why = f" ({summarize_reasons(quarantine)}), see {config.out / 'quarantine.parquet'}" if len(quarantine) else ""
    console.print(f"Quarantined: {len(quarantine)}{why}.")
    if not prepared.created:
        console.print("Already prepared: nothing was left to do.")
