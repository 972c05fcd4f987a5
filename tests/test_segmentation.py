"""Scores of segmentations, against naive implementations."""

import json

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco
from scipy import ndimage

from clipcovid.data.rle import decode_rle, encode_rle
from clipcovid.evaluate.kinds.segmentation import KIND
from clipcovid.evaluate.segmentation import (
    NO_NEGATIVES_NOTE,
    count_pixels,
    infected_share,
    per_image_metrics,
    pooled_metrics,
    surface_distances,
)

score = KIND.score


def blobs(seed, shape=(60, 80), share=0.3):
    """A random mask of smooth parts."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4)
    return noise > np.quantile(noise, 1 - share)


def row(image, truth, found, region="infection", lung=np.nan, patient=""):
    about = {"image_id": image, "region": region, "patient_id": patient, "lung_area": lung}
    return about | count_pixels(found, truth) | surface_distances(found, truth)


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_a_naive_loop(seed):
    truth, found = blobs(seed), blobs(seed + 100, share=0.2)
    naive = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    for true, positive in zip(truth.flat, found.flat, strict=True):
        naive[("tn", "fp", "fn", "tp")[2 * int(true) + int(positive)]] += 1
    assert count_pixels(found, truth) == naive


@pytest.mark.parametrize("seed", range(3))
def test_iou_and_dice_are_those_of_coco_and_of_sets(seed):
    truth, found = blobs(seed), blobs(seed + 50)
    values = per_image_metrics(pd.DataFrame([row("a", truth, found)])).iloc[0]
    one, other = (json.loads(encode_rle(mask)) for mask in (found, truth))
    assert values["iou"] == pytest.approx(coco.iou([one], [other], [0])[0, 0])
    assert values["dice"] == pytest.approx(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    assert values["sensitivity"] == pytest.approx((truth & found).sum() / truth.sum())
    assert values["precision"] == pytest.approx((truth & found).sum() / found.sum())


@pytest.mark.parametrize("seed", range(3))
def test_distances_are_near_those_of_all_pairs_of_edge_pixels(seed):
    truth, found = blobs(seed), blobs(seed + 10)

    def edge(mask):
        return np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=0))

    pairs = np.linalg.norm(edge(found)[:, None] - edge(truth)[None], axis=2)
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    ours = surface_distances(found, truth)
    assert ours["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1.5)
    assert ours["assd"] == pytest.approx(np.concatenate([there, back]).mean(), abs=1)


def test_a_shifted_square_is_as_far_as_it_was_shifted():
    truth, found = np.zeros((50, 50), bool), np.zeros((50, 50), bool)
    truth[10:30, 10:30], found[10:30, 14:34] = True, True
    assert surface_distances(found, truth)["hd95"] == pytest.approx(4, abs=0.1)
    assert surface_distances(truth, truth) == {"hd95": 0, "assd": 0}


def test_run_lengths_go_there_and_back_and_are_cocos():
    for mask in (blobs(1), np.zeros((7, 9), bool), np.ones((5, 3), bool)):
        text = encode_rle(mask)
        assert (decode_rle(text) == mask).all()
        assert json.loads(text)["size"] == list(mask.shape)
        assert coco.area(json.loads(text)) == mask.sum()


def test_an_empty_truth_never_counts_as_a_perfect_score():
    empty, some = np.zeros((60, 80), bool), blobs(1)
    table = pd.DataFrame([row("clean", empty, empty), row("false", empty, some), row("missed", some, empty)])
    values = per_image_metrics(table)["iou"]
    assert values.isna().tolist() == [True, True, False]
    assert values[2] == 0
    body = score(table)
    assert body.metrics["infection/iou"] == 0
    assert body.metrics["infection/clean_share"] == 0.5
    assert "infection/hd95" not in body.metrics
    assert body.notes[0].startswith("2 of 3 images have no infection")
    assert NO_NEGATIVES_NOTE not in body.notes
    assert body.notes[1].startswith("infection: distances are undefined for 3 of 3")
    json.dumps(body.to_json(), allow_nan=False)


def test_scores_are_means_over_images_and_pooled_over_pixels():
    pairs = [(blobs(seed), blobs(seed + 20, share=0.1 + seed / 10)) for seed in range(4)]
    table = pd.DataFrame([row(str(at), *pair, patient=f"p{at // 2}") for at, pair in enumerate(pairs)])
    body = score(table)
    each = [(true & found).sum() / (true | found).sum() for true, found in pairs]
    assert body.metrics["infection/iou"] == pytest.approx(np.mean(each))
    assert NO_NEGATIVES_NOTE in body.notes
    assert body.metrics["infection/iou_median"] == pytest.approx(np.median(each))
    both = sum((true & found).sum() for true, found in pairs) / sum((true | found).sum() for true, found in pairs)
    assert body.metrics["infection/iou_pooled"] == pytest.approx(both) == pooled_metrics(table)["iou_pooled"]
    low, high = body.intervals["intervals"]["infection/iou"]
    assert low <= np.mean(each) <= high
    assert (body.intervals["unit"], body.intervals["units"]) == ("patient", 2)


def test_nothing_predicted_anywhere_is_an_alarm():
    empty = np.zeros((60, 80), bool)
    assert "No infection was predicted" in score(pd.DataFrame([row("a", blobs(1), empty)])).alarms[0]
    assert not score(pd.DataFrame([row("a", blobs(1), blobs(2))])).alarms


def test_the_infected_share_is_of_the_lungs():
    lung, infection = blobs(1, share=0.5), blobs(2, share=0.1)
    rows = [row("a", lung, lung, "lung"), row("a", infection, infection)]
    shares = infected_share(pd.DataFrame(rows)).loc["a"]
    assert shares["predicted"] == shares["true"] == pytest.approx(infection.sum() / lung.sum())
    alone = infected_share(pd.DataFrame([row("a", infection, blobs(3, share=0.2), lung=float(lung.sum()))])).loc["a"]
    assert alone["predicted"] == pytest.approx(blobs(3, share=0.2).sum() / lung.sum())
    assert infected_share(pd.DataFrame([row("a", infection, infection)])).empty
    assert infected_share(pd.DataFrame(rows[:1])).empty


def test_severity_is_scored_against_the_truth():
    table = pd.DataFrame(
        [row(str(at), blobs(at, share=at / 10), blobs(at, share=at / 20), lung=2000.0) for at in (1, 2, 4)]
    )
    body = score(table)
    metrics, shares = body.metrics, infected_share(table)
    assert metrics["severity/mae"] == pytest.approx((shares["true"] - shares["predicted"]).abs().mean())
    assert metrics["severity/correlation"] > 0.99
    low, high = body.intervals["intervals"]["severity/mae"]
    assert low <= metrics["severity/mae"] <= high


def test_paired_differences_are_of_the_same_resamples():
    table = pd.DataFrame([row(str(at), blobs(at), blobs(at + 30), patient=f"p{at}") for at in range(6)])
    better = pd.DataFrame([row(str(at), blobs(at), blobs(at), patient=f"p{at}") for at in range(6)])
    (same,) = KIND.differences({"a": table, "b": table.copy()}, ()).values()
    assert same["infection/iou"] == {"value": 0, "low": 0, "high": 0}
    gap = KIND.differences({"table": table, "better": better}, ())["better"]
    assert gap["infection/iou"]["low"] > 0
    assert set(gap) == {f"infection/{name}" for name in ("iou", "dice", "iou_pooled", "dice_pooled")}
    assert gap["infection/dice"]["value"] == pytest.approx(1 - score(table).metrics["infection/dice"])
