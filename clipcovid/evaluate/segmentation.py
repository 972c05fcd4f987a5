"""Scores of segmentations from the pixels counted in each image: one row an image and a region, at the mask's own size.

The rule for empty masks: an image without any foreground has no IoU, Dice or sensitivity, whatever was predicted, so it
never counts as a perfect 1.0. Such images are counted apart, with how many of them were left clean. An image whose
foreground was missed altogether counts with 0. Distances are undefined where either side is empty, and counted as such.
"""

import numpy as np
import pandas as pd

REGIONS = ("lung", "infection")
COUNTS = ("tp", "fp", "fn", "tn")
NO_NEGATIVES_NOTE = "Every image here has an infection: what would be found in lungs without one is unknown."


def count_pixels(predicted: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Pixels of two masks, bool (h, w): tp, fp, fn, tn."""
    tp, positive, true = (int(np.count_nonzero(mask)) for mask in (predicted & truth, predicted, truth))
    return {"tp": tp, "fp": positive - tp, "fn": true - tp, "tn": truth.size - positive - true + tp}


def surface_distances(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """`hd95` and `assd` in pixels of two masks, bool (h, w); NaN where either is empty.

    The 95th percentile of the symmetric Hausdorff distance and the average symmetric surface distance, by contours that are
    weighted by their length (Nikolov et al. 2018, the package surface-distance).
    """
    if not (predicted.any() and truth.any()):
        return {"hd95": float("nan"), "assd": float("nan")}
    import surface_distance

    surfaces = surface_distance.compute_surface_distances(truth, predicted, (1.0, 1.0))
    from_truth, from_predicted = surface_distance.compute_average_surface_distance(surfaces)
    lengths = surfaces["surfel_areas_gt"].sum(), surfaces["surfel_areas_pred"].sum()
    assd = (from_truth * lengths[0] + from_predicted * lengths[1]) / sum(lengths)
    return {"hd95": float(surface_distance.compute_robust_hausdorff(surfaces, 95)), "assd": float(assd)}


def per_image_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """`iou`, `dice`, `sensitivity`, `precision` of each row from its counts, NaN where the rule above leaves it undefined."""
    tp, fp, fn = (table[name].to_numpy(np.float64) for name in ("tp", "fp", "fn"))
    truth = tp + fn > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {
            "iou": np.where(truth, tp / (tp + fp + fn), np.nan),
            "dice": np.where(truth, 2 * tp / (2 * tp + fp + fn), np.nan),
            "sensitivity": np.where(truth, tp / (tp + fn), np.nan),
            "precision": np.where(truth & (tp + fp > 0), tp / (tp + fp), np.nan),
        }
    return pd.DataFrame(values, index=table.index)


def pooled_metrics(table: pd.DataFrame) -> dict[str, float]:
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
    areas = {"predicted": infection["tp"] + infection["fp"], "true": infection["tp"] + infection["fn"]}
    shares = pd.DataFrame({name: (areas[name] / lungs[name].where(lungs[name] > 0)).clip(upper=1) for name in areas})
    return shares.dropna()
