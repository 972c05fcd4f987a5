"""Segmentation of lungs and infections: losses, thresholds chosen on validation, and counts at each mask's own size."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage

from clipcovid.config import ImagesConfig, UserError
from clipcovid.data.boxes import read_boxes
from clipcovid.data.embeddings import Embeddings
from clipcovid.data.images import fit_mask, read_bytes, resize_geometry
from clipcovid.data.manifest import Manifest
from clipcovid.data.masks import decode_mask
from clipcovid.data.packed import PackedImages
from clipcovid.data.rle import encode_rle
from clipcovid.evaluate import segmentation
from clipcovid.methods.segment.config import SegmentConfig
from clipcovid.methods.task import Batch, Examples, Predictor, Task, ValidateFn
from clipcovid.models.normalization import undo_fit
from clipcovid.models.unet import Segmenter, build_segmenter

THRESHOLD_BINS = 20  # of probabilities: thresholds are chosen from 0.05, 0.10, …, 0.95
ATLAS_IMAGES = 1000  # training masks that the atlas is the mean of
MIN_COMPONENT = 5e-4  # of an image's pixels: smaller parts of a mask get no box
TTA_SCALES = (1.0, 0.9, 1.1)


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """The mean of the training masks: the baseline that sees no image."""

    maps: torch.Tensor
    """(regions, size, size) float32, from 0 to 1."""
    thresholds: list[float]
    """Those at which it is nearest to the training masks, one a region."""


class SegmentationTask(Task[SegmentConfig, Atlas | None]):
    """A map of probabilities for each region. The state is the training split's atlas; None in a checkpoint."""

    monitor: ClassVar[tuple[str, str]] = ("iou", "max")
    validation_metrics: ClassVar[dict[str, str]] = {"iou": "max"}

    def setup(self, data: Path, manifest: Manifest, embeddings: Embeddings | None = None) -> Atlas:
        """The atlas of at most `ATLAS_IMAGES` training masks."""
        train = super().examples(data, manifest, "train", None, training=True)
        masks = torch.from_numpy(train.read(np.arange(len(train))[:: max(1, len(train) // ATLAS_IMAGES)])["masks"])
        if self.learns_from_boxes:
            masks = masks.amax(dim=1, keepdim=True)
        maps = masks.float().mean(dim=0) / 255
        best = self.validation_scores(train, _histograms(maps.expand(masks.shape), masks).numpy())
        return Atlas(maps=maps, thresholds=[best[f"{region}_threshold"] for region in self.config.regions])

    def build(self, train: Examples, state: Atlas | None) -> torch.nn.Module:
        """With a fresh decoder."""
        return self._segmenter(self.config.weights)

    def build_untrained(self, folder: Path) -> torch.nn.Module:
        """The same architecture at random."""
        return self._segmenter("none")

    def _segmenter(self, weights: str) -> Segmenter:
        config = self.config
        return build_segmenter(
            config.arch,
            config.encoder,
            weights,
            regions=len(config.regions),
            channels=3 if self.images.mode == "rgb" else 1,
            size=config.image_size or self.images.size,
            seed=config.seed,
        )

    @property
    def learns_from_boxes(self) -> bool:
        """Whether it learns from boxes."""
        return self.config.supervision != "masks"

    def reader(
        self, packed: PackedImages, rows: pd.DataFrame, state: Atlas | None, *, training: bool = False
    ) -> Callable[[np.ndarray], Batch]:
        """Also `masks`, uint8 (n, regions, size, size), where all of these images have them.

        In training from boxes they are boxes instead, (n, the most that an image has, size, size).
        """
        read_images, columns = super().reader(packed, rows, state, training=training), self.config.required_columns
        positions = packed.manifest.positions(rows["image_id"])
        have_masks = bool((rows[list(columns)] != "").all(axis=None))
        packing = {
            "images": ImagesConfig(**packed.manifest.info["images"])
        }  # this data set's, maybe not the model's own
        if training and self.config.supervision == "boxes":  # errors in them are raised before the first step
            for row in rows[["boxes", "width", "height", "image_id"]].itertuples(index=False):
                read_boxes(*row)

        def read(indices: np.ndarray) -> Batch:
            metadata: list[Any] = [row | packing for row in rows.iloc[indices].to_dict("records")]
            batch = read_images(indices) | {"metadata": metadata}
            if training and self.learns_from_boxes:
                batch["masks"] = self._boxes(packed, positions[indices], metadata)
            elif have_masks:
                masks = [np.array(packed.masks(column, positions[indices])) for column in columns]
                batch["masks"] = np.stack(masks, axis=1)
            return batch

        return read

    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The loss of the config's kind, a mean over images and regions: the same on any number of workers."""
        logits = module(batch["image"]).float()
        truth = batch["masks"].float() / 255
        if self.learns_from_boxes:
            if truth.shape[-1] != logits.shape[-1]:
                truth = F.interpolate(truth, size=logits.shape[-1], mode="area").round()
            return {"loss": box_loss(logits, truth, self.config.box_fill)}
        if truth.shape != logits.shape:
            truth = F.interpolate(truth, size=logits.shape[-1], mode="area").round()
        with torch.no_grad():
            predicted, true = logits > 0, truth > 0.5
            intersection = (predicted & true).sum(dim=(2, 3)).float()
            union = (predicted | true).sum(dim=(2, 3)).float()
        iou = (
            (intersection + 1) / (union + 1)
        ).mean()  # smoothed, since a batch may have empty masks; validation's is not
        return {"loss": segmentation_loss(logits, truth, self.config.loss), "smooth_iou": iou}

    def _boxes(self, packed: PackedImages, positions: np.ndarray, metadata: Sequence[dict[str, Any]]) -> np.ndarray:
        """Each image's boxes, uint8 (n, k, size, size) of 0 and 255, padded with empty ones to the most of an image."""
        if self.config.supervision == "mask-boxes":
            masks = packed.masks(self.config.required_columns[0], positions)
            boxes_by_image = [_bounding_boxes(mask) for mask in masks if mask is not None]
        else:
            boxes_by_image = [self._listed_boxes(row) for row in metadata]
        most = max(1, *map(len, boxes_by_image))
        padded = np.zeros((len(positions), most, packed.size, packed.size), np.uint8)
        for image, boxes in zip(padded, boxes_by_image, strict=False):
            for index, box in enumerate(boxes):
                image[index] = box
        return padded

    def _listed_boxes(self, metadata: dict[str, Any]) -> list[np.ndarray]:
        """The boxes that the data set lists for an image, as masks of the packed size."""
        height, width = shape = metadata["height"], metadata["width"]
        masks = []
        for box in read_boxes(metadata["boxes"], width, height, metadata["image_id"]):
            if not self.config.box_labels or box.label in self.config.box_labels:
                mask = np.zeros(shape, np.uint8)
                mask[box.top : box.bottom, box.left : box.right] = 255
                masks.append(fit_mask(mask, shape, self.images))
        return masks

    def probabilities(self, module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Probabilities (n, regions, size, size); with tta the mean over mirrored and zoomed copies."""
        if not self.config.tta:
            return self._one_pass(module, images)
        passes = []
        for zoom in TTA_SCALES:
            for mirror in (False, True):
                view = _zoom(images, zoom).flip(dims=(2,)) if mirror else _zoom(images, zoom)
                maps = self._one_pass(module, view)
                passes.append(_zoom_maps(maps.flip(dims=(3,)) if mirror else maps, 1 / zoom))
        return torch.stack(passes).mean(dim=0)

    def _one_pass(self, module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        return module(images).float().sigmoid()

    def predictor(self, module: torch.nn.Module) -> Predictor:
        """For validation: how many pixels of either truth have each probability, (n, regions, 2, BINS); in one pass."""
        return lambda batch: _histograms(self._one_pass(module, batch["image"]), batch["masks"])

    def validation_scores(self, examples: Examples, outputs: np.ndarray) -> dict[str, float]:
        """IoU at the threshold that is best for each region, a mean over images that have it, and those thresholds."""
        positive = outputs[..., ::-1].cumsum(axis=-1)[..., ::-1].astype(np.float64)  # at least the bin's lower edge
        fp, tp = positive[:, :, 0], positive[:, :, 1]
        true = tp[..., :1]
        scores: dict[str, float] = {}
        for index, region in enumerate(self.config.regions):
            present = true[:, index, 0] > 0
            if not present.any():
                raise UserError(f"No image of a split has any {region}: there is nothing to choose a threshold by.")
            iou = (tp[present, index] / (true[present, index] + fp[present, index])).mean(axis=0)
            best = int(iou[1:].argmax()) + 1
            scores |= {f"{region}_iou": float(iou[best]), f"{region}_threshold": best / THRESHOLD_BINS}
        return {"iou": float(np.mean([scores[f"{region}_iou"] for region in self.config.regions]))} | scores

    def select_on_validation(
        self, module: Any, train: Examples, state: Atlas | None, validate: ValidateFn
    ) -> tuple[dict[str, Any], Atlas | None]:
        """Keep the thresholds that validate best, with the weights; with as many passes as predictions have."""
        scores = validate(lambda batch: _histograms(self.probabilities(module, batch["image"]), batch["masks"]))
        thresholds = {region: scores[f"{region}_threshold"] for region in self.config.regions}
        module.thresholds.copy_(torch.tensor(list(thresholds.values())))
        return {"thresholds": thresholds}, state

    def test_predictor(self, module: Any, state: Atlas | None) -> Predictor:
        """Each image's rows of the predictions table, an object array (n,) of lists."""
        return self._rows_of(lambda images: self.probabilities(module, images), module.thresholds.tolist())

    def variants(self, module: torch.nn.Module, state: Atlas | None) -> dict[str, Predictor]:
        """Beside the method itself the atlas: the mean training mask for every image."""
        assert state is not None, "made by setup"
        maps = state.maps
        return {
            "": self.test_predictor(module, state),
            "atlas": self._rows_of(lambda images: maps.expand(len(images), *maps.shape), state.thresholds),
        }

    def _rows_of(self, maps: Callable[[torch.Tensor], torch.Tensor], thresholds: Sequence[float]) -> Predictor:
        """The masks of a batch are made and counted while the model has the next one; no more than one batch waits."""
        pool, background = ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())), ThreadPoolExecutor(1)
        waiting: list[Future[np.ndarray]] = []

        def score_batch(probabilities: np.ndarray, metadata: list[dict[str, Any]]) -> np.ndarray:
            rows = np.empty(len(probabilities), object)
            score = partial(self.score_image, thresholds=thresholds)
            rows[:] = list(pool.map(score, probabilities, metadata))
            return rows

        def predict(batch: Batch) -> Future[np.ndarray]:
            probabilities = maps(batch["image"]).float().cpu().numpy()
            while waiting:
                waiting.pop().result()
            waiting.append(background.submit(score_batch, probabilities, batch["metadata"]))
            return waiting[0]

        return predict

    def score_image(
        self, maps: np.ndarray, metadata: dict[str, Any], thresholds: Sequence[float]
    ) -> list[dict[str, Any]]:
        """The predictions table's rows of an image, one a region: masks at the size of the true ones, or of the file.

        `maps` (regions, size, size): probabilities. `metadata`: the image's manifest row, and how it was packed as `images`.
        """
        file_shape, packing = (metadata["height"], metadata["width"]), metadata["images"]
        truths = {
            region: decode_mask(
                read_bytes(path), file_shape, max_pixels=packing.max_pixels, mask_value=packing.mask_value
            )
            > 0
            for region in segmentation.REGIONS
            if (path := metadata[f"{region}_mask"])
        }
        shape = next((truths[region].shape for region in self.config.regions if region in truths), file_shape)
        lungs, rows = truths.get("lung"), []
        for region, mask in self.masks(maps, thresholds, shape, packing.fit).items():
            row = {"image_id": metadata["image_id"], "region": region, "mask": encode_rle(mask)}
            if (truth := truths.get(region)) is not None:
                if truth.shape != mask.shape:
                    truth = _resize(truth, mask.shape)
                row |= segmentation.count_pixels(mask, truth) | segmentation.surface_distances(mask, truth)
            row["lung_area"] = float(lungs.mean() * mask.size) if lungs is not None else float("nan")
            rows.append(row)
        return rows

    def masks(
        self, maps: np.ndarray, thresholds: Sequence[float], shape: tuple[int, ...], fit: str
    ) -> dict[str, np.ndarray]:
        """The mask of each region, bool `shape` (h, w), of the maps (regions, size, size) of an image packed with `fit`."""
        unpacked = undo_fit(maps, (shape[0], shape[1]), resize_geometry(shape, maps.shape[1], fit))
        masks = {
            region: probabilities >= threshold
            for region, probabilities, threshold in zip(self.config.regions, unpacked, thresholds, strict=True)
        }
        if self.config.within_lungs:
            # the lungs' parts first: there is no infection in a part that is dropped
            masks["lung"] = keep_largest_components(masks["lung"], self.config.components)
            masks["infection"] &= masks["lung"]
        return {region: keep_largest_components(mask, self.config.components) for region, mask in masks.items()}

    def predictions_table(self, examples: Examples, outputs: np.ndarray, state: Atlas | None) -> pd.DataFrame:
        """A row an image and region: image_id, region, tp, fp, fn, tn, hd95, assd, lung_area, mask."""
        table = pd.DataFrame([row for rows in outputs for row in rows])
        return table.reindex(columns=["image_id", "region", *segmentation.COUNTS, "hd95", "assd", "lung_area", "mask"])


def segmentation_loss(logits: torch.Tensor, truth: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss of logits and truth (0 or 1), both (n, regions, h, w) float32: a mean over images and regions.

    dice-bce: soft Dice of each mask + cross entropy. dice-focal: with the focal loss (Lin et al. 2017) in its place.
    tversky: misses weigh .7, false alarms .3 (Salehi et al. 2017). dice-boundary: dice-bce + the boundary's F1
    (Bokhovkin and Burnaev 2019).
    """
    from segmentation_models_pytorch import losses

    n, regions, height, width = logits.shape
    one_each = (1, n * regions, height, width)  # these losses sum over images; here each mask is a class of one image
    values, wanted = logits.reshape(one_each), truth.reshape(one_each)
    if kind == "tversky":
        return losses.TverskyLoss("multilabel", alpha=0.3, beta=0.7, smooth=1.0)(values, wanted)
    dice = losses.DiceLoss("multilabel", smooth=1.0)(values, wanted)
    if kind == "dice-focal":
        return dice + losses.FocalLoss("binary", alpha=0.25)(logits, truth)
    loss = dice + F.binary_cross_entropy_with_logits(logits, truth)
    return loss + boundary_loss(logits.sigmoid(), truth) if kind == "dice-boundary" else loss


def box_loss(logits: torch.Tensor, boxes: torch.Tensor, fill: float) -> torch.Tensor:
    """The constraints of boxes on a mask: nothing outside of them, each row and column of a box crossed, most of it filled.

    `logits` (n, 1, h, w); `boxes` (n, k, h, w), 1 inside, empty ones ignored; `fill`: the least share of a box. The
    constraints are those of Kervadec et al. 2020 (Bounding boxes for weakly supervised segmentation), with crossings as
    in multiple-instance learning (Hsu et al. 2019). A mean over images.
    """
    probabilities, inside = logits.sigmoid(), boxes > 0.5
    outside = ~inside.any(dim=1, keepdim=True)
    empty = (F.softplus(logits) * outside).sum(dim=(1, 2, 3)) / outside.sum(dim=(1, 2, 3)).clamp(min=1)
    boxed, loss = probabilities * inside, empty
    for axis in (2, 3):
        crossed, lines = boxed.amax(dim=axis), inside.any(dim=axis)
        missed = -crossed.clamp(min=1e-6).log() * lines
        loss = loss + missed.sum(dim=(1, 2)) / lines.sum(dim=(1, 2)).clamp(min=1)
    area = inside.sum(dim=(2, 3))
    lacking = (fill - boxed.sum(dim=(2, 3)) / area.clamp(min=1)).clamp(min=0) * (area > 0)
    return (loss + 4 * lacking.sum(dim=1) / (area > 0).sum(dim=1).clamp(min=1)).mean()


def _bounding_boxes(mask: np.ndarray) -> list[np.ndarray]:
    """The box of each connected part of a mask, as masks; specks are left out."""
    parts, _ = ndimage.label(mask)
    boxes = []
    for part, slices in enumerate(ndimage.find_objects(parts), 1):
        if (parts[slices] == part).sum() >= MIN_COMPONENT * mask.size:
            box = np.zeros_like(mask)
            box[slices] = 255
            boxes.append(box)
    return boxes


def boundary_loss(probabilities: torch.Tensor, truth: torch.Tensor, reach: int = 2) -> torch.Tensor:
    """1 − F1 of the boundaries, whose pixels match within `reach` pixels of the other boundary; both (n, r, h, w)."""

    def edge(values: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(1 - values, 3, stride=1, padding=1) - (1 - values)

    def dilate(values: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(values, 2 * reach + 1, stride=1, padding=reach)

    predicted, true = edge(probabilities), edge(truth)
    precision = ((predicted * dilate(true)).sum(dim=(2, 3)) + 1) / (predicted.sum(dim=(2, 3)) + 1)
    recall = ((true * dilate(predicted)).sum(dim=(2, 3)) + 1) / (true.sum(dim=(2, 3)) + 1)
    return (1 - 2 * precision * recall / (precision + recall)).mean()


def keep_largest_components(mask: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest connected parts of a mask, bool (h, w); all of it where `count` is 0."""
    if not count:
        return mask
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    keep = np.argsort(-sizes, kind="stable")[:count]
    return np.isin(parts, keep[sizes[keep] > 0])


def _resize(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask at another size, by the nearest pixel."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def _histograms(probabilities: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Pixels by image, region, truth (no, yes) and probability, (n, regions, 2, BINS) float32."""
    n, regions = probabilities.shape[:2]
    size = masks.shape[-2:]
    if probabilities.shape[-2:] != size:
        probabilities = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
    bins = (probabilities * THRESHOLD_BINS).long().clamp_(0, THRESHOLD_BINS - 1)
    cells = torch.arange(n * regions, device=masks.device).view(n, regions, 1, 1) * 2 + (masks > 127).long()
    counts = torch.bincount((cells * THRESHOLD_BINS + bins).flatten(), minlength=n * regions * 2 * THRESHOLD_BINS)
    return counts.view(n, regions, 2, THRESHOLD_BINS).float()


def _zoom_maps(maps: torch.Tensor, zoom: float) -> torch.Tensor:
    """(n, k, h, w) float32 seen `zoom` times as large, around the middle."""
    if zoom == 1:
        return maps
    theta = torch.tensor([[1 / zoom, 0, 0], [0, 1 / zoom, 0]], device=maps.device).expand(len(maps), 2, 3)
    grid = F.affine_grid(theta, list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, align_corners=False)


def _zoom(images: torch.Tensor, zoom: float) -> torch.Tensor:
    if zoom == 1:
        return images
    if images.ndim == 3:
        return _zoom_maps(images.float().unsqueeze(1), zoom).squeeze(1)
    return _zoom_maps(images.float().permute(0, 3, 1, 2), zoom).permute(0, 2, 3, 1)
