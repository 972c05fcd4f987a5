"""clipcovid.evaluate.console: what is printed where an interval or a score is missing."""

import io

import pandas as pd
from rich.console import Console

from clipcovid.evaluate.console import print_folds, print_scores, print_variants
from clipcovid.evaluate.kinds.classification import KIND


def shown(function, *args):
    text = io.StringIO()
    function(*args, Console(file=text, width=160))
    return text.getvalue()


def row(text, name):
    """The cells of the row that begins with `name`."""
    line = next(line.strip() for line in text.splitlines() if line.strip().startswith(name))
    return line.removeprefix(name).split()


def one_patient():
    table = pd.DataFrame({"label": ["a", "b", "a"], "patient_id": ["p"] * 3})
    return KIND.score(table.assign(prob_a=[0.9, 0.2, 0.4], prob_b=[0.1, 0.8, 0.6]), ("a", "b"))


def test_scores_of_one_patient_have_no_intervals_and_say_why():
    text = shown(print_scores, one_patient())
    assert "no intervals, for all is of one patient" in text
    assert "–" not in text


def test_scores_before_and_after_of_one_patient_are_printed_without_intervals():
    body = one_patient()
    text = shown(print_variants, {"test": body, "test-before": body}, "test")
    assert row(text, "after") == row(text, "before ") == ["0.667", "0.667", "1.000"]


def test_a_score_that_some_folds_lack_is_averaged_over_those_that_have_it():
    folds = [{"accuracy": 0.5}, {"accuracy": 0.6, "macro_auroc": 0.7}, {"accuracy": 0.7}]
    text = shown(print_folds, "classification", folds)
    assert row(text, "mean ± sd") == ["0.600", "±", "0.100", "0.700"]
    assert row(text, "of folds") == ["3", "1"]
    text = shown(print_folds, "classification", [values | {"macro_auroc": 0.7} for values in folds])
    assert row(text, "mean ± sd") == ["0.600", "±", "0.100", "0.700", "±", "0.000"]
    assert "of folds" not in text
