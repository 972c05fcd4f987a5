"""Segmentations: a mask of each region for every image, and the pixels counted in it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from clipcovid.config import ImagesConfig
from clipcovid.data.images import fit_mask
from clipcovid.data.masks import check_mask_files
from clipcovid.data.rle import decode_rle
from clipcovid.evaluate import bootstrap
from clipcovid.evaluate.draws import Resampler
from clipcovid.evaluate.examples import ExampleGroup, ExampleImage
from clipcovid.evaluate.hits import Hits
from clipcovid.evaluate.kinds.base import Kind
from clipcovid.evaluate.number_format import agree, describe_resampling, format_interval, format_number
from clipcovid.evaluate.scores import Scores
from clipcovid.evaluate.segmentation import (
    NO_NEGATIVES_NOTE,
    REGIONS,
    infected_share,
    per_image_metrics,
    pooled_metrics,
)
from clipcovid.evaluate.text_table import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipcovid.data.packed import PackedImages

MEAN_METRICS = ("iou", "dice", "sensitivity", "precision", "hd95", "assd")
IMAGES_PER_RANK = 3  # images of each rank
HIT_REGIONS, IOU_RIGHT = ("infection", "lung"), 0.5  # the regions by which images are right, and from where on


@dataclass(frozen=True, kw_only=True)
class SegmentationScores(Scores):
    """Scores of masks: metrics are named `<region>/<metric>`, and `severity/<metric>` for the infected share."""

    kind = "segmentation"
    json_marker = "regions"
    json_order = ("n", "regions", "metrics", "intervals", "baselines", "alarms", "notes")

    regions: list[str]


class Segmentation(Kind[SegmentationScores]):
    """A row an image and region. Columns: region, tp, fp, fn, tn, hd95, assd, lung_area, mask, and patient_id where known."""

    name = "segmentation"
    title = "segmentations"
    truth_column = "tp"
    key_columns: ClassVar[tuple[str, ...]] = ("image_id", "region")
    scores_type = SegmentationScores
    key_metrics: ClassVar[Mapping[str, str]] = {"infection/iou": "infection IoU", "lung/iou": "lung IoU"}
    table_metrics: ClassVar[Mapping[str, str]] = {
        f"{region}/{metric}": f"{region}\n{metric}".replace("_", "\n")
        for region in REGIONS
        for metric in ("iou", "iou_pooled")
    }

    def columns(self, classes: Sequence[str]) -> list[str]:
        """image_id and region; the counts are those of images that have a true mask."""
        return ["image_id", "region"]

    def check_images(self, rows: pd.DataFrame) -> None:
        """Refuse rows whose mask files are gone: they are scored at the files' own size."""
        check_mask_files(rows)

    def score(
        self,
        table: pd.DataFrame,
        classes: Sequence[str] = (),
        train_labels: Sequence[str] | None = None,
        similarities: np.ndarray | None = None,
    ) -> SegmentationScores:
        """Scores of the counted pixels; no classes, labels or similarities are needed.

        Metrics are means over images, `_median`, `_pooled` over all pixels, and for the infected share of the lungs its
        mean absolute error (0–1) and Pearson correlation with the truth. Intervals by patient.
        """
        values: dict[str, float] = {}
        notes, alarms, per_region = [], [], []
        regions = [region for region in REGIONS if region in set(table["region"])]
        assert regions, "a table without regions"
        for region in regions:
            rows = table[table["region"] == region].reset_index(drop=True)
            values |= {f"{region}/{name}": value for name, value in _region_metrics(rows).items()}
            notes += _region_notes(rows, region)
            if not (rows["tp"] + rows["fp"]).any():
                alarms.append(f"No {region} was predicted in any of the {len(rows)} images.")
            resampled = functools.partial(_resampled, _numbers(rows))
            per_region.append(bootstrap.bootstrap(resampled, bootstrap.patient_groups(rows)))
        bounds = {
            f"{region}/{name}": pair
            for region, intervals in zip(regions, per_region, strict=True)
            for name, pair in intervals["intervals"].items()
        }
        severity, severity_bounds = _severity_scores(table)
        return SegmentationScores(
            n=int(table["image_id"].nunique()),
            regions=regions,
            metrics=values | severity,
            intervals={**per_region[0], "intervals": bounds | severity_bounds},
            baselines={},
            alarms=alarms,
            notes=notes,
        )

    def tables(self, scores: SegmentationScores) -> list[TextTable]:
        """All metrics with their intervals."""
        rows = [
            (
                name.replace("severity/", "infected share, ").replace("_", " ").replace("/", " "),
                format_number(value),
                format_interval(scores.intervals["intervals"].get(name)),
            )
            for name, value in scores.metrics.items()
        ]
        return [
            TextTable(
                title=f"{scores.n:,} images",
                caption=f"{describe_resampling(scores.intervals)}; distances in pixels of the masks; "
                "the infected share is of the lungs",
                headers=("metric", "value", f"{scores.intervals['level']:.0%} interval"),
                sections=[rows],
                border="full",
                bold=1,
            )
        ]

    def figures(
        self,
        table: pd.DataFrame,
        scores: SegmentationScores,
        classes: Sequence[str],
        open_images: Callable[[], PackedImages],
        *,
        split: str,
    ) -> dict[str, Figure]:
        """`overlays_<region>`: its best, median and worst images, of those that have it."""
        packed = open_images()
        figures = {}
        for region in scores.regions:
            rows = table[table["region"] == region]
            iou = per_image_metrics(rows)["iou"].dropna().sort_values(ascending=False)
            if len(iou):
                figures[f"overlays_{region}"] = _overlays(rows, iou, packed, region)
        return figures

    def resampler(self, tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> Resampler:
        """Mean and pooled IoU and Dice of each region that all tables predict."""
        image_ids = tables[0]["image_id"].unique()
        numbers = {
            region: [
                _numbers(table[table["region"] == region].set_index("image_id").reindex(image_ids)) for table in tables
            ]
            for region in REGIONS
            if all(region in set(table["region"]) for table in tables)
        }

        def resample(indices: np.ndarray) -> dict[str, np.ndarray]:
            values: dict[str, np.ndarray] = {}
            for region, arrays in numbers.items():
                metrics = [_resampled(array, indices) for array in arrays]
                values |= {f"{region}/{name}": np.array([entry[name] for entry in metrics]) for name in metrics[0]}
            return values

        return resample

    def examples(self, tables: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> list[ExampleGroup]:
        """The first method's best, median and worst images of each region, with its masks."""
        name, table = next(iter(tables.items()))
        groups = []
        for region in (region for region in REGIONS if region in set(table["region"])):
            rows = table[table["region"] == region].reset_index(drop=True)
            iou = per_image_metrics(rows)["iou"].dropna().sort_values(ascending=False)
            for rank, values in _best_median_worst(iou).items():
                picked = zip(rows.loc[values.index, "image_id"], rows.loc[values.index, "mask"], values, strict=True)
                images = tuple(
                    ExampleImage(
                        image_id=image_id,
                        caption=f"IoU {value:.2f}",
                        masks={f"{region}_mask": decode_rle(mask)} if mask else {},
                    )
                    for image_id, mask, value in picked
                )
                groups.append(ExampleGroup(title=f"{name}, {region}: {rank} of {len(iou):,} images", images=images))
        return groups

    def hits(self, tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> Hits | None:
        """Right: an IoU of at least 0.5, of the first of `HIT_REGIONS` that all tables predict; without it, nothing found."""
        image_ids = tables[0]["image_id"].unique()
        region = next((name for name in HIT_REGIONS if all(name in set(table["region"]) for table in tables)), None)
        if region is None:
            return None
        right = []
        for table in tables:
            rows = table[table["region"] == region].set_index("image_id").reindex(image_ids)
            iou = per_image_metrics(rows)["iou"].to_numpy()
            right.append(np.where(np.isnan(iou), rows["fp"].to_numpy() == 0, iou >= IOU_RIGHT))
        return Hits(
            f"the {region}'s IoU is at least {IOU_RIGHT}, or nothing was found where there is none", np.stack(right)
        )

    def describe_predictions(self, table: pd.DataFrame, image_ids: Sequence[str], classes: Sequence[str]) -> list[str]:
        """The IoU of each region."""
        texts = []
        by_image = dict(iter(table.groupby("image_id")))
        for image_id in image_ids:
            rows = by_image[image_id]
            values = zip(rows["region"], per_image_metrics(rows)["iou"], rows["fp"], strict=True)
            texts.append(
                ", ".join(
                    f"{region}: {fp:,} pixels of none" if np.isnan(iou) else f"{region} IoU {iou:.2f}"
                    for region, iou, fp in values
                )
            )
        return texts

    @property
    def truth_name(self) -> str:
        """What the counted pixels are counted against."""
        return "true mask"

    def comparison_truth(self, table: pd.DataFrame) -> pd.DataFrame:
        """The number of each region's true pixels."""
        pixels = (table["tp"] + table["fn"]).astype("Int64")
        regions = pd.DataFrame({"image_id": table["image_id"], "region": table["region"], "pixels": pixels})
        wide = regions.pivot(index="image_id", columns="region", values="pixels").reindex(table["image_id"].unique())
        return wide.rename(columns=lambda region: f"the true {region} pixels").reset_index(drop=True)


def _region_metrics(rows: pd.DataFrame) -> dict[str, float]:
    """The metrics of a region's rows, and the share of images without any that were left clean."""
    values = per_image_metrics(rows).join(rows[["hd95", "assd"]])
    means = {name: float(values[name].mean()) for name in MEAN_METRICS if values[name].notna().any()}
    means |= {f"{name}_median": float(values[name].median()) for name in ("iou", "dice") if name in means}
    empty = rows["tp"] + rows["fn"] == 0
    clean = {"clean_share": int((empty & (rows["fp"] == 0)).sum()) / int(empty.sum())} if empty.any() else {}
    return means | pooled_metrics(rows) | clean


def _region_notes(rows: pd.DataFrame, region: str) -> list[str]:
    notes = []
    empty = rows["tp"] + rows["fn"] == 0
    if empty.any():
        clean = int((empty & (rows["fp"] == 0)).sum())
        notes.append(
            f"{int(empty.sum())} of {len(rows)} images have no {region}: they have no IoU and count in no mean of it; "
            f"{clean} of them {agree(clean, 'was', 'were')} left clean."
        )
    elif region == "infection":
        notes.append(NO_NEGATIVES_NOTE)
    if undefined := int(rows["hd95"].isna().sum()):
        notes.append(f"{region}: distances are undefined for {undefined} of {len(rows)} images, one side being empty.")
    return notes


def _severity_scores(table: pd.DataFrame) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics of the infected share of the lungs, and their intervals; nothing for fewer than two images."""
    shares = infected_share(table)
    if len(shares) < 2:
        return {}, {}
    pairs = shares[["predicted", "true"]].to_numpy()
    images = table.drop_duplicates("image_id").set_index("image_id").reindex(shares.index)
    intervals = bootstrap.bootstrap(functools.partial(_severity, pairs), bootstrap.patient_groups(images))
    return _severity(pairs, np.arange(len(pairs))), intervals["intervals"]


def _severity(shares: np.ndarray, indices: np.ndarray) -> dict[str, float]:
    """Of infected shares (n, 2), predicted and true."""
    predicted, true = shares[indices].T
    values = {"severity/mae": float(np.abs(predicted - true).mean())}
    if predicted.std() > 0 and true.std() > 0:
        values["severity/correlation"] = float(np.corrcoef(predicted, true)[0, 1])
    return values


def _numbers(rows: pd.DataFrame) -> np.ndarray:
    """(n, 5): IoU and Dice of each image, NaN where undefined, and its tp, fp, fn."""
    return np.column_stack(
        [per_image_metrics(rows)[["iou", "dice"]].to_numpy(), rows[["tp", "fp", "fn"]].to_numpy(np.float64)]
    )


def _resampled(numbers: np.ndarray, indices: np.ndarray) -> dict[str, float]:
    """iou, dice, iou_pooled and dice_pooled of some images; nothing where none of them has any foreground."""
    numbers = numbers[indices]
    defined = numbers[~np.isnan(numbers[:, 0])]
    tp, fp, fn = np.nansum(numbers[:, 2:], axis=0)
    if len(defined) == 0:
        return {}
    union = tp + fp + fn
    means = dict(zip(("iou", "dice"), defined[:, :2].mean(axis=0).tolist(), strict=True))
    return means | {"iou_pooled": tp / union, "dice_pooled": 2 * tp / (union + tp)}


def _best_median_worst(iou: pd.Series) -> dict[str, pd.Series]:
    """The images at both ends and in the middle of `iou`, which is sorted from the best down."""
    middle = max(0, len(iou) // 2 - 1)
    return {
        "best": iou[:IMAGES_PER_RANK],
        "median": iou[middle : middle + IMAGES_PER_RANK],
        "worst": iou[-IMAGES_PER_RANK:],
    }


def _overlays(rows: pd.DataFrame, iou: pd.Series, packed: PackedImages, region: str) -> Figure:
    """The masks of the images with the best, middle and worst of `iou`, which is sorted from the best down."""
    from clipcovid.evaluate import plots  # matplotlib: a training's first step does not wait for its figures

    ranks = _best_median_worst(iou)
    picked = rows.loc[[index for values in ranks.values() for index in values.index]]
    titles = [f"{rank}: IoU {value:.2f}" for rank, values in ranks.items() for value in values]
    positions = packed.manifest.positions(picked["image_id"])
    masks = [decode_rle(text).astype(np.uint8) * 255 for text in picked["mask"]]
    how = ImagesConfig(**packed.manifest.info["images"])
    return plots.overlays_figure(
        packed.images(positions),
        packed.masks(f"{region}_mask", positions),
        [fit_mask(mask, mask.shape, how) for mask in masks],
        [f"{title}\n{image_id}" for title, image_id in zip(titles, picked["image_id"], strict=True)],
        title=f"{region}: green true, red predicted",
    )


KIND = Segmentation()
