"""Segmentation of lungs and infections: losses, thresholds chosen on validation, and counts at each mask's own size."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
from clipcovid.data.rle import encode_mask
from clipcovid.evaluate import segmentation
from clipcovid.methods.segment.config import SegmentConfig
from clipcovid.methods.task import Batch, Examples, Predictor, Task, Validate
from clipcovid.models.normalization import undo_fit
from clipcovid.models.unet import Segmenter, build_segmenter

BINS = 20  # of probabilities: thresholds are chosen from 0.05, 0.10, …, 0.95
ATLAS_IMAGES = 1000  # training masks that the atlas is the mean of
SPECK = 5e-4  # of an image's pixels: smaller parts of a mask get no box
ZOOMS = (1.0, 0.9, 1.1)


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """The mean of the training masks: the baseline that sees no image."""

    maps: torch.Tensor
    """(regions, size, size) float32, from 0 to 1."""
    thresholds: list[float]
    """Those at which it is nearest to the training masks, one a region."""


class Segment(Task[SegmentConfig, Atlas | None]):
    """A map of probabilities for each region. The state is the training split's atlas; None in a checkpoint."""

    monitor: ClassVar[tuple[str, str]] = ("iou", "max")
    validation_metrics: ClassVar[dict[str, str]] = {"iou": "max"}

    def setup(self, data: Path, manifest: Manifest, embeddings: Embeddings | None = None) -> Atlas:
        """The atlas of at most `ATLAS_IMAGES` training masks."""
        train = super().examples(data, manifest, "train", None, training=True)
        masks = torch.from_numpy(train.read(np.arange(len(train))[:: max(1, len(train) // ATLAS_IMAGES)])["masks"])
        if self.by_boxes:
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
    def by_boxes(self) -> bool:
        """Whether it learns from boxes."""
        return self.config.supervision != "masks"

    def reader(
        self, packed: PackedImages, rows: pd.DataFrame, state: Atlas | None, *, training: bool = False
    ) -> Callable[[np.ndarray], Batch]:
        """Also `masks`, uint8 (n, regions, size, size), where all of these images have them.

        In training from boxes they are boxes instead, (n, the most that an image has, size, size).
        """
        inner, at = super().reader(packed, rows, state, training=training), packed.manifest.positions(rows["image_id"])
        kinds = self.config.required_columns
        known = bool((rows[list(kinds)] != "").all(axis=None))
        how = {"images": ImagesConfig(**packed.manifest.info["images"])}  # of this data set, maybe not the model's own
        if training and self.config.supervision == "boxes":  # what is wrong with them is known before the first step
            for row in rows[["boxes", "width", "height", "image_id"]].itertuples(index=False):
                read_boxes(*row)

        def read(take: np.ndarray) -> Batch:
            batch = inner(take) | {"about": [row | how for row in rows.iloc[take].to_dict("records")]}
            if training and self.by_boxes:
                batch["masks"] = self._boxes(packed, at[take], batch["about"])
            elif known:
                batch["masks"] = np.stack([np.array(packed.masks(kind, at[take])) for kind in kinds], axis=1)
            return batch

        return read

    def loss(self, module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The loss of the config's kind, a mean over images and regions: the same on any number of workers."""
        logits = module(batch["image"]).float()
        truth = batch["masks"].float() / 255
        if self.by_boxes:
            if truth.shape[-1] != logits.shape[-1]:
                truth = F.interpolate(truth, size=logits.shape[-1], mode="area").round()
            return {"loss": box_loss(logits, truth, self.config.box_fill)}
        if truth.shape != logits.shape:
            truth = F.interpolate(truth, size=logits.shape[-1], mode="area").round()
        with torch.no_grad():
            found, true = logits > 0, truth > 0.5
            both = (found & true).sum(dim=(2, 3)).float()
            union = (found | true).sum(dim=(2, 3)).float()
        iou = ((both + 1) / (union + 1)).mean()  # smoothed, since a batch may have empty masks; validation's is not
        return {"loss": segmentation_loss(logits, truth, self.config.loss), "smooth_iou": iou}

    def _boxes(self, packed: PackedImages, at: np.ndarray, about: Sequence[dict[str, Any]]) -> np.ndarray:
        """Each image's boxes, uint8 (n, k, size, size) of 0 and 255, those that it has fewer of left empty."""
        size, found = packed.size, []
        if self.config.supervision == "mask-boxes":
            found = [_parts(mask) for mask in packed.masks(self.config.required_columns[0], at) if mask is not None]
        else:
            found = [self._listed(row) for row in about]
        boxes = np.zeros((len(at), max(1, *map(len, found)), size, size), np.uint8)
        for number, some in enumerate(found):
            for place, box in enumerate(some):
                boxes[number, place] = box
        return boxes

    def _listed(self, about: dict[str, Any]) -> list[np.ndarray]:
        """The boxes that the data set lists for an image, as masks of the packed size."""
        shape, made = (about["height"], about["width"]), []
        for box in read_boxes(about["boxes"], about["width"], about["height"], about["image_id"]):
            if not self.config.box_labels or box.label in self.config.box_labels:
                mask = np.zeros(shape, np.uint8)
                mask[box.top : box.bottom, box.left : box.right] = 255
                made.append(fit_mask(mask, shape, self.images))
        return made

    def probabilities(self, module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Probabilities (n, regions, size, size); with tta the mean over mirrored and zoomed copies."""
        if not self.config.tta:
            return self._one_pass(module, images)
        found = []
        for zoom in ZOOMS:
            for mirror in (False, True):
                seen = _zoom(images, zoom).flip(dims=(2,)) if mirror else _zoom(images, zoom)
                maps = self._one_pass(module, seen)
                found.append(_zoom_maps(maps.flip(dims=(3,)) if mirror else maps, 1 / zoom))
        return torch.stack(found).mean(dim=0)

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
        found: dict[str, float] = {}
        for number, region in enumerate(self.config.regions):
            some = true[:, number, 0] > 0
            if not some.any():
                raise UserError(f"No image of a split has any {region}: there is nothing to choose a threshold by.")
            iou = (tp[some, number] / (true[some, number] + fp[some, number])).mean(axis=0)
            best = int(iou[1:].argmax()) + 1
            found |= {f"{region}_iou": float(iou[best]), f"{region}_threshold": best / BINS}
        return {"iou": float(np.mean([found[f"{region}_iou"] for region in self.config.regions]))} | found

    def calibrate(
        self, module: Any, train: Examples, state: Atlas | None, validate: Validate
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
        pool, aside = ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())), ThreadPoolExecutor(1)
        waiting: list[Future[np.ndarray]] = []

        def rows_of(found: np.ndarray, about: list[dict[str, Any]]) -> np.ndarray:
            rows = np.empty(len(found), object)
            rows[:] = list(pool.map(lambda maps, about: self._image(maps, about, thresholds), found, about))
            return rows

        def predict(batch: Batch) -> Future[np.ndarray]:
            found = maps(batch["image"]).float().cpu().numpy()
            while waiting:
                waiting.pop().result()
            waiting.append(aside.submit(rows_of, found, batch["about"]))
            return waiting[0]

        return predict

    def _image(self, maps: np.ndarray, about: dict[str, Any], thresholds: Sequence[float]) -> list[dict[str, Any]]:
        """The rows of an image: its masks at the size of the true ones, or else of the file, and what was counted."""
        frame, how = (about["height"], about["width"]), about["images"]
        truths = {
            region: decode_mask(read_bytes(path), frame, max_pixels=how.max_pixels, mask_value=how.mask_value) > 0
            for region in segmentation.REGIONS
            if (path := about[f"{region}_mask"])
        }
        shape = next((truths[region].shape for region in self.config.regions if region in truths), frame)
        lungs, rows = truths.get("lung"), []
        for region, mask in self.masks(maps, thresholds, shape, how.fit).items():
            row = {"image_id": about["image_id"], "region": region, "mask": encode_mask(mask)}
            if (truth := truths.get(region)) is not None:
                if truth.shape != mask.shape:
                    truth = _at(truth, mask.shape)
                row |= segmentation.count(mask, truth) | segmentation.distances(mask, truth)
            row["lung_area"] = float(lungs.mean() * mask.size) if lungs is not None else float("nan")
            rows.append(row)
        return rows

    def masks(
        self, maps: np.ndarray, thresholds: Sequence[float], shape: tuple[int, ...], fit: str
    ) -> dict[str, np.ndarray]:
        """The mask of each region, bool `shape` (h, w), of the maps (regions, size, size) of an image packed with `fit`."""
        whole = undo_fit(maps, (shape[0], shape[1]), resize_geometry(shape, maps.shape[1], fit))
        found = {
            region: values >= threshold
            for region, values, threshold in zip(self.config.regions, whole, thresholds, strict=True)
        }
        if self.config.within_lungs:
            found["lung"] = largest(
                found["lung"], self.config.components
            )  # first: no infection in a part that is dropped
            found["infection"] &= found["lung"]
        return {region: largest(mask, self.config.components) for region, mask in found.items()}

    def table(self, examples: Examples, outputs: np.ndarray, state: Atlas | None) -> pd.DataFrame:
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
    """What boxes say of a mask: nothing is outside of them, each row and column of a box is crossed, and most is filled.

    `logits` (n, 1, h, w); `boxes` (n, k, h, w), 1 inside, empty ones ignored; `fill`: the least share of a box. The
    constraints are those of Kervadec et al. 2020 (Bounding boxes for weakly supervised segmentation), with crossings as
    in multiple-instance learning (Hsu et al. 2019). A mean over images.
    """
    chance, inside = logits.sigmoid(), boxes > 0.5
    outside = ~inside.any(dim=1, keepdim=True)
    empty = (F.softplus(logits) * outside).sum(dim=(1, 2, 3)) / outside.sum(dim=(1, 2, 3)).clamp(min=1)
    seen, loss = chance * inside, empty
    for axis in (2, 3):
        crossed, lines = seen.amax(dim=axis), inside.any(dim=axis)
        missed = -crossed.clamp(min=1e-6).log() * lines
        loss = loss + missed.sum(dim=(1, 2)) / lines.sum(dim=(1, 2)).clamp(min=1)
    area = inside.sum(dim=(2, 3))
    lacking = (fill - seen.sum(dim=(2, 3)) / area.clamp(min=1)).clamp(min=0) * (area > 0)
    return (loss + 4 * lacking.sum(dim=1) / (area > 0).sum(dim=1).clamp(min=1)).mean()


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    """The box of each connected part of a mask, as masks; specks are left out."""
    found, _ = ndimage.label(mask)
    made = []
    for number, place in enumerate(ndimage.find_objects(found), 1):
        if (found[place] == number).sum() >= SPECK * mask.size:
            box = np.zeros_like(mask)
            box[place] = 255
            made.append(box)
    return made


def boundary_loss(probabilities: torch.Tensor, truth: torch.Tensor, reach: int = 2) -> torch.Tensor:
    """1 − F1 of the boundaries, of which those within `reach` pixels of another count as met; both (n, r, h, w)."""

    def edge(values: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(1 - values, 3, stride=1, padding=1) - (1 - values)

    def wide(values: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(values, 2 * reach + 1, stride=1, padding=reach)

    found, true = edge(probabilities), edge(truth)
    precision = ((found * wide(true)).sum(dim=(2, 3)) + 1) / (found.sum(dim=(2, 3)) + 1)
    recall = ((true * wide(found)).sum(dim=(2, 3)) + 1) / (true.sum(dim=(2, 3)) + 1)
    return (1 - 2 * precision * recall / (precision + recall)).mean()


def largest(mask: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest connected parts of a mask, bool (h, w); all of it where `count` is 0."""
    if not count:
        return mask
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    keep = np.argsort(-sizes, kind="stable")[:count]
    return np.isin(parts, keep[sizes[keep] > 0])


def _at(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask at another size, by the nearest pixel."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def _histograms(probabilities: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Pixels by image, region, truth (no, yes) and probability, (n, regions, 2, BINS) float32."""
    n, regions = probabilities.shape[:2]
    size = masks.shape[-2:]
    if probabilities.shape[-2:] != size:
        probabilities = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
    bins = (probabilities * BINS).long().clamp_(0, BINS - 1)
    cells = torch.arange(n * regions, device=masks.device).view(n, regions, 1, 1) * 2 + (masks > 127).long()
    counts = torch.bincount((cells * BINS + bins).flatten(), minlength=n * regions * 2 * BINS)
    return counts.view(n, regions, 2, BINS).float()


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
