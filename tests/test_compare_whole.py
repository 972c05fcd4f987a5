"""A comparison with all that it can have: seeds, margins, groups, hard images; in files, figures and on the terminal."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from made_predictions import CLASSES, make
from rich.console import Console
from test_compare import ENCODER_FILE, compared, drawn, files_of, table_of, three

from clipcovid.data.manifest import Manifest, normalize_columns, write_manifest
from clipcovid.errors import UserError
from clipcovid.evaluate import bootstrap, metrics, plots
from clipcovid.evaluate.compare import CompareConfig, compare, comparison_markdown, write_comparison
from clipcovid.evaluate.console import print_comparison
from clipcovid.evaluate.decisions import analyze_decisions
from clipcovid.evaluate.kinds.classification import KIND
from clipcovid.evaluate.load_predictions import load_method_predictions
from clipcovid.evaluate.predictions import write_predictions
from clipcovid.evaluate.significance import cochran_q

COLUMNS = {"sex": ["F", "M", ""], "age": ["33", "71"], "source": ["A", "B"]}


def write_data(folder, table):
    """A prepared folder with the columns of `COLUMNS`, which patients have in turns."""
    patients = table["patient_id"].str[1:].astype(int)
    facts = table[["image_id", "label", "patient_id"]].assign(
        **{name: [values[at % len(values)] for at in patients] for name, values in COLUMNS.items()}
    )
    made = Manifest(table=normalize_columns(facts).assign(split="test"), classes=CLASSES, dataset="cxr")
    folder.mkdir()
    (folder / "images").mkdir()
    write_manifest(folder, made)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison of two methods and one of three seeds, by groups."""
    folder = tmp_path_factory.mktemp("whole")
    entries = [(table_of(240, seed=at, signal=1.6), {"method": "cnn", "identity": {"seed": at}}) for at in range(3)]
    entries += [(table_of(240, seed=7, signal=1.5), {"method": "probe"}), (table_of(240, seed=8, signal=0.2), {})]
    entries += [(table_of(240, seed=9, signal=0.9), {"method": "a long name of a method that is tuned"})]
    data = write_data(folder / "data", table_of(240))
    config = CompareConfig(margin=0.05, by=tuple(COLUMNS), data=data, min_patients=10, samples=300)
    return compare(load_method_predictions(files_of(folder, *entries), "test"), config)


def test_all_of_it_is_json_and_is_said(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save_figures", lambda made, folder: [])
    content = whole.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert {"pairs", "cochran_q", "seeds", "subgroups", "gaps", "hard_images", "margin"} <= content.keys()
    write_comparison(whole, tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text()) == content
    text = (tmp_path / "comparison.md").read_text()
    for words in ("All 6 pairs, equivalent within ±0.05", "Sensitivity", "NPV", "macro F1 by sex", "Gap by age"):
        assert words in text
    for words in (
        "Mean ± standard deviation over seeds",
        "Hard and easy images over 6 runs",
        "further scores",
        "60–79",
    ):
        assert words in text


def test_a_method_of_several_seeds_is_their_mean(whole):
    assert "cnn (3 seeds)" in whole.methods
    runs = whole.seeds["cnn (3 seeds)"]
    assert (runs.seeds, len(whole.methods)) == ([0, 1, 2], 4)
    tables = [table_of(240, seed=at, signal=1.6) for at in range(3)]
    each = [
        metrics.classification_metrics(t["label"].tolist(), t.filter(like="prob_").to_numpy(), CLASSES) for t in tables
    ]
    scores = whole.methods["cnn (3 seeds)"]
    for metric in ("macro_f1", "macro_auroc", "brier", "npv/Normal"):
        assert runs.values[metric] == pytest.approx([values[metric] for values in each])
        assert scores.metrics[metric] == pytest.approx(np.mean([values[metric] for values in each]))
        low, high = scores.intervals["intervals"][metric]
        assert low < scores.metrics[metric] < high
    assert np.sum(scores.confusion) == 3 * 240
    assert all(pair.mcnemar is None for pair in whole.pairs if "cnn (3 seeds)" in (pair.first, pair.second))
    assert sum(pair.mcnemar is not None for pair in whole.pairs) == 3
    assert whole.cochran_q["df"] == 2
    assert any("resampling seeds and patients" in note for note in whole.notes)


def test_seeds_can_be_kept_apart(tmp_path):
    entries = [(table_of(seed=at), {"method": "cnn", "identity": {"seed": at}}) for at in range(2)]
    methods = load_method_predictions(files_of(tmp_path, *entries), "test")
    assert len(compare(methods).methods) == 1
    apart = compare(methods, CompareConfig(pool_seeds=False))
    assert (len(apart.methods), apart.seeds, len(apart.pairs)) == (2, {}, 1)


def test_alarms_of_pooled_seeds_name_seed_and_run(tmp_path):
    flat = table_of(seed=3)
    flat[[f"prob_{name}" for name in CLASSES]] = np.eye(len(CLASSES))[0]
    entries = [(table_of(seed=1, signal=2), {}), (flat, {}), (flat, {})]
    entries = [(table, {"method": "cnn", "identity": {"seed": at + 5}}) for at, (table, _) in enumerate(entries)]
    alarms = compared(files_of(tmp_path, *entries)).alarms
    lean = [alarm for alarm in alarms if "100% of the predictions" in alarm]
    assert [alarm.partition(": The predictions")[0] for alarm in lean] == [
        "cnn (3 seeds): seed 6, run b",
        "cnn (3 seeds): seed 7, run c",
    ]


def test_pairs_rest_on_the_resamples_of_the_intervals(tmp_path):
    comparison = compared(three(tmp_path))
    tables = {
        letter: table_of(seed=at, signal=s) for at, (letter, s) in enumerate(zip("abc", (0.3, 1.5, 1.0), strict=True))
    }
    tables = {name: table.sort_values("image_id", ignore_index=True) for name, table in tables.items()}
    labels, groups = tables["a"]["label"].tolist(), tables["a"]["patient_id"].tolist()
    draws = [
        bootstrap.weighted_classification_metrics(labels, tables[name].filter(like="prob_").to_numpy(), CLASSES)
        for name in comparison.methods
    ]
    drawn_metrics = dict(zip(comparison.methods, bootstrap.weighted_draws(draws, groups), strict=True))
    for pair in comparison.pairs:
        for metric in ("macro_auroc", "macro_auprc", "kappa", "brier", "ece"):
            gaps = drawn_metrics[pair.first][metric] - drawn_metrics[pair.second][metric]
            gap = pair.differences[metric]
            assert (gap["low"], gap["high"]) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])), abs=1e-12)
    right = [
        tables[name].filter(like="prob_").to_numpy().argmax(1) == [CLASSES.index(label) for label in labels]
        for name in comparison.methods
    ]
    assert comparison.cochran_q == pytest.approx(cochran_q(np.array(right)))
    assert comparison.paired_differences["a"]["mcnemar"]["p_holm"] == comparison.pairs[1].mcnemar["p_holm"]


def test_groups_are_those_of_the_manifest(whole):
    names = [(group.column, group.name, group.units) for group in whole.subgroups]
    assert names[:3] == [("sex", "F", 27), ("sex", "M", 27), ("sex", "unknown", 26)]
    assert [name for column, name, _ in names if column == "age"] == ["20–39", "60–79"]
    assert {gap.column for gap in whole.gaps} == set(COLUMNS)
    assert {gap.metric for gap in whole.gaps} == {"macro_f1", "accuracy", "macro_auroc"}
    for gap in whole.gaps:
        assert gap.value >= 0
        assert gap.low <= gap.value <= gap.high
    assert any("Not in the gap by sex: unknown" in note for note in whole.notes)


def test_what_all_miss_is_what_all_miss(whole):
    hard = whole.hard_images
    missed = {image.image_id for image in hard.missed}
    said = [table_of(240, seed=at, signal=s) for at, s in ((0, 1.6), (1, 1.6), (2, 1.6), (7, 1.5), (8, 0.2), (9, 0.9))]
    wrong = [
        set(table["image_id"][table.filter(like="prob_").to_numpy().argmax(1) != table["label"].map(CLASSES.index)])
        for table in said
    ]
    assert missed == set.intersection(*wrong)
    assert hard.counts[0] == len(missed)
    right = 240 - len(set.union(*wrong))
    assert any(
        note.startswith(f"All 6 runs are wrong on {len(missed)} of 240 images (")
        and note.endswith(f"and right on {right} of 240; right means that the most probable class is the label.")
        for note in whole.notes
    )
    for image in hard.missed:
        assert all(image.label not in text for text in image.predictions.values())


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_is_not_wider_than_it_is(whole, width):
    console = Console(file=io.StringIO(), width=width)
    print_comparison(whole, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.replace("1-0 …", "")
    assert "more tables (classes, pairs, groups, images, decisions) are in comparison.md" in " ".join(text.split())


def test_every_figure_is_drawn_without_texts_on_each_other(whole):
    figures = KIND.comparison_figures(whole)
    assert {"scores", "differences", "pairs", "groups_sex", "groups_age", "groups_source"} <= figures.keys()
    for key in ("pairs", "groups_sex", "groups_source"):
        shown = drawn(figures[key])
        width, height = figures[key].canvas.get_width_height()
        for word, _, box in shown:
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= -1, (key, word)
        for at, (one, _, box) in enumerate(shown):
            for other, _, below in shown[at + 1 :]:
                assert not box.padded(-1).overlaps(below.padded(-1)), (key, one, other)
    words = [word for word, *_ in drawn(figures["pairs"])]
    assert sum(word.rstrip("*=").lstrip("-").startswith(".") for word in words) == 12


@pytest.fixture(scope="module")
def with_validation(tmp_path_factory):
    """A comparison of runs of which one predicted validation images, and the tables of that one."""
    folder = tmp_path_factory.mktemp("decisions")
    tables = {"val": table_of(90, seed=5, signal=1.2), "test": table_of(90, seed=6, signal=1.2)}
    for split, table in tables.items():
        about = {**ENCODER_FILE, "split": split, "method": "cnn"}
        write_predictions(folder / "cnn" / "predictions" / f"{split}.parquet", table, **about)
    write_predictions(folder / "clip" / "predictions" / "test.parquet", table_of(90), **ENCODER_FILE)
    methods = load_method_predictions([folder / "cnn", folder / "clip"], "test")
    return compare(methods, CompareConfig(samples=200, sensitivity=0.8)), tables


def test_runs_with_validation_predictions_are_analyzed_for_decisions(with_validation):
    comparison, tables = with_validation
    content = comparison.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    ordered = {name: table.sort_values("image_id", ignore_index=True) for name, table in tables.items()}
    predictions = {"cnn": (ordered["val"], ordered["test"])}
    expected = analyze_decisions(predictions, CLASSES, sensitivity=0.8, samples=200).to_json()["methods"]["cnn"]
    assert content["decisions"]["methods"]["cnn"] == expected
    assert content["decisions"]["methods"]["zeroshot"]["temperature"] is None
    assert any(
        "prediction sets for zeroshot: there are no predictions of validation" in note for note in comparison.notes
    )


def test_decisions_are_among_tables_and_figures_but_not_on_the_terminal(with_validation):
    comparison, _ = with_validation
    markdown = comparison_markdown(comparison)
    for title in ("Calibration before and after temperature scaling", "Operating points for a sensitivity of 80%"):
        assert title in markdown
    console = Console(file=io.StringIO(), width=80)
    print_comparison(comparison, console)
    assert "Operating points for" not in console.file.getvalue()
    assert {"reliability", "decision_curves", "scores"} <= KIND.comparison_figures(comparison).keys()


def test_without_validation_predictions_there_are_no_decisions(whole):
    assert whole.decisions is None
    assert whole.to_json()["decisions"] is None


def test_stored_scores_of_an_older_version_get_what_they_lack(tmp_path):
    table = table_of().sort_values("image_id", ignore_index=True)
    stored = KIND.score(table, CLASSES, train_labels=["Normal", "COVID-19", "Non-COVID"])
    for name in [name for name in stored.metrics if "npv" in name]:
        del stored.metrics[name], stored.intervals["intervals"][name]
    (path,) = files_of(tmp_path, (table, {}))
    (method,) = load_method_predictions([path], "test")
    comparison = compare([method.__class__(**{**vars(method), "stored_scores": stored})])
    scores = comparison.methods["a"]
    assert comparison.baselines["majority"]["from"] == "train"
    expected = KIND.score(table, CLASSES)
    assert scores.metrics == pytest.approx(expected.metrics)
    assert scores.intervals["intervals"].keys() == expected.intervals["intervals"].keys()


def test_settings_that_make_no_sense_are_refused():
    for options, words in (
        ({"margin": 0.0}, "--margin 0.0 must be between 0 and 1"),
        ({"by": ("sex", "age")}, "--by sex age needs --data"),
        ({"samples": 50}, "--samples 50"),
        ({"min_patients": 1}, "--min-patients 1 must be at least 2"),
    ):
        with pytest.raises(UserError, match=words):
            CompareConfig(**options)


def test_other_settings_are_another_comparison():
    from clipcovid.identity import comparison_identity

    one, other = (comparison_identity({"a": ENCODER_FILE}, CompareConfig(margin=m).settings) for m in (None, 0.02))
    assert one != other
    assert json.loads(json.dumps(one)) == one


def test_one_patient_has_no_verdict_and_no_p(tmp_path):
    lonely = [(table_of(seed=i).assign(patient_id="p"), {}) for i in range(3)]
    comparison = compared(files_of(tmp_path, *lonely))
    assert {pair.verdict for pair in comparison.pairs} == {""}
    assert "All 3 pairs" in comparison_markdown(comparison)


def test_seven_thousand_rows_of_six_methods_take_seconds():
    import time

    labels, _ = make(7000)
    rng = np.random.default_rng(0)
    odds = [np.exp(rng.normal(size=(7000, 3))) for _ in range(6)]
    table = pd.DataFrame({"image_id": range(7000), "label": labels, "patient_id": [f"p{i // 2}" for i in range(7000)]})
    tables = [
        table.assign(**dict(zip([f"prob_{c}" for c in CLASSES], (o / o.sum(1, keepdims=True)).T, strict=True)))
        for o in odds
    ]
    start = time.perf_counter()
    KIND.draws(tables, CLASSES, samples=500)
    assert time.perf_counter() - start < 15
