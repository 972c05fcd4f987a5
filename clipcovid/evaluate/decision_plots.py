"""Figures of decisions."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipcovid.evaluate.net_benefit import THRESHOLDS, NetBenefit
from clipcovid.evaluate.plots import axis_labels, line_colours, new_figure, new_panels
from clipcovid.evaluate.reliability import Reliability
from clipcovid.evaluate.selective import SelectivePrediction

MAX_COLUMNS = 4
PANEL_SIDE = 3.0  # inches


def reliability_figure(by_method: Mapping[str, tuple[Reliability, Reliability | None]], sample: str) -> Figure:
    """A panel a method, of (as predicted, scaled): the share of right predictions over the top probability, in bins."""
    figure, panels = _grid(f"Reliability of the most probable class, {sample}", len(by_method))
    for axes, name, kinds in zip(panels, axis_labels(list(by_method)), by_method.values(), strict=False):
        for kind, label, style in zip(kinds, ("as predicted", "temperature-scaled"), ("o--", "o-"), strict=True):
            if kind is not None:
                _bins(axes, kind.top_label, style, "C1" if label == "as predicted" else "C0", label)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("probability", fontsize=8)
    panels[0].set_ylabel("share right", fontsize=8)
    _legend(figure, panels[: len(by_method)])
    return figure


def class_reliability_figure(by_method: Mapping[str, Reliability], classes: Sequence[str], sample: str) -> Figure:
    """A panel a class, a line a method: the share of images of the class over its probability, in bins."""
    figure, panels = _grid(f"Reliability of each class's probability, {sample}", len(classes))
    for axes, name, label in zip(panels, classes, axis_labels(classes), strict=False):
        for (method, kind), colour in zip(by_method.items(), line_colours(len(by_method)), strict=True):
            _bins(axes, kind.classes[name], "o-", colour, axis_labels([method])[0])
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("probability", fontsize=8)
    panels[0].set_ylabel("share of the class", fontsize=8)
    _legend(figure, panels[: len(classes)])
    return figure


def risk_coverage_figure(by_method: Mapping[str, SelectivePrediction], sample: str) -> Figure:
    """A line a method: the error that is left when only the surest images are answered."""
    figure, axes = new_figure(f"Error of the surest images, {sample}", 8, 4.2)
    for (name, selective), colour in zip(by_method.items(), line_colours(len(by_method)), strict=True):
        coverage, error = np.array(selective.curve).T
        axes.plot(coverage, error, color=colour, label=f"{axis_labels([name])[0]}: AURC {selective.aurc.value:.3f}")
    axes.set(xlabel="coverage: share of images answered, the surest first", ylabel="error", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    _legend(figure, [axes])
    return figure


def decision_curves_figure(
    by_method: Mapping[str, Mapping[str, NetBenefit]], treat_all: Mapping[str, Sequence[float]], sample: str
) -> Figure:
    """A panel a class, a line a method, and those of treating all and none: net benefit over the threshold probability.

    `treat_all`: class → net benefit at `THRESHOLDS`.
    """
    figure, panels = _grid(f"Decision curves, one class against the rest, {sample}", len(treat_all), share_y=False)
    for axes, (name, everyone), label in zip(panels, treat_all.items(), axis_labels(list(treat_all)), strict=False):
        axes.plot(THRESHOLDS, everyone, color="black", linestyle="--", linewidth=1, label="treat all")
        axes.axhline(0, color="black", linestyle=":", linewidth=1, label="treat none")
        for (method, benefits), colour in zip(by_method.items(), line_colours(len(by_method)), strict=True):
            axes.plot(THRESHOLDS, benefits[name].curve, color=colour, linewidth=1.5, label=axis_labels([method])[0])
        best = max(max(everyone), *(max(benefits[name].curve) for benefits in by_method.values()), 0.01)
        axes.set(xlim=(0, 1), ylim=(-0.25 * best, 1.1 * best))
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("threshold probability", fontsize=8)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("net benefit", fontsize=8)
    _legend(figure, panels[: len(treat_all)])
    return figure


def _grid(title: str, count: int, *, share_y: bool = True) -> tuple[Figure, list[Axes]]:
    """Panels in rows of at most `MAX_COLUMNS`, those that are left over hidden."""
    columns = min(MAX_COLUMNS, count)
    rows = -(-count // columns)
    width, height = 2.2 + PANEL_SIDE * columns, 1 + PANEL_SIDE * rows
    figure, panels = new_panels(title, rows, columns, width, height, share_y=share_y)
    for axes in panels[:count]:
        axes.tick_params(labelsize=7)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels


def _bins(axes: Axes, bins: Sequence[Sequence[float]], style: str, colour: object, label: str) -> None:
    """The points of a reliability diagram beside the diagonal; the more images, the larger."""
    means, shares, counts = np.array(bins).T
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
    axes.plot(means, shares, style.strip("o"), color=colour, linewidth=1.2, label=label)
    axes.scatter(means, shares, s=4 + 60 * counts / counts.sum(), color=colour)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend of all panels, each label once."""
    lines = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize=8, frameon=False)
