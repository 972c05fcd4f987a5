"""Scores of segmentations from the pixels counted in each image: one row an image and a region, at the mask's own size.

The rule for empty masks: an image without any foreground has no IoU, Dice or sensitivity, whatever was predicted, so it
never counts as a perfect 1.0. Such images are counted apart, with how many of them were left clean. An image whose
foreground was missed altogether counts with 0. Distances are undefined where either side is empty, and counted as such.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pycocotools import mask as coco

from clipcovid.evaluate import bootstrap

REGIONS = ("lung", "infection")
COUNTS = ("tp", "fp", "fn", "tn")
MEAN_OF = ("iou", "dice", "sensitivity", "precision", "hd95", "assd")
UNTESTED = "Every image here has an infection: what would be found in lungs without one is unknown."
HEADLINE = ("iou", "dice", "iou_pooled", "dice_pooled")


def encode_mask(mask: np.ndarray) -> str:
    """A mask (h, w), foreground where not 0, as the JSON of a COCO run-length encoding: `size` and `counts`."""
    found = coco.encode(np.asfortranarray(mask > 0).astype(np.uint8))
    return json.dumps({"size": list(mask.shape), "counts": found["counts"].decode()})


def decode_mask(text: str) -> np.ndarray:
    """The mask of `encode_mask`: bool (h, w)."""
    return coco.decode(json.loads(text)).astype(bool)


def count(predicted: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Pixels of two masks, bool (h, w): tp, fp, fn, tn."""
    tp, positive, true = (int(np.count_nonzero(one)) for one in (predicted & truth, predicted, truth))
    return {"tp": tp, "fp": positive - tp, "fn": true - tp, "tn": truth.size - positive - true + tp}


def distances(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """`hd95` and `assd` in pixels of two masks, bool (h, w); NaN where either is empty.

    The 95th percentile of the symmetric Hausdorff distance and the average symmetric surface distance, by contours that are
    weighted by their length (Nikolov et al. 2018, the package surface-distance).
    """
    if not (predicted.any() and truth.any()):
        return {"hd95": float("nan"), "assd": float("nan")}
    import surface_distance

    found = surface_distance.compute_surface_distances(truth, predicted, (1.0, 1.0))
    there, back = surface_distance.compute_average_surface_distance(found)
    lengths = found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()
    assd = (there * lengths[0] + back * lengths[1]) / sum(lengths)
    return {"hd95": float(surface_distance.compute_robust_hausdorff(found, 95)), "assd": float(assd)}


def per_image(table: pd.DataFrame) -> pd.DataFrame:
    """`iou`, `dice`, `sensitivity`, `precision` of each row from its counts, NaN where the rule above leaves it undefined."""
    tp, fp, fn = (table[name].to_numpy(np.float64) for name in ("tp", "fp", "fn"))
    truth = tp + fn > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "iou": np.where(truth, tp / (tp + fp + fn), np.nan),
            "dice": np.where(truth, 2 * tp / (2 * tp + fp + fn), np.nan),
            "sensitivity": np.where(truth, tp / (tp + fn), np.nan),
            "precision": np.where(truth & (tp + fp > 0), tp / (tp + fp), np.nan),
        }
    return pd.DataFrame(found, index=table.index)


def pooled(table: pd.DataFrame) -> dict[str, float]:
    """IoU and Dice of the counts of all images together."""
    tp, fp, fn = (float(table[name].sum()) for name in ("tp", "fp", "fn"))
    union = tp + fp + fn
    return {"iou_pooled": tp / union, "dice_pooled": 2 * tp / (union + tp)} if union else {}


def infected_share(table: pd.DataFrame) -> pd.DataFrame:
    """The infected share of the lungs, predicted and true, of each image that has what it takes; index: image_id.

    The lungs are the region's own, predicted and true; where only the infection was predicted, `lung_area`, the pixels of
    the true lungs, stands for both.
    """
    by_region = {region: rows.set_index("image_id") for region, rows in table.groupby("region")}
    if "infection" not in by_region:
        return pd.DataFrame({"predicted": [], "true": []})
    infection = by_region["infection"]
    area = infection["lung_area"].astype(np.float64)
    lungs = {"predicted": area, "true": area}
    if "lung" in by_region:
        lung = by_region["lung"].reindex(infection.index)
        lungs = {"predicted": lung["tp"] + lung["fp"], "true": lung["tp"] + lung["fn"]}
    found = {"predicted": infection["tp"] + infection["fp"], "true": infection["tp"] + infection["fn"]}
    shares = pd.DataFrame({name: (found[name] / lungs[name].where(lungs[name] > 0)).clip(upper=1) for name in found})
    return shares.dropna()


def score(table: pd.DataFrame) -> dict[str, Any]:
    """The body of metrics.json: JSON-ready, no NaN.

    `table`: image_id, region, tp, fp, fn, tn, hd95, assd, lung_area, and patient_id where known. Metrics are named
    `<region>/<metric>`: means over images, `_median`, `_pooled` over all pixels, and for the infected share of the lungs
    its mean absolute error (0–1) and Pearson correlation with the truth. Intervals by patient.
    """
    metrics: dict[str, float] = {}
    draws: dict[str, list[float]] = {}
    notes, alarms, intervals = [], [], None
    regions = [region for region in REGIONS if region in set(table["region"])]
    for region in regions:
        rows = table[table["region"] == region].reset_index(drop=True)
        metrics |= {f"{region}/{name}": value for name, value in _region(rows).items()}
        empty = rows["tp"] + rows["fn"] == 0
        if empty.any():
            clean = int((empty & (rows["fp"] == 0)).sum())
            metrics[f"{region}/clean_share"] = clean / int(empty.sum())
            notes.append(
                f"{int(empty.sum())} of {len(rows)} images have no {region}: they have no IoU and count in no mean of it; "
                f"{clean} of them were left clean."
            )
        elif region == "infection":
            notes.append(UNTESTED)
        if undefined := int(rows["hd95"].isna().sum()):
            notes.append(
                f"{region}: distances are undefined for {undefined} of {len(rows)} images, one side being empty."
            )
        if not (rows["tp"] + rows["fp"]).any():
            alarms.append(f"No {region} was predicted in any of the {len(rows)} images.")
        found = bootstrap.bootstrap(functools.partial(_resampled, _numbers(rows)), bootstrap.patients(rows))
        draws |= {f"{region}/{name}": interval for name, interval in found["intervals"].items()}
        intervals = intervals or found
    shares = infected_share(table)
    if len(shares) > 1:
        both = shares[["predicted", "true"]].to_numpy()
        metrics |= _severity(both, np.arange(len(both)))
        known = table.drop_duplicates("image_id").set_index("image_id").reindex(shares.index)
        found = bootstrap.bootstrap(functools.partial(_severity, both), bootstrap.patients(known))
        draws |= found["intervals"]
    assert intervals is not None, "a table without regions"
    return {
        "n": int(table["image_id"].nunique()),
        "regions": regions,
        "metrics": metrics,
        "intervals": {**intervals, "intervals": draws},
        "baselines": {},
        "alarms": alarms,
        "notes": notes,
    }


def _severity(shares: np.ndarray, take: np.ndarray) -> dict[str, float]:
    """Of infected shares (n, 2), predicted and true."""
    predicted, true = shares[take].T
    found = {"severity/mae": float(np.abs(predicted - true).mean())}
    if predicted.std() > 0 and true.std() > 0:
        found["severity/correlation"] = float(np.corrcoef(predicted, true)[0, 1])
    return found


def _region(rows: pd.DataFrame) -> dict[str, float]:
    values = per_image(rows).join(rows[["hd95", "assd"]])
    found = {name: float(values[name].mean()) for name in MEAN_OF if values[name].notna().any()}
    found |= {f"{name}_median": float(values[name].median()) for name in ("iou", "dice") if name in found}
    return found | pooled(rows)


def _numbers(rows: pd.DataFrame) -> np.ndarray:
    """(n, 5): IoU and Dice of each image, NaN where undefined, and its tp, fp, fn."""
    return np.column_stack([per_image(rows)[["iou", "dice"]].to_numpy(), rows[["tp", "fp", "fn"]].to_numpy(np.float64)])


def _resampled(numbers: np.ndarray, take: np.ndarray) -> dict[str, float]:
    numbers = numbers[take]
    known = numbers[~np.isnan(numbers[:, 0])]
    tp, fp, fn = numbers[:, 2:].sum(axis=0)
    if len(known) == 0:
        return {}
    union = tp + fp + fn
    means = dict(zip(("iou", "dice"), known[:, :2].mean(axis=0).tolist(), strict=True))
    return means | {"iou_pooled": tp / union, "dice_pooled": 2 * tp / (union + tp)}


def compare_pairs(ours: pd.DataFrame, theirs: pd.DataFrame, region: str, patients: Sequence[str] | None = None) -> Any:
    """Intervals of the paired differences (ours − theirs) of `HEADLINE`, by patient; both tables have the same images."""
    one, other = (
        table[table["region"] == region].sort_values("image_id").reset_index(drop=True) for table in (ours, theirs)
    )
    assert one["image_id"].tolist() == other["image_id"].tolist(), "tables of other images"
    mine, yours = _numbers(one), _numbers(other)
    groups = patients or bootstrap.patients(one)

    def difference(take: np.ndarray) -> dict[str, float]:
        here, there = _resampled(mine, take), _resampled(yours, take)
        return {name: here[name] - there[name] for name in here}

    return {"difference": difference(np.arange(len(one))), **bootstrap.bootstrap(difference, groups)}
