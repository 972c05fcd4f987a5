"""Figures of a classification's predictions; `Figure` objects without pyplot, so nothing global is touched."""

import math
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clipcovid.config import RESEARCH_ONLY
from clipcovid.evaluate.fonts import save_figure, warn_missing_letters
from clipcovid.evaluate.metrics import Predictions, confusion_matrix, encode_labels, predicted_indices
from clipcovid.io.files import atomic_write

MAX_NAME_LENGTH = 40
NOT_SCORES = ("logit_scale", "_threshold", "median_rank")  # of a training's line, and on no scale of theirs
SLANTED_LABELS: dict[str, Any] = {"rotation": 45, "ha": "right", "va": "top", "rotation_mode": "anchor"}


def classification_figures(
    labels: Sequence[str], predictions: Predictions, classes: Sequence[str], *, split: str
) -> dict[str, Figure]:
    """`confusion`, `classes`, and `roc` for probabilities (n, k) where the labels have two classes or more.

    Errors as in `metrics.classification_metrics`.
    """
    drawn = {
        "confusion": confusion_figure(confusion_matrix(labels, predictions, classes), classes, split=split),
        "classes": histogram_figure(labels, predictions, classes, split=split),
    }
    if isinstance(predictions, np.ndarray) and predictions.ndim == 2 and len(set(labels)) > 1:
        drawn["roc"] = roc_figure(labels, predictions, classes, split=split)
    return drawn


def confusion_figure(counts: np.ndarray, classes: Sequence[str], *, split: str) -> Figure:
    """The confusion matrix `counts` (k, k), a row the true class: counts written, shaded by the share of the row."""
    k, names = len(classes), axis_labels(classes)
    upright = k <= 4 and max(map(len, names)) <= 12
    room = 0.09 * max(map(text_width, "\n".join(names).split("\n")))  # inches that a name takes
    width, height = 3.6 + 0.55 * k + room, 3.0 + 0.45 * k + (0 if upright else 0.75 * room)
    figure, axes = new_figure(f"Confusion matrix, {sample_title(int(counts.sum()), split)}", width, height)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, ax=axes, label="share of the true class")
    for row, column in np.ndindex(k, k):
        colour = "white" if shares[row, column] > 0.5 else "black"
        size = 11 if k <= 4 else 8 if k <= 12 else 5
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=size)
    axes.set_xticks(range(k), names, fontsize=9, **({} if upright else SLANTED_LABELS))
    axes.set_yticks(range(k), names, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def roc_figure(labels: Sequence[str], probabilities: np.ndarray, classes: Sequence[str], *, split: str) -> Figure:
    """One class against the rest: a curve and its AUROC for each class that some labels have and some have not."""
    from sklearn.metrics import auc, roc_curve  # a second's import that a training's first step does not wait for

    truth = encode_labels(labels, classes)
    predicted_indices(probabilities, classes, len(truth))  # checks shape and finiteness
    figure, axes = new_figure(
        f"ROC, one class against the rest, {sample_title(len(truth), split)}", 8.5, max(5.2, 0.31 * len(classes))
    )
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    lines, names = [], []
    for i, name in enumerate(axis_labels(classes)):
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
    truth, k = encode_labels(labels, classes), len(classes)
    predicted = predicted_indices(predictions, classes, len(truth))
    figure, axes = new_figure(f"True and predicted classes, {sample_title(len(truth), split)}", 8.5, 1.8 + 0.5 * k)
    for offset, index, name in ((-0.2, truth, "true"), (0.2, predicted, "predicted")):
        bars = axes.barh(np.arange(k) + offset, np.bincount(index, minlength=k), 0.38, label=name)
        axes.bar_label(bars, fontsize=8, padding=3)
    axes.set_yticks(range(k), axis_labels(classes), fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel="images")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def learning_curves_figure(history: Sequence[dict[str, float]]) -> Figure:
    """Losses, and scores of 0 to 1, over epochs, from a training's lines with `epoch`, `train/…` and `val/…`."""
    epochs = [line["epoch"] for line in history]
    names = [name for name in history[-1] if name.startswith(("train/", "val/"))]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.supxlabel(RESEARCH_ONLY, fontsize=7, color="dimgray", x=0.01, ha="left")
    losses, scores = figure.subplots(1, 2)
    for name in names:
        kind = name.partition("/")[2]
        axes = losses if kind in ("loss", "cross_entropy") else scores
        if not kind.endswith(NOT_SCORES):
            axes.plot(
                epochs, [line.get(name) for line in history], label=name, marker="." if len(epochs) < 30 else None
            )
    for axes, title in ((losses, "Loss"), (scores, "Scores")):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        axes.grid(alpha=0.3)
    return figure


def overlays_figure(
    images: np.ndarray,
    truths: Sequence[np.ndarray | None],
    predicted: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Images (n, h, w) or (n, h, w, 3) with the outlines of their true (green) and predicted (red) masks (h, w)."""
    columns = min(3, len(images))
    figure, panels = new_panels(
        title, math.ceil(len(images) / columns), columns, 3 * columns, 3.5 * len(images) / columns
    )
    for axes in panels:
        axes.axis("off")
    for axes, image, true, mask, caption in zip(panels, images, truths, predicted, captions, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        for outline, colour in ((true, "lime"), (mask, "red")):
            if outline is not None and outline.any() and not outline.all():
                axes.contour(outline > 0, levels=[0.5], colors=[colour], linewidths=1)
        lines = [part for line in caption.split("\n") for part in _wrap(line, MAX_NAME_LENGTH)]
        axes.set_title(_escape_mathtext("\n".join(lines)), fontsize=8)
    return figure


def contact_sheet_figure(images: np.ndarray, texts: Sequence[str], *, title: str) -> Figure:
    """A contact sheet: images (n, h, w) or (n, h, w, 3), each with its text beneath."""
    columns = min(3, len(images))
    rows = math.ceil(len(images) / columns)
    wrapped = [[part for line in text.split("\n") for part in _wrap(line, 48)[:4]] for text in texts]
    height = 3.5 + 0.13 * max(map(len, wrapped), default=0)
    figure, panels = new_panels(title, rows, columns, 3.4 * columns, height * rows)
    for axes in panels:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for axes, image, lines in zip(panels, images, wrapped, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_xlabel(_escape_mathtext("\n".join(lines)), fontsize=7)
    return figure


def mask_outline_figure(image: np.ndarray, masks: dict[str, np.ndarray], *, title: str) -> Figure:
    """An image, (h, w) or (h, w, 3), with the outlines of its masks, bool (h, w), by name."""
    figure, axes = new_figure(title, 5, 5.4)
    axes.imshow(image, cmap="gray")
    axes.axis("off")
    for number, (name, mask) in enumerate(masks.items()):
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[f"C{number}"], linewidths=1.5)
            axes.plot([], [], color=f"C{number}", label=name)
    if axes.lines:
        axes.legend(loc="lower right", fontsize=8)
    return figure


def score_distribution_figure(scores: np.ndarray, marked_scores: dict[str, float], *, score_name: str) -> Figure:
    """How the scores (n,) of many candidates are distributed, and where some that have names stand among them."""
    figure, axes = new_figure(f"{len(scores):,} candidates", 7, 4.5)
    axes.hist(scores[~np.isnan(scores)], bins=40, color="C0", alpha=0.6)
    for number, (name, value) in enumerate(marked_scores.items(), 1):
        axes.axvline(value, color=f"C{number}", linewidth=2, label=f"{name}: {value:.3f}")
    axes.set_xlabel(score_name)
    axes.set_ylabel("candidates")
    axes.legend(fontsize=8)
    return figure


def sweep_figures(
    trials: Sequence[dict[str, Any]], *, metric: str, mode: str, importance: dict[str, float]
) -> dict[str, Figure]:
    """Figures of a sweep: `history` of scores, `parallel` coordinates of `values`, the best trials darkest, `importance`.

    `trials`: score (where known), state and values (key → value), in the order in which they were begun. `importance`: key
    → share of the scores' variance, or nothing.
    """
    scored = [trial for trial in trials if "score" in trial]
    if not scored:
        return {}
    scores = np.array([trial["score"] for trial in scored])
    best = np.minimum.accumulate(scores) if mode == "min" else np.maximum.accumulate(scores)
    history, axes = new_figure(f"{len(scored)} trials", 7, 4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for state, colour in (("finished", "C0"), ("pruned", "C7"), ("failed", "C3")):
        at = [number for number, trial in enumerate(scored) if trial["state"] == state]
        axes.plot(at, scores[at], "o", color=colour, label=state) if at else None
    axes.step(range(len(best)), best, where="post", color="C1", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {metric}")
    axes.legend(fontsize=8)
    keys = [*scored[0]["values"], metric]
    parallel, axes = new_figure("What was tried: the better, the darker", max(6, 1.4 * len(keys)), 5)
    axes.set_title(axes.get_title(), pad=22)
    columns = [_axis_positions([trial["values"][key] for trial in scored]) for key in keys[:-1]] + [
        _axis_positions(scores.tolist())
    ]
    order = np.argsort(scores if mode == "max" else -scores)
    for number, row in enumerate(order):
        shade = (number + 1) / len(order)
        axes.plot(range(len(keys)), [column[0][row] for column in columns], color="C0", alpha=0.1 + 0.9 * shade**2)
    for number, (_, low, high) in enumerate(columns):
        axes.text(number, -0.06, low, ha="center", va="top", fontsize=7)
        axes.text(number, 1.04, high, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(keys)), [key.replace(".", ".\n") for key in keys], fontsize=8)
    axes.tick_params(axis="x", pad=16)
    axes.set_yticks([])
    axes.set_ylim(-0.02, 1.02)
    figures = {"history": history, "parallel": parallel}
    if importance:
        figures["importance"], axes = new_figure("What the score depends on (fANOVA)", 6, 1 + 0.35 * len(importance))
        axes.barh(list(importance)[::-1], list(importance.values())[::-1], color="C0")
        axes.set_xlabel(f"share of the variance of validation {metric}")
    return figures


def _axis_positions(values: Sequence[Any]) -> tuple[np.ndarray, str, str]:
    """Where values stand between the least and the greatest, (n,) in 0–1, and what those are; names in their order."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        names = sorted(set(map(str, values)))
        return np.array([names.index(str(value)) for value in values]) / max(1, len(names) - 1), names[0], names[-1]
    numbers = np.array(values, float)
    low, high = numbers.min(), numbers.max()
    shown = np.log(numbers) if low > 0 and high / low > 50 else numbers
    span = shown.max() - shown.min()
    return (shown - shown.min()) / (span or 1), f"{low:.3g}", f"{high:.3g}"


def few_shot_figure(scores: Sequence[dict[str, Any]]) -> Figure:
    """Test scores over the training images a class: a point a draw, a line through the means."""
    counts = list(dict.fromkeys(line["shots"] for line in scores))
    figure, axes = new_figure("Few-shot curve", 5.5, 3.8)
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


def save_figures(figures: dict[str, Figure], folder: str | Path) -> list[Path]:
    """Write each figure as `folder/<name>.png` at 120 dpi; the folder is made. Gives the paths."""
    paths = [Path(folder) / f"{name}.png" for name in figures]
    missing = ""
    for path, figure in zip(paths, figures.values(), strict=True):
        with atomic_write(path) as partial:
            missing += save_figure(figure, partial, dpi=120)
    if missing:
        warn_missing_letters("".join(sorted(set(missing))))
    return paths


def new_figure(title: str, width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one panel, at most 24 inches on a side, with its title and purpose."""
    figure = Figure(figsize=(min(width, 24), min(height, 24)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_escape_mathtext("\n".join(_wrap(title, 60))), fontsize=11)
    figure.supxlabel(RESEARCH_ONLY, fontsize=7, color="dimgray", x=0.01, ha="left")
    return figure, axes


def line_colours(count: int) -> list[tuple[float, float, float, float]]:
    """A colour for each of so many lines; above 20 they come again."""
    palette = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
    return [palette(at % palette.N) for at in range(count)]


def new_panels(
    title: str, rows: int, columns: int, width: float, height: float, share_x: bool = False, share_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of several panels, row by row. `share_x`: the x axis is one, `share_y`: the y axis is."""
    figure = Figure(figsize=(min(width, 24), min(height, 24)), layout="constrained")
    figure.suptitle(_escape_mathtext("\n".join(_wrap(title, int(9 * width)))), fontsize=11)
    figure.supxlabel(RESEARCH_ONLY, fontsize=7, color="dimgray", x=0.01, ha="left")
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y).flat)


def sample_title(n: int, split: str) -> str:
    """`test (n = 1,234)`."""
    return f"{split} (n = {n:,})"


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` letters; of half as many where some are as wide as two, as Chinese ones are."""
    return textwrap.wrap(text, width if text_width(text) == len(text) else width // 2)


def text_width(text: str) -> int:
    """How many letters of usual width a text is as wide as."""
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def _escape_mathtext(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib reads what stands between two dollars as mathematics


def axis_labels(classes: Sequence[str]) -> list[str]:
    """Names fit for an axis: at most `MAX_NAME_LENGTH` characters, in lines of about half that."""
    short = [name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…" for name in classes]
    return [_escape_mathtext("\n".join(_wrap(name, MAX_NAME_LENGTH // 2 + 4))) for name in short]
