"""Scores as tables on the terminal."""

from statistics import mean, stdev
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


def print_variants(metrics: dict[str, dict[str, Any]], split: str, console: Console) -> None:
    """Print a split's scores beside those of its variants (`<split>-<variant>` in metrics.json)."""
    table = Table(title=f"{split}: before and after", box=box.SIMPLE_HEAD)
    table.add_column("predictions")
    for head in ("accuracy", "macro F1", "95% interval", "macro AUROC"):
        table.add_column(head, justify="right")
    for name, body in sorted(metrics.items()):
        if name.partition("-")[0] == split:
            values, (low, high) = body["metrics"], body["intervals"]["intervals"]["macro_f1"]
            cells = (values["accuracy"], values["macro_f1"], f"{low:.3f} – {high:.3f}", values.get("macro_auroc"))
            variant = name.partition("-")[2] or "after"
            table.add_row(variant, *(cell if isinstance(cell, str) else _number(cell) for cell in cells))
    console.print(table)


def print_shots(scores: list[dict[str, Any]], console: Console) -> None:
    """Print scores (`shots` and metrics, a draw each) as mean ± standard deviation over the draws."""
    table = Table(title="Test scores by training images a class", box=box.SIMPLE_HEAD)
    for head in ("shots", "draws", "accuracy", "macro F1", "macro AUROC"):
        table.add_column(head, justify="right")
    for shots in dict.fromkeys(line["shots"] for line in scores):
        drawn = [line for line in scores if line["shots"] == shots]
        cells = []
        for name in ("accuracy", "macro_f1", "macro_auroc"):
            values = [line[name] for line in drawn if name in line]
            deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{_number(mean(values))}{deviation}" if values else "")
        table.add_row(shots, str(len(drawn)), *cells)
    console.print(table)
    console.print(f"[dim]{RESEARCH_ONLY}[/]")


def print_folds(folds: list[dict[str, float]], console: Console) -> None:
    """Print each fold's test scores, and their mean ± standard deviation."""
    table = Table(title=f"{len(folds)} folds", box=box.SIMPLE_HEAD)
    table.add_column("fold")
    names = [
        name for name in ("accuracy", "macro_f1", "macro_precision", "macro_recall", "macro_auroc") if name in folds[0]
    ]
    for name in names:
        table.add_column(name, justify="right")
    for number, values in enumerate(folds, 1):
        table.add_row(str(number), *(_number(values.get(name)) for name in names))
    columns = [[values[name] for values in folds if name in values] for name in names]
    table.add_row("mean ± sd", *(f"{mean(column):.3f} ± {stdev(column):.3f}" for column in columns))
    console.print(table)


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
