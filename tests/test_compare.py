"""Comparing methods: the numbers, what is refused and how, the files, and the job as a whole."""

import dataclasses
import io
import itertools
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_and_list_imports
from made_predictions import CLASSES, make
from matplotlib.axis import Tick
from matplotlib.text import Text
from rich.console import Console
from scipy.stats import binom

from clipcovid.config import RESEARCH_ONLY, UserError
from clipcovid.data.manifest import Manifest, normalize_columns
from clipcovid.evaluate import bootstrap, plots
from clipcovid.evaluate.compare import CompareConfig, compare, comparison_markdown, write_comparison
from clipcovid.evaluate.console import print_comparison
from clipcovid.evaluate.kinds.classification import KIND
from clipcovid.evaluate.kinds.registry import get_kind
from clipcovid.evaluate.load_predictions import find_runs, load_method_predictions
from clipcovid.evaluate.number_format import format_with_interval
from clipcovid.evaluate.predictions import read_predictions, write_predictions
from clipcovid.evaluate.probabilities import class_probabilities
from clipcovid.evaluate.report import score_split
from clipcovid.evaluate.significance import holm, mcnemar
from clipcovid.identity import comparison_identity
from clipcovid.io.files import write_parquet
from clipcovid.runs import SUCCESS_MARKER, finish_run, start_run
from clipcovid.workflows.compare import compare_runs

score = KIND.score
JOB = Path(__file__).parents[1] / "jobs" / "compare.py"
ENCODER_FILE = {
    "method": "zeroshot",
    "task": "classification",
    "identity": {"seed": 0},
    "manifest_hash": "m1",
    "split_hash": "s1",
    "split": "test",
    "classes": list(CLASSES),
}


def table_of(n=90, seed=0, signal=1.0, classes=CLASSES, patients=True):
    """A predictions table: the labels are the same for every seed, the predictions are not; ids are not in order."""
    labels, _ = make(n, classes)
    truth = np.array([classes.index(label) for label in labels])
    noise = np.random.default_rng(100 + seed).normal(size=(n, len(classes)))
    odds = np.exp(noise + signal * np.eye(len(classes))[truth])
    table = pd.DataFrame({"image_id": [f"{i * 37 % n:03}.png" for i in range(n)], "label": labels})
    table["patient_id"] = [f"p{i // 3}" if patients else "" for i in range(n)]
    table[[f"prob_{c}" for c in classes]] = odds / odds.sum(axis=1, keepdims=True)
    return table


def files_of(folder, *entries):
    """Predictions files a.parquet, b.parquet, …, of (table, what is told of it otherwise)."""
    paths = [folder / f"{letter}.parquet" for letter, _ in zip("abcdefghijklmnopqrstuvwxyz", entries, strict=False)]
    for path, (table, about) in zip(paths, entries, strict=True):
        write_predictions(path, table, **{**ENCODER_FILE, "method": path.stem, **about})
    return paths


def three(folder):
    return files_of(folder, *((table_of(seed=i, signal=s), {}) for i, s in enumerate((0.3, 1.5, 1.0))))


def compared(paths, split="test"):
    return compare(load_method_predictions(paths, split))


def test_images_that_any_method_learned_from_are_compared_by_none(tmp_path):
    one, other, third = (table_of(seed=seed) for seed in range(3))
    for table, learned in ((one, range(10)), (other, range(5, 15))):
        table.insert(3, "trained_on", table.index.isin(learned))
    comparison = compared(files_of(tmp_path, (one, {}), (other, {}), (third, {})))
    rest = compared(files_of(tmp_path / "rest", *((table.drop(index=range(15)), {}) for table in (one, other, third))))
    assert comparison.n == rest.n == 75
    for name in "abc":
        assert comparison.methods[name].metrics == rest.methods[name].metrics
    learned = [note for note in comparison.notes if "learned from" in note]
    assert [note[:2] for note in learned] == ["a ", "b "]
    assert all("10 of the images that it predicts" in note for note in learned)
    seen = files_of(tmp_path / "all", (one.assign(trained_on=True), {}), (third, {}))
    with pytest.raises(UserError, match=r"no image to compare that none of .*a\.parquet learned from"):
        compared(seen)


# Runs, made as the jobs make them


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeConfig:
    out: Path
    name: str
    data: str = "data/cxr"


def manifest_of(n=90):
    table = normalize_columns(table_of(n)[["image_id", "label", "patient_id"]])
    split = ["train" if int(patient[1:]) < 10 else "test" for patient in table["patient_id"]]
    return Manifest(table=table.assign(split=split), classes=CLASSES, dataset="cxr")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with the finished runs zeroshot, cnn and probe; not to be written to."""
    out, manifest = tmp_path_factory.mktemp("outputs"), manifest_of()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_figures", lambda made, folder: [])  # drawing takes longest
        score_all(out, manifest)
    return out


def score_all(out, manifest):
    for number, method in enumerate(("zeroshot", "cnn", "probe")):
        run = start_run(FakeConfig(out=out, name=method), method=method, identity={"number": number})
        table = table_of(seed=number, signal=number).set_index("image_id")
        test = table.loc[manifest.rows("test")["image_id"]].reset_index()
        score_split(run, manifest, test.drop(columns=["label", "patient_id"]), split="test")
        finish_run(run)


@pytest.fixture
def outputs(scored, tmp_path):
    """A copy of `scored`."""
    return shutil.copytree(scored, tmp_path / "outputs")


def unscored(folder, **about):
    """A finished run's folder with a config and predictions, and nothing else."""
    write_predictions(folder / "predictions" / "test.parquet", table_of(), **{**ENCODER_FILE, **about})
    (folder / "config.json").write_text(json.dumps({"config": {"data": "data/quex"}}))
    (folder / SUCCESS_MARKER).write_text("")
    return folder


def body_of(folder):
    return json.loads((folder / "metrics.json").read_text())["test"]


# The numbers


def test_scores_are_those_of_the_table(tmp_path):
    comparison = compared(three(tmp_path))
    assert list(comparison.methods) == ["b", "c", "a"]
    for i, name in enumerate("abc"):
        table = table_of(seed=i, signal=(0.3, 1.5, 1.0)[i]).sort_values("image_id", ignore_index=True)
        expected = score(table, CLASSES).to_json()
        assert comparison.methods[name].to_json() == expected
    assert comparison.baselines == expected["baselines"]
    assert json.loads(json.dumps(comparison.to_json(), allow_nan=False)) == comparison.to_json()


def test_a_run_s_own_scores_and_train_shares_are_taken_if_they_are_of_its_table(outputs):
    paths = [outputs / "cnn", outputs / "probe"]
    comparison = compared(paths)
    for path in paths:
        expected = body_of(path)
        assert comparison.methods[path.name].to_json() == expected
    assert comparison.baselines == expected["baselines"]
    assert comparison.baselines["majority"]["from"] == "train"
    assert "train split" in " ".join(comparison.notes)
    changed = outputs / "cnn" / "predictions" / "test.parquet"
    table, about = read_predictions(changed)
    table.loc[0, [f"prob_{c}" for c in CLASSES]] = [0.31, 0.36, 0.33]
    write_predictions(changed, table, **about)
    fresh = compared(paths).methods["cnn"].metrics
    assert fresh == pytest.approx(score(table, CLASSES).metrics)
    assert fresh != comparison.methods["cnn"].metrics


def test_the_order_of_rows_columns_classes_and_runs_changes_nothing(tmp_path):
    paths = three(tmp_path)
    first = compared(paths)
    table, about = read_predictions(paths[1])
    shuffled = table.sample(frac=1, random_state=1)[table.columns[::-1]]
    write_predictions(paths[1], shuffled, **about)
    assert compared(paths[::-1]) == first
    write_predictions(paths[1], table, **{**about, "classes": about["classes"][::-1]})
    assert compared(paths) == first
    one, other = (
        {m.name: m.metadata for m in load_method_predictions(order, "test")} for order in (paths, paths[::-1])
    )
    assert comparison_identity(one) == comparison_identity(other)


def test_a_method_against_itself_differs_by_exactly_nothing(tmp_path):
    (gap,) = compared(files_of(tmp_path, (table_of(), {}), (table_of(), {}))).paired_differences.values()
    for key in ("macro_f1", "accuracy"):
        assert gap[key] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert gap["mcnemar"] == {"only_best": 0, "only_this": 0, "p": 1.0, "p_holm": 1.0}


@pytest.mark.parametrize("patients", [True, False])
def test_differences_are_those_of_the_paired_draws(patients):
    ours, theirs = table_of(signal=1.5, patients=patients), table_of(seed=1, patients=patients)
    labels, groups = ours["label"].tolist(), ours["patient_id"].tolist()
    first, second = (class_probabilities(table, CLASSES) for table in (ours, theirs))
    gap = KIND.differences({"best": ours, "other": theirs}, CLASSES)["other"]
    draws = [bootstrap.weighted_classification_metrics(labels, scores, CLASSES) for scores in (first, second)]
    one, two = bootstrap.weighted_draws(draws, groups)
    for key in ("macro_f1", "accuracy"):
        low, high = np.percentile(two[key] - one[key], [2.5, 97.5])
        assert (gap[key]["low"], gap[key]["high"]) == pytest.approx((low, high), abs=1e-12)
        value = score(theirs, CLASSES).metrics[key] - score(ours, CLASSES).metrics[key]
        assert gap[key]["value"] == pytest.approx(value)
    right = [scores.argmax(1) == [CLASSES.index(c) for c in labels] for scores in (first, second)]
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    assert [gap["mcnemar"]["only_best"], gap["mcnemar"]["only_this"]] == only
    assert gap["mcnemar"]["p"] == mcnemar(*only)


def test_mcnemar_against_a_count_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 3) == pytest.approx(2 * (1 + 4) / 16)
    assert mcnemar(3, 1) == mcnemar(1, 3)
    assert mcnemar(5, 20) == pytest.approx(2 * binom.cdf(5, 25, 0.5))
    coins = list(itertools.product((0, 1), repeat=9))
    assert mcnemar(2, 7) == pytest.approx(np.mean([abs(sum(flips) - 4.5) >= 2.5 for flips in coins]))


def test_holm_against_the_published_rule():
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # 3 x .01, 2 x .03, and never below that
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_notes_say_what_was_resampled_and_what_mcnemar_assumes(tmp_path):
    notes = " ".join(compared(three(tmp_path)).notes)
    assert "by patient (30 of them)" in notes
    assert "90 images are of 30 patients" in notes
    assert "scored labels" in notes
    tables_ = [(table_of(seed=i, patients=False), {}) for i in range(2)]
    notes = " ".join(compared(files_of(tmp_path, *tables_)).notes)
    assert "by image (90 of them, for no patient ids are known)" in notes
    assert "as independent" not in notes


@pytest.mark.parametrize(("n", "patients", "few"), [(27, True, "patients"), (9, False, "images"), (30, True, "")])
def test_intervals_by_few_are_said_to_be_worth_little(tmp_path, n, patients, few):
    comparison = compared(files_of(tmp_path, *((table_of(n, seed=i, patients=patients), {}) for i in range(2))))
    text = f"ntervals by so few {few} (fewer than 10) are worth little"
    caption = get_kind("classification").tables(comparison.methods[comparison.best])[0].caption
    assert any(text in note for note in comparison.notes) == bool(few)
    assert (text in caption) == bool(few)
    if not few:
        assert "worth little" not in " ".join([caption, *comparison.notes])


def test_one_method_and_one_patient_are_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save_figures", lambda made, folder: [])
    comparison = compared(files_of(tmp_path, (table_of(), {})))
    assert comparison.paired_differences == {}
    write_comparison(comparison, tmp_path / "one")
    lonely = [(table_of(seed=i).assign(patient_id="p"), {}) for i in range(2)]
    comparison = compared(files_of(tmp_path, *lonely))
    assert all(gap["macro_f1"].keys() == {"value"} for gap in comparison.paired_differences.values())
    assert comparison.notes[0] == "There are no intervals: all is of one patient."
    write_comparison(comparison, tmp_path / "two")
    assert "_low" in (tmp_path / "two" / "comparison.csv").read_text()


# What is refused, and what is not


GOOD = table_of()
REFUSED = {
    "id missing": (
        GOOD[1:],
        {},
        r"b\.parquet lacks 1 of the images that .*a\.parquet predicts and has 0 that.*'000\.png'",
    ),
    "id more": (table_of(93), {}, r"b\.parquet lacks 0 of the images .* and has 3 that it has not.*'090\.png'"),
    "label": (
        GOOD.assign(label=["Normal" if i == 5 else label for i, label in enumerate(GOOD["label"])]),
        {},
        r"b\.parquet has the label 'Normal' for image .*, but .*a\.parquet has .*\(1 images differ\)",
    ),
    "patient": (GOOD.assign(patient_id="p"), {}, r"b\.parquet has the patient 'p' for image"),
    "split hash": (GOOD, {"split_hash": "s2"}, r"split hash of .*b\.parquet is s2, but that of .*a\.parquet is s1"),
    "split": (GOOD, {"split": "val"}, r"split of .*b\.parquet is val, but that of .*a\.parquet is test"),
    "classes": (
        GOOD.rename(columns={"prob_Normal": "prob_Other"}),
        {"classes": ["COVID-19", "Non-COVID", "Other"]},
        r"classes of .*b\.parquet is COVID-19, Non-COVID, Other, but",
    ),
    "task": (
        GOOD[["image_id"]].assign(region="lung"),
        {"task": "segmentation"},
        r"task of .*b\.parquet is segmentation",
    ),
    "no labels": (GOOD.assign(label=""), {}, r"90 of 90 images in .*b\.parquet have no label"),
    "NaN": (GOOD.assign(**{"prob_Normal": np.nan}), {}, r"b\.parquet are not finite numbers for 90 of 90"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_fit_is_refused_by_name(tmp_path, why):
    table, about, words = REFUSED[why]
    with pytest.raises(UserError, match=words) as error:  # two against one: b is the one that differs
        compared(files_of(tmp_path, (GOOD, {}), (table, about), (GOOD, {})))
    assert "\n" not in str(error.value)
    assert "c.parquet" not in str(error.value)


PERCENT = GOOD.assign(**{f"prob_{name}": GOOD[f"prob_{name}"] * 100 for name in CLASSES})
REGIONS = pd.DataFrame({"image_id": ["i", "i"], "region": ["lung", "infection"], "tp": 1, "fp": 0, "fn": 0, "tn": 3})


@pytest.mark.parametrize(
    ("table", "task", "says"),
    [
        (pd.concat([GOOD, GOOD[:1]]), "classification", r"Image '000\.png' stands twice in .*a\.parquet;"),
        (PERCENT, "classification", r"90 of 90 rows of .*a\.parquet are no probabilities .* sums to 100 .*write them"),
        (GOOD.assign(**{"prob_Normal": 1.2}), "classification", r"90 of 90 rows of .*a\.parquet are no probabilities"),
        (
            pd.concat([REGIONS, REGIONS[1:]]),
            "segmentation",
            r"Image 'i' stands twice in .*a\.parquet for the region infection",
        ),
    ],
    ids=["image twice", "percent", "no sum of 1", "region twice"],
)
def test_tables_that_were_changed_are_read_as_strictly_as_they_are_written(tmp_path, table, task, says):
    write_parquet(tmp_path / "a.parquet", table, {**ENCODER_FILE, "task": task})
    with pytest.raises(UserError, match=says):
        load_method_predictions([tmp_path / "a.parquet"], "test")


def test_files_of_another_make_are_refused(tmp_path):
    (good,) = files_of(tmp_path, (GOOD, {}))
    (tmp_path / "x.csv").write_text("id,label\n")
    GOOD.to_parquet(tmp_path / "other.parquet")
    (tmp_path / "run" / "predictions").mkdir(parents=True)
    (tmp_path / "run" / "predictions" / "val.parquet").write_bytes(good.read_bytes())
    for name, words in (
        ("x.csv", r"x\.csv is not a readable Parquet"),
        ("other.parquet", r"other\.parquet is no predictions table"),
        ("none.parquet", r"There is no file .*none\.parquet"),
        ("run", "run has no predictions of test; it has those of val: choose a --split"),
        ("nowhere", "nowhere has no predictions of test; name the folders"),
    ):
        with pytest.raises(UserError, match=words):
            load_method_predictions([good, tmp_path / name], "test")
    with pytest.raises(UserError, match="nothing to compare"):
        load_method_predictions([], "test")


def test_two_runs_of_one_method_go_by_their_names_and_a_run_named_twice_stands_once(tmp_path):
    one, two, other = (unscored(tmp_path / name) for name in ("x/run-1", "x/run-2", "y/run-1"))
    file = one / "predictions" / ".." / "predictions" / "test.parquet"
    assert [method.name for method in load_method_predictions([one, file, one], "test")] == ["zeroshot"]
    assert [method.name for method in load_method_predictions([two, one], "test")] == [
        "zeroshot (run-1)",
        "zeroshot (run-2)",
    ]
    assert [method.name for method in load_method_predictions([one, other], "test")] == [
        f"zeroshot ({one})",
        f"zeroshot ({other})",
    ]


def test_pooled_folds_are_compared_as_a_split_of_their_own(tmp_path):
    about = {"split": "crossval", "split_hash": "all"}
    for name in ("a", "b"):
        path = tmp_path / name / "predictions" / "crossval.parquet"
        write_predictions(path, table_of(seed=ord(name)), **{**ENCODER_FILE, **about, "method": name})
    assert compared([tmp_path / "a", tmp_path / "b"], "crossval").split == "crossval"


def test_finished_runs_are_found_and_several_splits_are_told_apart(outputs):
    (outputs / "cnn" / SUCCESS_MARKER).unlink()
    (outputs / "mlartifacts").mkdir()
    (outputs / "compare-x").mkdir()
    (outputs / "compare-x" / SUCCESS_MARKER).write_text("")
    masks = outputs / "unet" / "predictions" / "test.parquet"
    write_predictions(masks, table_of().assign(region="lung"), **{**ENCODER_FILE, "task": "segmentation"})
    (outputs / "unet" / SUCCESS_MARKER).write_text("")
    assert find_runs(outputs, "test", SUCCESS_MARKER) == [outputs / "probe", outputs / "zeroshot"]
    unscored(outputs / "elsewhere", split_hash="s2")
    with pytest.raises(UserError, match=r"2 different splits.*name those to compare") as error:
        find_runs(outputs, "test", SUCCESS_MARKER)
    for word in ("data/cxr", "data/quex", manifest_of().split_hash, "s2 (elsewhere)", "(probe, zeroshot)"):
        assert word in str(error.value)
    with pytest.raises(UserError, match="no finished run with predictions of val"):
        find_runs(outputs, "val", SUCCESS_MARKER)


# What is written and printed


def test_csv_has_every_number(tmp_path):
    comparison = compared(three(tmp_path))
    write_comparison(comparison, tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out" / "comparison.csv").set_index("method")
    assert frame.index.tolist() == ["b", "c", "a", "majority", "prior"]
    for name, body in comparison.methods.items():
        assert (frame["unit"][name], frame["n"][name], frame["units"][name]) == ("patient", 90, 30)
        for key, value in body.metrics.items():
            assert frame[key][name] == value
            if key in body.intervals["intervals"]:
                assert [frame[f"{key}_low"][name], frame[f"{key}_high"][name]] == body.intervals["intervals"][key]
    for name, gap in comparison.paired_differences.items():
        assert frame["difference_macro_f1_low"][name] == gap["macro_f1"]["low"]
        assert frame["mcnemar_p_holm"][name] == gap["mcnemar"]["p_holm"]
    assert frame["macro_f1"]["prior"] == comparison.baselines["prior"]["macro_f1"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == comparison.methods_json()
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == comparison.to_json()


def test_tables_fit_and_take_names_as_they_are(tmp_path):
    names = ["[red]odd[/] | name", "finetune-lora-of-a-long-name (tuned, with thresholds)", "c"]
    entries = [(table_of(seed=i, signal=i), {"method": name}) for i, name in enumerate(names)]
    comparison = compared(files_of(tmp_path, *entries))
    console = Console(file=io.StringIO(), width=100)
    print_comparison(comparison, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    small = Console(file=io.StringIO(), width=80)
    print_comparison(comparison, small)
    assert "thresholds" in small.file.getvalue()
    assert text.rstrip().endswith(RESEARCH_ONLY)
    values = comparison.methods["c"]
    low, high = values.intervals["intervals"]["macro_f1"]
    cell = f"{values.metrics['macro_f1']:.3f} ({low:.2f}–{high:.2f})".replace("0.", ".")
    for word in ("[red]odd[/] | name", "majority", "prior", "(Holm)", cell):
        assert word in text, word
    markdown = comparison_markdown(comparison)
    assert cell in markdown
    rows = [line.replace("\\|", "") for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows[:10]} == {7, 8}
    assert "[red]odd[/] \\| name" in markdown


def test_markdown_of_names_is_no_html(tmp_path):
    classes = ["<b>Flu & co</b>", "Normal"]
    entries = [(table_of(seed=i, classes=classes), {"method": f"<i>{i}</i>", "classes": classes}) for i in range(2)]
    comparison = dataclasses.replace(compared(files_of(tmp_path, *entries)), alarms=["<u>\n# x"], notes=["a\n<b>"])
    markdown = comparison_markdown(comparison)
    assert "<" not in markdown
    for text in ("&lt;i>0&lt;/i>", "&lt;b>Flu &amp; co&lt;/b>", "- **warning:** &lt;u> # x\n", "- a &lt;b>\n"):
        assert text in markdown


def test_numbers_are_short():
    assert format_with_interval(0.9134, (0.891, 0.929)) == ".913 (.89–.93)"
    assert format_with_interval(1.0, (0.98, 1.0)) == "1.000 (.98–1.00)"
    assert format_with_interval(-0.021, (-0.05, 0.01), 3) == "-.021 (-.050 to .010)"
    assert format_with_interval(-1e-9) == ".000"
    assert format_with_interval(None) == ""


def drawn(figure):
    """Text, whether it is slanted, and its box, of every text that a reader sees; ticks out of range are none."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            for tick in axis.get_major_ticks():
                tick.set_visible(axes.get_visible() and low <= tick.get_loc() <= high)
    hidden = {id(text) for tick in figure.findobj(Tick) if not tick.get_visible() for text in tick.findobj(Text)}
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    return [
        (text.get_text(), text.get_rotation() not in (0, 90), text.get_window_extent())
        for text in texts
        if id(text) not in hidden and (text.axes is None or text.axes.get_visible())
    ]


@pytest.mark.parametrize(("count", "classes"), [(1, CLASSES), (3, CLASSES), (20, None)])
def test_figures_are_legible_at_any_number(tmp_path, count, classes):
    classes = classes or tuple(f"_Finding {i} of $many$ with a long name" for i in range(12))
    entries = [(table_of(300, i, i, classes, patients=False), {"classes": classes}) for i in range(min(count, 2))]
    comparison = compared(files_of(tmp_path, *entries))
    names = [f"method-{i}-of-$many$-with-a-long-name" for i in range(count)]
    scores, gaps = list(comparison.methods.values()), list(comparison.paired_differences.values())
    comparison = dataclasses.replace(
        comparison,
        best=names[0],
        methods={name: scores[i % len(scores)] for i, name in enumerate(names)},
        paired_differences=dict(zip(names[1:], itertools.cycle(gaps), strict=False)),
        pairs=[
            dataclasses.replace(comparison.pairs[0], first=first, second=second)
            for first, second in itertools.combinations(names, 2)
        ],
    )
    made = KIND.comparison_figures(comparison)
    assert made.keys() == {"scores", "classes", "confusions"} | ({"differences", "pairs"} if count > 2 else set())
    for key, figure in made.items():
        shown = drawn(figure)
        words = [word for word, *_ in shown]
        assert RESEARCH_ONLY in words
        assert "test (n = 300)" in " ".join(words).replace("\n", " ")
        width, height = figure.canvas.get_width_height()
        for word, _, box in shown:
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= -1, (key, word)
        level = [(word, box.padded(-1)) for word, slanted, box in shown if not slanted]
        for (one, box), (other, below) in itertools.combinations(level, 2):
            assert not box.overlaps(below), (key, one, other)


# The job


def job(*args):
    return run_and_list_imports(JOB, *args)


def test_the_job_compares_all_runs_and_shows_them_in_mlflow(outputs, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    done, _ = job("--out", outputs)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = outputs.glob("compare-*")
    assert {path.name for path in folder.iterdir()} == {
        *(
            "comparison.csv",
            "comparison.json",
            "comparison.md",
            "config.json",
            "figures",
            "metrics.json",
            SUCCESS_MARKER,
        )
    }
    assert str(folder) in done.stdout
    assert done.stdout.index("probe") < done.stdout.index("zeroshot") < done.stdout.index("majority")
    with sqlite3.connect(outputs / "mlflow.db") as database:  # importing MLflow takes seconds
        shown = dict(database.execute("select key, value from metrics"))
        tags = dict(database.execute("select key, value from tags"))
    assert shown["cnn/macro_f1"] == pytest.approx(body_of(outputs / "cnn")["metrics"]["macro_f1"])
    assert (tags["clipcovid.method"], tags["split"]) == ("compare", manifest_of().split_hash)
    kept = {path.name for path in (outputs / "mlartifacts").glob("*/artifacts/*")}
    assert {"comparison.csv", "comparison.md", "comparison.json", "figures"} <= kept
    monkeypatch.setattr("clipcovid.workflows.report.track", lambda run, config, **about: True)
    monkeypatch.setattr(plots, "save_figures", lambda made, folder: [])
    compare_runs(CompareConfig(out=outputs, runs=(outputs / "zeroshot", outputs / "probe", outputs / "cnn")))
    assert capsys.readouterr().out == done.stdout


def test_a_mistake_is_one_sentence_and_status_2_without_a_trace_or_torch(outputs):
    other = unscored(outputs / "other")
    done, imported = job(outputs / "cnn", other, outputs / "probe", "--out", outputs)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: The split hash of {other} is s1, but that of ")
    assert done.stderr.count("\n") == 1
    assert not list(outputs.glob("compare-*"))
    assert "clipcovid.evaluate.compare" in imported
    assert imported.isdisjoint({"torch", "ray", "mlflow", "matplotlib.pyplot"})


def test_the_default_config_compares_the_test_split_of_outputs():
    assert CompareConfig() == CompareConfig(runs=(), split="test", out=Path("outputs"), name="")
