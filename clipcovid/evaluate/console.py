"""Scores as tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipcovid.config import RESEARCH_ONLY
from clipcovid.evaluate.comparison_tables import comparison_tables, headline_tables
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.number_format import format_interval, format_mean_std, format_number
from clipcovid.evaluate.scores import Comparison, Scores


def print_scores(scores: Scores, console: Console) -> None:
    """Print all scores beside the baselines, then notes and alarms."""
    for table in get_kind(scores.kind).tables(scores):
        console.print(table.rich(console.width))
    print_remarks(scores.notes, scores.alarms, console)


def print_remarks(notes: Sequence[str], alarms: Sequence[str], console: Console) -> None:
    """Print notes and alarms, and what all of this is for."""
    for note in notes:
        console.print(f"note: {escape(note)}")
    for alarm in alarms:
        console.print(f"[bold red]warning:[/] {escape(alarm)}")
    console.print(f"[dim]{RESEARCH_ONLY}[/]")


def print_variants(scores: Mapping[str, Scores], split: str, console: Console) -> None:
    """Print a split's scores beside those of its variants (`<split>-<variant>` in metrics.json)."""
    table = Table(title=f"{split}: before and after", box=box.SIMPLE_HEAD)
    table.add_column("predictions")
    for head in ("accuracy", "macro F1", "95% interval", "macro AUROC"):
        table.add_column(head, justify="right")
    for name, entry in sorted(scores.items()):
        if name.partition("-")[0] == split:
            metrics, bounds = entry.metrics, format_interval(entry.intervals["intervals"].get("macro_f1"))
            values = (
                format_number(metrics["accuracy"]),
                format_number(metrics["macro_f1"]),
                bounds,
                format_number(metrics.get("macro_auroc")),
            )
            table.add_row(name.partition("-")[2] or "after", *values)
    console.print(table)


def print_shots(scores: list[dict[str, Any]], console: Console) -> None:
    """Print scores (`shots` and metrics, a draw each) as mean ± standard deviation over the draws."""
    table = Table(title="Test scores by training images a class", box=box.SIMPLE_HEAD)
    for head in ("shots", "draws", "accuracy", "macro F1", "macro AUROC"):
        table.add_column(head, justify="right")
    for shots in dict.fromkeys(line["shots"] for line in scores):
        draws = [line for line in scores if line["shots"] == shots]
        cells = []
        for name in ("accuracy", "macro_f1", "macro_auroc"):
            cells.append(format_mean_std([line[name] for line in draws if name in line]))
        table.add_row(shots, str(len(draws)), *cells)
    console.print(table)
    console.print(f"[dim]{RESEARCH_ONLY}[/]")


def print_folds(kind: str, folds: Sequence[Mapping[str, float]], console: Console) -> None:
    """Print each fold's test metrics, and their mean ± standard deviation over the folds that have the metric.

    `kind`: the name of the kind of predictions, which says what metrics are shown.
    """
    table = Table(title=f"{len(folds)} folds", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("fold")
    heads = get_kind(kind).fold_metrics(folds)
    for head in heads.values():
        table.add_column(head, justify="right")
    for row, metrics in enumerate(folds, 1):
        table.add_row(str(row), *(format_number(metrics.get(name)) for name in heads))
    columns = [[metrics[name] for metrics in folds if name in metrics] for name in heads]
    between = "\n± " if console.width < 100 else " ± "
    table.add_row("mean ± sd", *(format_mean_std(column).replace(" ± ", between) for column in columns))
    if any(len(column) < len(folds) for column in columns):
        table.add_row("of folds", *(str(len(column)) for column in columns))
    console.print(table)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print what `compare.compare` gives: the methods, the baselines beneath, differences to the best, and seeds."""
    tables = headline_tables(comparison)
    for table in tables:
        console.print(table.rich(console.width))
    more = len(comparison_tables(comparison)) - len(tables)
    if more:
        console.print(f"{more} more tables (classes, pairs, groups, images, decisions) are in comparison.md.")
    print_remarks(comparison.notes, comparison.alarms, console)
