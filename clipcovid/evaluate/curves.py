"""ROC and precision–recall curves of several methods: a panel a class, a line a method."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipcovid.evaluate.plots import axis_labels, line_colours, new_panels, sample_title

MAX_PANELS = 9  # classes drawn: the most frequent
MAX_POINTS = 400  # of a line, so that 12 methods on 34,000 images draw in little room
Curve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From the truth (n,) bool and scores (n,) to x and y, (m,) each."""


def roc_curves_figure(
    truth: np.ndarray, probabilities: Mapping[str, np.ndarray], classes: Sequence[str], *, split: str
) -> Figure:
    """ROC, one class against the rest. `truth` (n,): the class's index; `probabilities`: method → (n, k)."""

    def curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.metrics import roc_curve

        false_rate, true_rate, _ = roc_curve(positive, scores)
        return false_rate, true_rate

    def chance(axes: Axes, share: float) -> None:
        axes.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1.2)

    axis_names = ("1 − specificity", "sensitivity")
    return _curves_figure("ROC", curve, chance, axis_names, "default", truth, probabilities, classes, split)


def precision_recall_figure(
    truth: np.ndarray, probabilities: Mapping[str, np.ndarray], classes: Sequence[str], *, split: str
) -> Figure:
    """Precision over recall, one class against the rest; dotted: the class's share. Arguments as in `roc_curves_figure`."""

    def curve(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.metrics import precision_recall_curve

        precision, recall, _ = precision_recall_curve(positive, scores)
        return recall, precision

    def chance(axes: Axes, share: float) -> None:
        axes.axhline(share, color="gray", linestyle=":", linewidth=1.2)

    names, style = ("recall", "precision"), "steps-post"
    return _curves_figure("Precision and recall", curve, chance, names, style, truth, probabilities, classes, split)


def _curves_figure(
    name: str,
    curve: Curve,
    draw_chance: Callable[[Axes, float], None],
    axis_names: tuple[str, str],
    style: str,
    truth: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    classes: Sequence[str],
    split: str,
) -> Figure:
    counts = np.bincount(truth, minlength=len(classes))
    drawn = [at for at in np.argsort(-counts, kind="stable") if 0 < counts[at] < len(truth)][:MAX_PANELS]
    shown = sorted(int(at) for at in drawn)
    some = f", the {len(shown)} most frequent classes" if len(shown) < int((counts > 0).sum()) else ""
    columns = min(3, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    title = f"{name}, one class against the rest{some}, {sample_title(len(truth), split)}"
    room = 0.2 * -(-len(probabilities) // columns)  # inches that the legend takes
    figure, panels = new_panels(title, rows, columns, 0.6 + 3.1 * columns, 0.6 + 3.3 * rows + room, share_x=True)
    colours = line_colours(len(probabilities))
    for axes, at, label in zip(panels, shown, axis_labels([classes[at] for at in shown]), strict=False):
        positive = truth == at
        draw_chance(axes, float(positive.mean()))
        for colour, (method, scores) in zip(colours, probabilities.items(), strict=True):
            x, y = _thin(*curve(positive, scores[:, at]))
            axes.plot(x, y, color=colour, linewidth=1.4, drawstyle=style, label=method)
        axes.set_title(f"{label} ({int(positive.sum()):,})", fontsize=9)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=axis_names[0])
    for axes in panels[::columns]:
        axes.set_ylabel(axis_names[1])
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    lines = panels[0].get_lines()[1:]
    figure.legend(
        lines,
        axis_labels(list(probabilities))[: len(lines)],
        loc="outside lower center",
        fontsize=8,
        frameon=False,
        ncols=2,
    )
    return figure


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points of a line, evenly along its length, with its ends."""
    if len(x) <= MAX_POINTS:
        return x, y
    along = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    picked = np.unique(np.searchsorted(along, np.linspace(0, along[-1], MAX_POINTS)))
    return x[picked], y[picked]
