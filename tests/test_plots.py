"""Figures: nothing overlaps, every title says n and split, and every figure says its purpose."""

import numpy as np
import pytest
from made_predictions import CLASSES, make
from matplotlib.text import Text
from PIL import Image

from clipcovid.config import RESEARCH_ONLY
from clipcovid.evaluate import plots

SETS = {
    "three": CLASSES,
    "three long": ("COVID-19 pneumonia with bilateral opacities", "Other viral or bacterial pneumonia", "Normal"),
    "twelve long": tuple(f"_Finding number {i} of $many$ with a long name" for i in range(12)),
}


def texts(figure):
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]


def overlapping(figure):
    """Pairs of texts whose boxes cross; slanted names apart, whose boxes say little."""
    figure.draw_without_rendering()
    level = [text for text in texts(figure) if text.get_rotation() in (0, 90)]
    x0, y0, x1, y1 = np.array([text.get_window_extent().padded(-1).extents for text in level]).T[:, :, None]
    crossing = (x0 < x1.T) & (x1 > x0.T) & (y0 < y1.T) & (y1 > y0.T)
    return [(level[i].get_text(), level[j].get_text()) for i, j in np.argwhere(np.triu(crossing, 1))]


@pytest.mark.parametrize("name", SETS)
def test_labels_stay_apart_and_inside(name):
    classes = SETS[name]
    labels, probabilities = make(600, classes, signal=2)
    made = plots.classification_figures(labels, probabilities, classes, split="test")
    assert made.keys() == {"confusion", "classes", "roc"}
    for key, figure in made.items():
        assert overlapping(figure) == [], key
        width, height = figure.canvas.get_width_height()
        for text in texts(figure):
            box = text.get_window_extent()
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert inside, (key, text.get_text())


def test_every_figure_says_n_split_and_purpose():
    labels, probabilities = make(60)
    for figure in plots.classification_figures(labels, probabilities, CLASSES, split="external").values():
        words = " ".join(text.get_text() for text in figure.findobj(Text))
        assert "external (n = 60)" in words
        assert RESEARCH_ONLY in words


def test_figures_show_the_numbers():
    labels, probabilities = make(60, shares=[0.3, 0.7, 0])
    made = plots.classification_figures(labels, probabilities, CLASSES, split="test")
    legend = [text.get_text() for text in made["roc"].legends[0].get_texts()]
    assert [entry.split(":")[0] for entry in legend] == ["COVID-19", "Non-COVID", "chance"]
    heights = [patch.get_width() for patch in made["classes"].axes[0].patches]
    assert heights[:3] == [labels.count(c) for c in CLASSES]
    assert heights[3:] == np.bincount(probabilities.argmax(axis=1), minlength=3).tolist()
    cells = [text.get_text() for text in made["confusion"].axes[0].texts]
    assert sum(map(int, cells)) == 60


def test_roc_needs_probabilities_and_two_classes():
    labels, probabilities = make(20)
    assert "roc" not in plots.classification_figures(labels, labels, CLASSES, split="test")
    assert "roc" not in plots.classification_figures(["a"], np.ones((1, 1)), ["a"], split="test")
    assert "roc" in plots.classification_figures(labels, probabilities, CLASSES, split="test")


def test_saved_at_120_dpi(tmp_path):
    labels, probabilities = make(20)
    made = plots.classification_figures(labels, probabilities, CLASSES, split="test")
    paths = plots.save_figures(made, tmp_path / "a" / "figures")
    assert sorted(path.name for path in paths) == ["classes.png", "confusion.png", "roc.png"]
    with Image.open(paths[0]) as image:
        assert image.width == round(made["confusion"].get_figwidth() * 120)
        assert np.asarray(image.convert("L")).std() > 10


def test_curves_show_what_is_on_one_scale():
    line = {
        "train/loss": 2.0,
        "train/logit_scale": 14.3,
        "val/iou": 0.6,
        "val/lung_threshold": 0.3,
        "val/x/median_rank": 40,
    }
    figure = plots.learning_curves_figure([{"epoch": float(epoch)} | line for epoch in (1, 2, 3)])
    losses, scores = figure.axes
    assert [[drawn.get_label() for drawn in axes.lines] for axes in (losses, scores)] == [["train/loss"], ["val/iou"]]
    assert all(float(tick).is_integer() for tick in losses.get_xticks())
    assert overlapping(figure) == []
