"""Figures of external tests."""

import re

from matplotlib.figure import Figure

from clipcovid.evaluate.external_gap import gap_metrics
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.plots import axis_labels, new_panels
from clipcovid.evaluate.scores import Comparison, ExternalTest


def external_figures(comparison: Comparison) -> dict[str, Figure]:
    """`external_<data set>` of each scored external test: each method's scores on both sets, with the interval of the gap."""
    figures: dict[str, Figure] = {}
    for test in (test for test in comparison.external if test.methods):
        name = re.sub(r"\W+", "-", test.dataset)
        number = sum(key.startswith(f"external_{name}") for key in figures)
        figures[f"external_{name}{f'-{number + 1}' if number else ''}"] = _external_figure(comparison, test)
    return figures


def _external_figure(comparison: Comparison, test: ExternalTest) -> Figure:
    """A row a method, a panel a metric: a full point internal, a ring external, a bar the interval of their difference."""
    kind, names = get_kind(comparison.kind), list(test.gaps)
    metrics = gap_metrics(test, kind)
    title = f"Internal (●) and external (○) scores, 95% interval of the gap, {test.dataset} (n = {test.n:,})"
    figure, panels = new_panels(title, 1, max(1, len(metrics)), 9.5, 1.7 + 0.36 * len(names))
    panels[0].set_yticks(range(len(names)), axis_labels(names), fontsize=8)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    for axes, metric in zip(panels, metrics, strict=False):
        for row, gap in ((row, test.gaps[name][metric]) for row, name in enumerate(names) if metric in test.gaps[name]):
            if "low" in gap:
                bounds = [gap["internal"] + gap["low"], gap["internal"] + gap["high"]]
                axes.plot(bounds, [row, row], color="C1", linewidth=4, alpha=0.35, solid_capstyle="butt")
            axes.plot([gap["internal"], gap["external"]], [row, row], color="gray", linewidth=1)
            axes.plot(gap["internal"], row, "o", color="C0", markersize=6)
            axes.plot(gap["external"], row, "o", color="C1", markersize=6, markerfacecolor="white", markeredgewidth=1.5)
        axes.set_xlabel(kind.table_metrics[metric].replace("\n", " "))
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.08)
    return figure
