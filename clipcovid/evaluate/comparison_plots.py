"""Figures of a comparison of methods."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipcovid.evaluate.number_format import format_short, gap_bounds
from clipcovid.evaluate.plots import SLANTED_LABELS, axis_labels, line_colours, new_panels, sample_title, text_width
from clipcovid.evaluate.scores import Comparison

VERDICT_MARKS = {"better": "*", "worse": "*", "equivalent": "="}


def scores_figure(comparison: Comparison, labels: Mapping[str, str]) -> Figure:
    """The metrics of `labels` (metric → axis label) of each method with intervals, and the baselines as dotted lines."""
    intervals = comparison.methods[comparison.best].intervals
    title = f"Scores, {intervals['level']:.0%} intervals by {intervals['unit']}, {_sample(comparison)}"
    figure, panels = _rows(title, list(comparison.methods), len(labels), 9.5)
    for axes, (metric, label) in zip(panels, labels.items(), strict=True):
        _points(
            axes,
            [
                (scores.metrics[metric], scores.intervals["intervals"].get(metric))
                for scores in comparison.methods.values()
            ],
            label,
        )
        for number, (name, values) in enumerate(comparison.baselines.items(), 1):
            if metric in values:
                axes.axvline(values[metric], color=f"C{number}", linestyle=":", linewidth=1.8, label=name)
    handles, names = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def differences_figure(comparison: Comparison, labels: Mapping[str, str]) -> Figure:
    """The metrics of `labels` of each method minus those of the best, with their paired intervals."""
    title = f"Difference to {comparison.best}, paired intervals, {_sample(comparison)}"
    figure, panels = _rows(title, list(comparison.paired_differences), len(labels), 8.5)
    for axes, (metric, label) in zip(panels, labels.items(), strict=True):
        gaps = [gaps[metric] for gaps in comparison.paired_differences.values()]
        _points(axes, [(gap["value"], gap_bounds(gap)) for gap in gaps], label)
        axes.axvline(0, color="black", linewidth=1)
    return figure


def pairs_figure(comparison: Comparison, label: str) -> Figure:
    """All pairs: the row's ranking metric, called `label`, minus the column's; marked where the pair is told apart."""
    names, metric = list(comparison.methods), comparison.judged_by
    k, room = len(names), 0.08 * min(40, max(map(text_width, names)))  # inches that a name takes
    title = f"{label}: row minus column, {_sample(comparison)}. * 95% interval without 0, = equivalent"
    figure, panels = new_panels(title, 1, 1, 1.2 + room + 0.62 * k, 1.2 + room + 0.42 * k)
    axes = panels[0]
    values, marks = np.full((k, k), np.nan), np.full((k, k), "", object)
    for pair in comparison.pairs:
        row, column = names.index(pair.first), names.index(pair.second)
        value = pair.differences.get(metric, {}).get("value", np.nan)
        values[row, column], values[column, row] = value, -value
        marks[row, column] = marks[column, row] = VERDICT_MARKS.get(pair.verdict, "")
    most = float(np.nanmax(np.abs(values), initial=1e-9))
    axes.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for row, column in np.argwhere(~np.isnan(values)):
        colour = "white" if abs(values[row, column]) > 0.7 * most else "black"
        text = f"{format_short(float(values[row, column]), 3)}{marks[row, column]}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(k), axis_labels(names), fontsize=8, rotation=90)
    axes.set_yticks(range(k), axis_labels(names), fontsize=8)
    return figure


def groups_figure(comparison: Comparison, column: str, label: str) -> Figure:
    """The ranking metric, called `label`, of each group of a column with its interval: a row a group, a colour a method."""
    groups = [group for group in comparison.subgroups if group.column == column]
    methods, metric = list(comparison.methods), comparison.judged_by
    heads = [[f"{group.name} (n = {group.images:,})", group.left_out] for group in groups]
    names = ["\n".join(axis_labels([text for text in head if text])) for head in heads]
    height = 0.35 + 0.11 * len(methods)  # inches of a group
    title = f"{label} by {column}, {_sample(comparison)}"
    figure, panels = new_panels(title, 1, 1, 9.5, 1.6 + height * len(groups))
    axes = panels[0]
    for number, (method, colour) in enumerate(zip(methods, line_colours(len(methods)), strict=True)):
        offset = 0.7 * ((number + 0.5) / len(methods) - 0.5)
        shown = {
            row + offset: group.scores[method][metric]
            for row, group in enumerate(groups)
            if metric in group.scores.get(method, {})
        }
        for at, score in shown.items():
            axes.plot([score.get(end, np.nan) for end in ("low", "high")], [at, at], color=colour, linewidth=1.5)
        values = [score["value"] for score in shown.values()]
        axes.plot(values, list(shown), "o", color=colour, markersize=4, label=axis_labels([method])[0])
    axes.set_yticks(range(len(groups)), names, fontsize=8)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def per_class_figure(comparison: Comparison) -> Figure:
    """F1 and AUROC of each class, a row a method; blank where undefined."""
    methods, classes = comparison.methods, comparison.classes
    title, width = f"Scores of each class, {_sample(comparison)}", 3.5 + 0.9 * len(classes)
    figure, panels = _rows(title, list(methods), 2, width, margin=0.9)
    for axes, (key, label) in zip(panels, {"f1": "F1", "auroc": "AUROC"}.items(), strict=True):
        rows = [[scores.metrics.get(f"{key}/{name}", np.nan) for name in classes] for scores in methods.values()]
        values = np.array(rows, dtype=np.float64)
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in np.argwhere(~np.isnan(values)):
            colour = "white" if values[row, column] > 0.6 else "black"
            text = f"{values[row, column]:.2f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(classes)), axis_labels(classes), fontsize=8, **SLANTED_LABELS)
        axes.set_xlabel(label)
    return figure


def confusions_figure(comparison: Comparison, confusions: Mapping[str, Sequence[Sequence[int]]]) -> Figure:
    """Each method's confusion matrix (k, k) as shares of the true class, in percent where classes are few enough to read."""
    names = axis_labels(comparison.classes)
    k, rows = len(names), -(-len(confusions) // 4)
    columns = -(-len(confusions) // rows)
    side = max(1.8, (0.19 + 0.12 * max(name.count("\n") for name in names)) * k)
    room = 0.07 * max(map(text_width, "\n".join(names).split("\n")))  # inches that a name takes
    title = f"Confusion matrices, {'%' if k <= 6 else 'share'} of the true class, {_sample(comparison)}"
    width, height = 1 + room + columns * (side + 0.15), 1.2 + room + rows * (side + 0.45)
    figure, panels = new_panels(title, rows, columns, width, height, share_x=True)
    for axes in panels[len(confusions) :]:
        axes.set_visible(False)
    for number, (axes, (name, confusion)) in enumerate(zip(panels, confusions.items(), strict=False)):
        counts = np.array(confusion)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(k, k) if k <= 6 else ():
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{100 * shares[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set_title(axis_labels([name])[0], fontsize=8)
        axes.set_xticks(range(k), names, fontsize=7, rotation=90)
        axes.set_yticks(range(k), names, fontsize=7)
        axes.tick_params(labelbottom=number + columns >= len(confusions))
    figure.supylabel("true", fontsize=9)
    panels[len(confusions) - 1].set_xlabel("predicted", fontsize=9)
    return figure


def _rows(title: str, names: Sequence[str], count: int, width: float, margin: float = 0) -> tuple[Figure, list[Axes]]:
    """`count` panels side by side with a row for each name, the first on top; `margin`: more inches of room below."""
    figure, panels = new_panels(title, 1, count, width, 1.6 + margin + 0.36 * len(names))
    panels[0].set_yticks(range(len(names)), axis_labels(names), fontsize=8)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure, panels


def _points(axes: Axes, values: Sequence[tuple[float, Sequence[float] | None]], label: str) -> None:
    """A row for each value, with its interval where there is one."""
    for row, (value, interval) in enumerate(values):
        if interval is not None:
            axes.plot(interval, [row, row], color="C0", linewidth=2)
        axes.plot(value, row, "o", color="C0", markersize=5)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(label)


def _sample(comparison: Comparison) -> str:
    return sample_title(comparison.n, comparison.split)
