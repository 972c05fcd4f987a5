"""Figures of a classification's predictions; `Figure` objects without pyplot, so nothing global is touched."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import auc, roc_curve

from clipcovid.config import RESEARCH_ONLY
from clipcovid.evaluate.metrics import Predictions, confusion, encode, predicted_index

LONGEST_NAME = 40


def figures(
    labels: Sequence[str], predictions: Predictions, classes: Sequence[str], *, split: str
) -> dict[str, Figure]:
    """`confusion`, `classes`, and `roc` for probabilities (n, k) where the labels have two classes or more.

    Errors as in `metrics.classification`.
    """
    made = {
        "confusion": confusion_figure(confusion(labels, predictions, classes), classes, split=split),
        "classes": histogram_figure(labels, predictions, classes, split=split),
    }
    if isinstance(predictions, np.ndarray) and predictions.ndim == 2 and len(set(labels)) > 1:
        made["roc"] = roc_figure(labels, predictions, classes, split=split)
    return made


def confusion_figure(counts: np.ndarray, classes: Sequence[str], *, split: str) -> Figure:
    """The confusion matrix `counts` (k, k), a row the true class: counts written, shaded by the share of the row."""
    k, names = len(classes), _names(classes)
    upright = k <= 4 and max(map(len, names)) <= 12
    room = 0.09 * max(map(len, "\n".join(names).split("\n")))  # inches that a name takes
    width, height = 3.6 + 0.55 * k + room, 3.0 + 0.45 * k + (0 if upright else 0.75 * room)
    figure, axes = _figure(f"Confusion matrix, {_n(int(counts.sum()), split)}", width, height)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, ax=axes, label="share of the true class")
    for row, column in np.ndindex(k, k):
        colour = "white" if shares[row, column] > 0.5 else "black"
        size = 11 if k <= 4 else 8 if k <= 12 else 5
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=size)
    slant: dict[str, Any] = {} if upright else {"rotation": 45, "ha": "right", "va": "top", "rotation_mode": "anchor"}
    axes.set_xticks(range(k), names, fontsize=9, **slant)
    axes.set_yticks(range(k), names, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def roc_figure(labels: Sequence[str], probabilities: np.ndarray, classes: Sequence[str], *, split: str) -> Figure:
    """One class against the rest: a curve and its AUROC for each class that some labels have and some have not."""
    truth = encode(labels, classes)
    predicted_index(probabilities, classes, len(truth))  # checks shape and finiteness
    figure, axes = _figure(
        f"ROC, one class against the rest, {_n(len(truth), split)}", 8.5, max(5.2, 0.31 * len(classes))
    )
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    lines, names = [], []
    for i, name in enumerate(_names(classes)):
        positive = truth == i
        if positive.all() or not positive.any():
            continue
        false_rate, true_rate, _ = roc_curve(positive, probabilities[:, i])
        style = "-" if i < colours.N else "--"
        lines += axes.plot(false_rate, true_rate, style, color=colours(i % colours.N), linewidth=1.6)
        names.append(f"{name}: AUROC {auc(false_rate, true_rate):.3f}")
    lines += axes.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1.2)
    figure.legend(lines, [*names, "chance: AUROC 0.500"], loc="outside right upper", fontsize=8, frameon=False)
    axes.set(xlabel="false positive rate (1 - specificity)", ylabel="true positive rate (sensitivity)")
    ticks = np.linspace(0, 1, 6)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xticks=ticks, yticks=ticks)
    return figure


def histogram_figure(labels: Sequence[str], predictions: Predictions, classes: Sequence[str], *, split: str) -> Figure:
    """How many rows have each class, by the labels and by the predictions."""
    truth, k = encode(labels, classes), len(classes)
    predicted = predicted_index(predictions, classes, len(truth))
    figure, axes = _figure(f"True and predicted classes, {_n(len(truth), split)}", 8.5, 1.8 + 0.5 * k)
    for offset, index, name in ((-0.2, truth, "true"), (0.2, predicted, "predicted")):
        bars = axes.barh(np.arange(k) + offset, np.bincount(index, minlength=k), 0.38, label=name)
        axes.bar_label(bars, fontsize=8, padding=3)
    axes.set_yticks(range(k), _names(classes), fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel="images")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def curves(history: Sequence[dict[str, float]]) -> Figure:
    """Loss and scores over epochs, from a training's lines with `epoch`, `train/…` and `val/…`."""
    epochs = [line["epoch"] for line in history]
    names = [name for name in history[-1] if name.startswith(("train/", "val/"))]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.supxlabel(RESEARCH_ONLY, fontsize=7, color="dimgray", x=0.01, ha="left")
    losses, scores = figure.subplots(1, 2)
    for name in names:
        kind = name.partition("/")[2]
        axes = losses if kind in ("loss", "cross_entropy") else scores
        if kind != "logit_scale":
            axes.plot(
                epochs, [line.get(name) for line in history], label=name, marker="." if len(epochs) < 30 else None
            )
    for axes, title in ((losses, "Loss"), (scores, "Scores")):
        axes.set(title=title, xlabel="epoch")
        if axes.lines:
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def shots(scores: Sequence[dict[str, Any]]) -> Figure:
    """Test scores over the training images a class: a point a draw, a line through the means."""
    counts = list(dict.fromkeys(line["shots"] for line in scores))
    figure, axes = _figure("Few-shot curve", 5.5, 3.8)
    for name, colour in (("macro_f1", "C0"), ("accuracy", "C1")):
        drawn = [[line[name] for line in scores if line["shots"] == count] for count in counts]
        axes.plot(range(len(counts)), [float(np.mean(values)) for values in drawn], color=colour, label=name)
        for at, values in enumerate(drawn):
            axes.scatter([at] * len(values), values, s=12, color=colour, alpha=0.6)
    axes.set_xticks(range(len(counts)), counts)
    axes.set(xlabel="training images a class", ylabel="test score", ylim=(0, 1))
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def save(made: dict[str, Figure], folder: str | Path) -> list[Path]:
    """Write each figure as `folder/<name>.png` at 120 dpi; the folder is made. Gives the paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) / f"{name}.png" for name in made]
    for path, figure in zip(paths, made.values(), strict=True):
        figure.savefig(path, dpi=120)
    return paths


def _figure(title: str, width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(min(width, 24), min(height, 24)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_plain("\n".join(textwrap.wrap(title, 60))), fontsize=11)
    figure.supxlabel(RESEARCH_ONLY, fontsize=7, color="dimgray", x=0.01, ha="left")
    return figure, axes


def _n(n: int, split: str) -> str:
    return f"{split} (n = {n:,})"


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib reads what stands between two dollars as mathematics


def _names(classes: Sequence[str]) -> list[str]:
    """Names fit for an axis: at most `LONGEST_NAME` characters, in lines of about half that."""
    short = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in classes]
    return [_plain("\n".join(textwrap.wrap(name, LONGEST_NAME // 2 + 4))) for name in short]
