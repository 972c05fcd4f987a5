"""Scores as tables on the terminal."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipcovid.config import RESEARCH_ONLY
from clipcovid.evaluate.captions import BASELINES

COMPARED = {
    "accuracy": "Acc",
    "macro_f1": "F1\n(macro)",
    "macro_precision": "Precision\n(macro)",
    "macro_recall": "Recall\n(macro)",
    "macro_auroc": "AUROC\n(macro)",
}
FOLDED = (
    *COMPARED,
    *("lung/iou", "lung/iou_pooled", "infection/iou", "infection/iou_pooled"),
    *("bleu_1", "bleu_4", "rouge_l", "meteor", "cider", "image_to_text/recall_10"),
)
PER_CLASS = ("precision", "recall", "specificity", "f1", "auroc", "auprc")


def print_scores(body: dict[str, Any], console: Console) -> None:
    """Print the body that `predictions.score` gives: all scores beside the baselines, the classes, alarms and notes."""
    if "regions" in body:
        console.print(_regions(body))
    elif "captions" in body:
        console.print(_captions(body))
    else:
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
            values, between = body["metrics"], _between(body["intervals"]["intervals"].get("macro_f1"))
            cells = (values["accuracy"], values["macro_f1"], between, values.get("macro_auroc"))
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
            cells.append(_mean([line[name] for line in drawn if name in line]))
        table.add_row(shots, str(len(drawn)), *cells)
    console.print(table)
    console.print(f"[dim]{RESEARCH_ONLY}[/]")


def print_folds(folds: list[dict[str, float]], console: Console) -> None:
    """Print each fold's test scores, and their mean ± standard deviation over the folds that have the score."""
    table = Table(title=f"{len(folds)} folds", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("fold")
    names = [name for name in FOLDED if any(name in values for values in folds)]
    for name in names:
        table.add_column(COMPARED.get(name, name.replace("/", "\n").replace("_", "\n")), justify="right")
    for number, values in enumerate(folds, 1):
        table.add_row(str(number), *(_number(values.get(name)) for name in names))
    columns = [[values[name] for values in folds if name in values] for name in names]
    between = "\n± " if console.width < 100 else " ± "
    table.add_row("mean ± sd", *(_mean(column).replace(" ± ", between) for column in columns))
    if any(len(column) < len(folds) for column in columns):
        table.add_row("of folds", *(str(len(column)) for column in columns))
    console.print(table)


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Print what `compare.compare` gives: the methods, the baselines beneath, and the differences to the best."""
    for title, heads, *sections in comparison_tables(comparison):
        table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
        table.add_column(heads[0], overflow="fold")
        for head in heads[1:]:
            table.add_column(head, justify="right", no_wrap=True)
        for rows in sections:
            for name, *cells in rows:
                if console.width < 100:
                    cells = [cell.replace(" (", "\n(") for cell in cells]
                table.add_row(escape(name), *cells)
            table.add_section()
        console.print(table)
    for note in comparison["notes"]:
        console.print(f"note: {escape(note)}")
    for alarm in comparison["alarms"]:
        console.print(f"[bold red]warning:[/] {escape(alarm)}")
    console.print(f"[dim]{RESEARCH_ONLY}[/]")


def comparison_markdown(comparison: dict[str, Any]) -> str:
    """What `print_comparison` prints, as Markdown."""
    lines = []
    for title, heads, *sections in comparison_tables(comparison):
        rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *(row for rows in sections for row in rows)]
        lines += [f"## {title}", ""]
        lines += [f"| {' | '.join(_markdown(cell) for cell in row)} |" for row in rows]
        lines.append("")
    lines += [f"- {note}" for note in comparison["notes"]]
    lines += [f"- **warning:** {alarm}" for alarm in comparison["alarms"]]
    return "\n".join([*lines, "", RESEARCH_ONLY, ""])


def comparison_tables(comparison: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]], list[list[str]]]]:
    """Title, heads, methods' rows and baselines' rows of the scores; then of the differences, if there are any."""
    bodies, baselines = comparison["methods"], comparison["baselines"]
    methods = [[name] for name in bodies]
    for key in COMPARED:
        intervals = [body["intervals"]["intervals"].get(key) for body in bodies.values()]
        narrow = any(interval and interval[1] - interval[0] < 0.01 for interval in intervals)
        for row, body, interval in zip(methods, bodies.values(), intervals, strict=True):
            row.append(_cell(body["metrics"].get(key), interval, 3 if narrow else 2))
    called = {"majority": f"majority ({baselines['majority']['class']})", "prior": "prior"}
    trivial = [[called[which], *(_cell(values.get(key)) for key in COMPARED)] for which, values in baselines.items()]
    title = f"{comparison['split']}: {comparison['n']:,} images, {len(comparison['classes'])} classes"
    tables = [(title, ["Method", *COMPARED.values()], methods, trivial)]
    if comparison["paired"]:
        heads = ["Method", COMPARED["macro_f1"], "Acc", "only best\nright", "only this\nright", "p", "p\n(Holm)"]
        rows = []
        for name, pair in comparison["paired"].items():
            gaps = (pair[key] for key in ("macro_f1", "accuracy"))
            cells = (_cell(gap["value"], (gap["low"], gap["high"]) if "low" in gap else None, 3) for gap in gaps)
            test = pair["mcnemar"]
            counts = (f"{test[which]:,}" for which in ("only_best", "only_this"))
            rows.append([name, *cells, *counts, *(_probability(test[which]) for which in ("p", "p_holm"))])
        tables.append((f"Minus {comparison['best']}", heads, rows, []))
    return tables


def _overview(body: dict[str, Any]) -> Table:
    intervals, baselines = body["intervals"], body["baselines"]
    known = baselines["majority"]["from"]
    table = Table(
        title=f"{body['n']:,} images, {len(body['classes'])} classes",
        caption=f"{_resampled(intervals)}; "
        f"baselines see no image and know the class shares of the {'train split' if known == 'train' else known}",
        padding=0,
        pad_edge=False,
        box=box.SIMPLE_HEAD,
    )
    table.add_column("metric", no_wrap=True)
    heads = (
        "value",
        f"{intervals['level']:.0%} interval",
        f"majority\n({escape(baselines['majority']['class'])})",
        "prior",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for name, value in body["metrics"].items():
        if "/" not in name:
            between = _between(intervals["intervals"].get(name))
            trivial = (_number(baselines[which].get(name)) for which in ("majority", "prior"))
            table.add_row(name, f"[bold]{_number(value)}[/]", between, *trivial)
    return table


def _regions(body: dict[str, Any]) -> Table:
    intervals = body["intervals"]
    table = Table(
        title=f"{body['n']:,} images",
        caption=f"{_resampled(intervals)}; distances in pixels of the masks; the infected share is of the lungs",
    )
    table.add_column("metric")
    for head in ("value", f"{intervals['level']:.0%} interval"):
        table.add_column(head, justify="right")
    for name, value in body["metrics"].items():
        shown = name.replace("severity/", "infected share, ").replace("_", " ").replace("/", " ")
        table.add_row(shown, f"[bold]{_number(value)}[/]", _between(intervals["intervals"].get(name)))
    return table


def _captions(body: dict[str, Any]) -> Table:
    intervals, baselines = body["intervals"], body["baselines"]
    said = "captions are written; the baselines' are the training split's"
    if BASELINES["hypothesis_own"] in baselines:
        said = "captions are the training split's, but in the last column this split's own, the truth among them"
    table = Table(
        title=f"{body['n']:,} images",
        caption=f"{_resampled(intervals)}; {said}",
        padding=0,
        pad_edge=False,
        box=box.SIMPLE_HEAD,
    )
    table.add_column("metric")
    for head in ("value", f"{intervals['level']:.0%} interval", *(name.replace(" ", "\n") for name in baselines)):
        table.add_column(head, justify="right")
    for name, value in body["metrics"].items():
        cells = [f"[bold]{_number(value)}[/]", _between(intervals["intervals"].get(name))]
        shown = name.replace("_", " ").replace("/", ", ")
        table.add_row(shown, *cells, *(_number(values.get(name)) for values in baselines.values()))
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


def _between(interval: Sequence[float] | None) -> str:
    """`0.700 – 0.850`, or nothing where there is no interval."""
    return f"{_number(interval[0])} – {_number(interval[1])}" if interval else ""


def _mean(values: Sequence[float]) -> str:
    """`0.812 ± 0.020`; without the deviation for a single value, nothing for none."""
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{_number(mean(values))}{deviation}" if values else ""


def _resampled(intervals: dict[str, Any]) -> str:
    """What was resampled, or why there are no intervals."""
    if intervals["units"] < 2:
        return f"no intervals, for all is of one {intervals['unit']}"
    return f"{intervals['level']:.0%} intervals by {intervals['unit']} ({intervals['units']:,})"


def _cell(value: float | None, interval: Sequence[float] | None = None, digits: int = 2) -> str:
    """`.913 (.89–.93)`, or `-.021 (-.035 to -.008)` where there are negative numbers."""
    if value is None:
        return ""
    if interval is None:
        return _short(value, 3)
    between = " to " if min(value, *interval) < 0 else "–"
    return f"{_short(value, 3)} ({between.join(_short(bound, digits) for bound in interval)})"


def _markdown(cell: str) -> str:
    return cell.replace("\n", " ").replace("|", "\\|")


def _short(value: float, digits: int) -> str:
    """A number without the zero before its point."""
    text = f"{round(value, digits) + 0.0:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _probability(p: float) -> str:
    return "<.001" if p < 0.001 else _short(p, 3)
