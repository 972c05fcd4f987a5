"""Scores as tables on the terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipcovid.config import RESEARCH_ONLY

PER_CLASS = ("precision", "recall", "specificity", "f1", "auroc", "auprc")


def print_scores(body: dict[str, Any], console: Console) -> None:
    """Print the body that `predictions.score` gives: all scores beside the baselines, the classes, alarms and notes."""
    console.print(_overview(body))
    console.print(_per_class(body))
    for note in body["notes"]:
        console.print(f"note: {escape(note)}")
    for alarm in body["alarms"]:
        console.print(f"[bold red]warning:[/] {escape(alarm)}")
    console.print(f"[dim]{RESEARCH_ONLY}[/]")


def _overview(body: dict[str, Any]) -> Table:
    intervals, baselines = body["intervals"], body["baselines"]
    known = baselines["majority"]["from"]
    table = Table(
        title=f"{body['n']:,} images, {len(body['classes'])} classes",
        caption=f"{intervals['level']:.0%} intervals by {intervals['unit']} ({intervals['units']:,}); "
        f"baselines see no image and know the class shares of the {'train split' if known == 'train' else known}",
    )
    table.add_column("metric")
    heads = (
        "value",
        f"{intervals['level']:.0%} interval",
        f"majority ({escape(baselines['majority']['class'])})",
        "prior",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for name, value in body["metrics"].items():
        if "/" not in name:
            interval = intervals["intervals"].get(name)
            between = f"{_number(interval[0])} – {_number(interval[1])}" if interval else ""
            trivial = (_number(baselines[which].get(name)) for which in ("majority", "prior"))
            table.add_row(name, f"[bold]{_number(value)}[/]", between, *trivial)
    return table


def _per_class(body: dict[str, Any]) -> Table:
    shown = [name for name in PER_CLASS if any(key.startswith(f"{name}/") for key in body["metrics"])]
    table = Table(box=box.SIMPLE, padding=0, pad_edge=False)  # nine columns fit into 80 characters
    table.add_column("class", overflow="fold")
    for head in ("images", "predicted", *shown):
        table.add_column(head, justify="right")
    predicted = [sum(column) for column in zip(*body["confusion"], strict=True)]
    for row, (name, counts) in enumerate(zip(body["classes"], body["confusion"], strict=True)):
        values = (_number(body["metrics"].get(f"{metric}/{name}")) for metric in shown)
        table.add_row(escape(name), f"{sum(counts):,}", f"{predicted[row]:,}", *values)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{round(value, 3) + 0.0:.3f}"  # + 0.0 makes -0.0 a plain zero
