"""Tables on the terminal: whole at 80 columns."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from clipcovid.evaluate.console import print_folds, print_scores
from clipcovid.evaluate.kinds.registry import get_kind, kind_names

CLASSES = ("COVID-19 pneumonia", "Non-COVID viral or bacterial", "Normal")


def printed(show, *args, width=80):
    """What `show` prints on a terminal of this width."""
    text = io.StringIO()
    show(*args, Console(file=text, width=width))
    return text.getvalue()


@pytest.fixture(scope="module")
def body():
    """Scores of random predictions of classes with long names."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"image_id": [f"{i}" for i in range(60)], "label": [CLASSES[i % 3] for i in range(60)]})
    table[[f"prob_{name}" for name in CLASSES]] = rng.dirichlet(np.ones(3), 60)
    table["patient_id"] = table["image_id"]
    return get_kind("classification").score(table, CLASSES, [CLASSES[0], *CLASSES])


@pytest.mark.parametrize("width", [80, 160])
def test_every_metric_is_shown_by_its_whole_name(body, width):
    text = printed(print_scores, body, width=width)
    assert "…" not in text
    for name in (name for name in body.metrics if "/" not in name):
        assert f" {name} " in f" {text} ".replace("\n", " ")
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("kind", kind_names())
def test_folds_are_whole_at_80_columns(kind):
    names = get_kind(kind).table_metrics
    folds = [dict.fromkeys(names, 0.8 + 0.01 * fold) for fold in range(3)]
    text = printed(print_folds, kind, folds)
    assert "…" not in text
    assert text.count("0.810") == 2 * len(names)  # the second fold's, and the mean
    assert text.count("± 0.010") == len(names)
