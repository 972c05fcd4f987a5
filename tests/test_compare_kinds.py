"""Comparing segmentations and captions: numbers against naive resampling, files, and what is refused."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from clipcovid.errors import UserError
from clipcovid.evaluate import captions, plots
from clipcovid.evaluate.compare import compare, comparison_markdown, write_comparison
from clipcovid.evaluate.console import print_comparison, print_folds
from clipcovid.evaluate.external_gap import compare_sets, external_tables, gap_metrics
from clipcovid.evaluate.kinds.registry import get_kind, kind_names
from clipcovid.evaluate.load_predictions import find_runs, load_method_predictions
from clipcovid.evaluate.predictions import write_predictions
from clipcovid.evaluate.scores import ExternalTest
from clipcovid.runs import SUCCESS_MARKER

N = 24
METADATA = {
    "identity": {"seed": 0},
    "manifest_hash": "m1",
    "split_hash": "s1",
    "split": "test",
    "classes": ["COVID-19", "Normal"],
}
WORDS = ["a", "chest", "x-ray", "of", "the", "left", "right", "lung", "with", "an", "opacity", "and", "no", "effusion"]


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)


def patients(rows):
    return [f"p{i // 2}" for i in range(rows)]


def masks(overlap, *, regions=("lung", "infection"), seed=0):
    """Counts of masks whose `overlap` (0–1) with the truth varies from image to image; the third image has no infection."""
    tables = []
    for number, region in enumerate(regions):
        rng = np.random.default_rng([seed, number])
        true = 100 + 10 * np.arange(N)
        if region == "infection":
            true[2] = 0
        tp = np.floor(true * np.clip(overlap + rng.normal(0, 0.05, N), 0, 1)).astype(int)
        fp = rng.integers(5, 30, N)
        counts = {"tp": tp, "fp": fp, "fn": true - tp, "tn": 10_000 - true - fp, "hd95": 3.0, "assd": 1.0}
        table = pd.DataFrame({"image_id": [f"{i:02}.png" for i in range(N)], "region": region, **counts})
        tables.append(table.assign(lung_area=2000.0, mask="", patient_id=patients(N), label=""))
    return pd.concat(tables, ignore_index=True)


def texts(right, *, seed=0, ranks=True):
    """Captions of which `right` of eight words are the reference's."""
    truth, rng = np.random.default_rng(7), np.random.default_rng(seed)
    references = [list(truth.choice(WORDS, 8)) for _ in range(N)]
    hypotheses = [[*words[:right], *rng.choice(WORDS, 8 - right)] for words in references]
    table = pd.DataFrame({"image_id": [f"{i:02}.png" for i in range(N)], "patient_id": patients(N), "label": ""})
    table["reference"], table["hypothesis"] = (list(map(" ".join, lists)) for lists in (references, hypotheses))
    table["hypothesis_frequent"] = table["reference"][0]
    if ranks:
        table["image_to_text_rank"] = rng.integers(1, 20 - 2 * right, N)
        table["text_to_image_rank"] = rng.integers(1, 20 - 2 * right, N)
    return table


TABLES = {
    "segmentation": {"worse": masks(0.6), "better": masks(0.8, seed=1)},
    "captions": {"worse": texts(3), "better": texts(7, seed=1)},
}
KEY = {"segmentation": "infection/iou", "captions": "cider"}
KINDS = pytest.mark.parametrize("kind", TABLES)


def files_of(folder, kind, tables):
    paths = [folder / f"{name}.parquet" for name in tables]
    for path, table in zip(paths, tables.values(), strict=True):
        write_predictions(path, table.sample(frac=1, random_state=3), method=path.stem, task=kind, **METADATA)
    return paths


def compared(folder, kind, tables):
    return compare(load_method_predictions(files_of(folder, kind, tables), "test"))


@KINDS
def test_the_scores_are_those_of_the_tables_and_the_best_comes_first(tmp_path, kind):
    comparison = compared(tmp_path, kind, TABLES[kind])
    assert list(comparison.methods) == ["better", "worse"]
    assert comparison.n == N
    for name, table in TABLES[kind].items():
        assert comparison.methods[name] == get_kind(kind).score(table.sort_values("image_id", kind="stable"))
    content = comparison.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@KINDS
def test_differences_are_over_resamples_of_patients_that_both_share(tmp_path, kind):
    gap = compared(tmp_path, kind, TABLES[kind]).paired_differences["worse"]
    scores = {name: get_kind(kind).score(table) for name, table in TABLES[kind].items()}
    metric = KEY[kind]
    value = scores["worse"].metrics[metric] - scores["better"].metrics[metric]
    assert gap[metric]["value"] == pytest.approx(value)
    assert gap[metric]["low"] < value < gap[metric]["high"] < 0
    (same,) = compared(
        tmp_path / "same", kind, dict.fromkeys(("a", "b"), TABLES[kind]["worse"])
    ).paired_differences.values()
    assert all(entry == {"value": 0.0, "low": 0.0, "high": 0.0} for entry in same.values())


def naive_draws(seed=0, samples=1000):
    """The images of each resample: patients with replacement, in the order in which `bootstrap` draws them."""
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        drawn = rng.integers(0, N // 2, N // 2)
        yield np.sort(np.concatenate([[2 * patient, 2 * patient + 1] for patient in drawn]))


def test_segmentation_intervals_are_those_of_naive_resampling(tmp_path):
    gap = compared(tmp_path, "segmentation", TABLES["segmentation"]).paired_differences["worse"]
    worse, better = (TABLES["segmentation"][name].query("region == 'infection'") for name in ("worse", "better"))

    def metrics(table, indices):
        rows = table.iloc[indices]
        own = rows[rows["tp"] + rows["fn"] > 0]
        means = (own["tp"] / (own["tp"] + own["fp"] + own["fn"])).mean()
        return means, rows["tp"].sum() / (rows["tp"] + rows["fp"] + rows["fn"]).sum()

    gaps = np.array([np.subtract(metrics(worse, take), metrics(better, take)) for take in naive_draws(samples=1000)])
    for column, metric in enumerate(("infection/iou", "infection/iou_pooled")):
        low, high = np.percentile(gaps[:, column], [2.5, 97.5])
        assert (gap[metric]["low"], gap[metric]["high"]) == pytest.approx((low, high), abs=1e-12)


def test_caption_intervals_are_of_corpus_bleu_and_of_ranks(tmp_path):
    worse, better = TABLES["captions"]["worse"], TABLES["captions"]["better"]
    gap = compared(tmp_path, "captions", TABLES["captions"]).paired_differences["worse"]

    def recall(table, indices):
        return (table["image_to_text_rank"].to_numpy()[indices] <= 10).mean()

    gaps = [recall(worse, take) - recall(better, take) for take in naive_draws()]
    metric = gap["image_to_text/recall_10"]
    assert (metric["low"], metric["high"]) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])), abs=1e-12)
    some = np.arange(0, N, 3)

    def bleu(table):
        both = (captions.tokenize(table[column].iloc[some].tolist()) for column in ("reference", "hypothesis"))
        return captions.caption_metrics(*both).overall["bleu_4"]

    resampled = get_kind("captions").resampler([worse, better], ())(some)
    assert resampled["bleu_4"] == pytest.approx([bleu(worse), bleu(better)])


def test_what_one_method_lacks_is_not_compared(tmp_path):
    lungs = compared(tmp_path, "segmentation", {"both": masks(0.6), "lungs": masks(0.8, regions=("lung",))})
    assert lungs.best == "lungs"
    assert all(metric.startswith("lung/") for metric in lungs.paired_differences["both"])
    written = compared(tmp_path / "written", "captions", {"retrieved": texts(5), "written": texts(4, ranks=False)})
    assert not any("recall" in metric for gaps in written.paired_differences.values() for metric in gaps)
    with pytest.raises(UserError, match=r"segmentations of .* have none of infection/iou, lung/iou in common"):
        compared(tmp_path / "none", "segmentation", {r: masks(0.7, regions=(r,)) for r in ("lung", "infection")})


@KINDS
def test_pairs_seeds_and_hard_images_are_those_of_every_kind(tmp_path, kind):
    make_table = {"segmentation": lambda seed: masks(0.8, seed=seed), "captions": lambda seed: texts(7, seed=seed)}[
        kind
    ]
    paths = files_of(tmp_path, kind, {"worse": TABLES[kind]["worse"]})
    for seed in (0, 1):
        paths.append(tmp_path / f"seed-{seed}.parquet")
        about = METADATA | {"identity": {"seed": seed, "lr": 1}}
        write_predictions(paths[-1], make_table(seed), method="better", task=kind, **about)
    comparison = compare(load_method_predictions(paths, "test"))
    metric = KEY[kind]
    assert (comparison.best, comparison.judged_by) == ("better (2 seeds)", metric)
    each = [get_kind(kind).score(make_table(seed)).metrics[metric] for seed in (0, 1)]
    assert comparison.methods[comparison.best].metrics[metric] == pytest.approx(np.mean(each))
    (pair,) = comparison.pairs
    assert (pair.verdict, pair.mcnemar) == ("better", None)
    assert 0 < pair.differences[metric]["low"] <= pair.differences[metric]["low_90"]
    assert pair.differences[metric]["p"] < 0.05
    hard = comparison.hard_images
    assert len(hard.runs) == 3
    assert sum(hard.counts) == N
    content = comparison.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_a_mask_is_right_from_half_an_overlap_on_and_nothing_is_right_where_nothing_is():
    kind, table = get_kind("segmentation"), masks(0.55).sort_values("image_id", kind="stable", ignore_index=True)
    hits = kind.hits([table, table.assign(fp=0)], ())
    infection = table[table["region"] == "infection"]
    iou = infection["tp"] / (infection["tp"] + infection["fp"] + infection["fn"])
    assert hits.correct[0].tolist() == [
        not (bare or value < 0.5) for bare, value in zip(infection["tp"] + infection["fn"] == 0, iou, strict=True)
    ]
    assert hits.correct[1][2]  # the image without any infection, where now nothing is found
    assert 0 < hits.correct[0].sum() < N
    shown = kind.describe_predictions(table, ["02.png", "03.png"], ())
    assert "infection: " in shown[0]
    assert shown[0].endswith("pixels of none")
    assert shown[1].endswith(f"infection IoU {iou.iloc[3]:.2f}")


def test_a_caption_is_right_among_the_first_ten_and_texts_alone_are_not_right_or_wrong():
    kind, table = get_kind("captions"), texts(3)
    hits = kind.hits([table], ())
    assert hits.correct[0].tolist() == (table["image_to_text_rank"] <= 10).tolist()
    assert kind.describe_predictions(table, ["01.png"], ()) == [f"rank {table['image_to_text_rank'][1]}"]
    assert kind.hits([table, texts(3, ranks=False)], ()) is None


@KINDS
@pytest.mark.parametrize("width", [80, 160])
def test_a_comparison_is_printed_and_written_whole(tmp_path, monkeypatch, kind, width):
    saved = {}
    monkeypatch.setattr(plots, "save_figures", lambda figures, folder: saved.update(figures))
    comparison = compared(tmp_path, kind, TABLES[kind])
    console = Console(file=io.StringIO(), width=width)
    print_comparison(comparison, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "Minus better" in text
    assert "…" not in text
    write_comparison(comparison, tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out" / "comparison.csv").set_index("method")
    assert frame[f"difference_{KEY[kind]}"]["worse"] == comparison.paired_differences["worse"][KEY[kind]]["value"]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == comparison.to_json()
    assert saved.keys() == {"scores", "differences"}
    for figure in saved.values():
        figure.draw_without_rendering()
    assert "Minus better" in comparison_markdown(comparison)


@KINDS
def test_kinds_are_not_mixed(tmp_path, kind):
    (other,) = set(TABLES) - {kind}
    paths = files_of(tmp_path, kind, TABLES[kind]) + files_of(
        tmp_path / "other", other, {"odd": TABLES[other]["worse"]}
    )
    with pytest.raises(UserError, match=rf"The task of .*odd\.parquet is {other}, but that of .* is {kind}"):
        load_method_predictions(paths, "test")


def test_other_truth_and_none_are_refused(tmp_path):
    shrunk = masks(0.6)
    shrunk.loc[shrunk.index[4], "fn"] += 1
    with pytest.raises(UserError, match=r"the true lung pixels \d+ for image '04\.png'.*\(1 images differ\)"):
        compared(tmp_path / "a", "segmentation", {"a": masks(0.6), "b": shrunk, "c": masks(0.7)})
    changed = texts(5)
    changed.loc[3, "reference"] = "another"
    with pytest.raises(UserError, match=r"the reference 'another' for image '03\.png'"):
        compared(tmp_path / "b", "captions", {"a": texts(5), "b": changed, "c": texts(6)})
    with pytest.raises(UserError, match=r"24 of 24 images in .*a\.parquet have no true mask"):
        compared(tmp_path / "c", "segmentation", {"a": masks(0.6).assign(tp=np.nan)})
    with pytest.raises(UserError, match=r"24 of 24 images in .*a\.parquet have no reference"):
        compared(tmp_path / "d", "captions", {"a": texts(5).drop(columns="reference")})


@KINDS
def test_runs_of_a_kind_are_found_among_others(tmp_path, kind):
    for name, tables in TABLES.items():
        (tmp_path / name / "predictions").mkdir(parents=True)
        files_of(tmp_path / name / "predictions", name, {"test": tables["worse"]})
        (tmp_path / name / SUCCESS_MARKER).write_text("")
    assert find_runs(tmp_path, "test", SUCCESS_MARKER, kind) == [tmp_path / kind]
    with pytest.raises(UserError, match="no finished run"):
        find_runs(tmp_path, "test", SUCCESS_MARKER)
    with pytest.raises(UserError, match="no kind of predictions called 'masks': use captions, classification, segm"):
        find_runs(tmp_path, "test", SUCCESS_MARKER, "masks")


@pytest.mark.parametrize("kind", kind_names())
def test_folds_show_what_their_kind_is_judged_by(kind):
    metrics = get_kind(kind).table_metrics
    console = Console(file=io.StringIO(), width=160)
    print_folds(kind, [dict.fromkeys([*metrics, "other"], 0.25), dict.fromkeys(metrics, 0.75)], console)
    text = console.file.getvalue()
    assert text.count("0.500 ± 0.354") == len(metrics)
    assert set(get_kind(kind).key_metrics) <= set(metrics)


@KINDS
def test_external_gaps_of_every_kind_are_differences_of_its_own_scores(kind):
    of_kind, tables = get_kind(kind), TABLES[kind]
    told = {"data": "d", "dataset": "other", "split": "all", "manifest_hash": "m", "split_hash": "s", "label_map": {}}
    about = ExternalTest(**told, left_out=0, shared={}, runs={}, skipped={})
    test = compare_sets(of_kind, {"one": tables["better"]}, {"one": tables["worse"]}, [], about)
    gap = test.gaps["one"][KEY[kind]]
    better, worse = (of_kind.score(tables[name]).metrics[KEY[kind]] for name in ("better", "worse"))
    assert [gap["internal"], gap["external"], gap["value"]] == pytest.approx([better, worse, worse - better])
    assert gap["low"] < gap["value"] < gap["high"] < 0
    (shown,) = external_tables([test], of_kind)
    assert len(shown.headers) == 1 + 3 * len(gap_metrics(test, of_kind))
