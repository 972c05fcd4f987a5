"""Trained models as functions of images as they come from files: no prepared data set, no Ray.

They are opened from a run's folder, or from one that `export_model` made, which brings the encoder too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcovid.config import ClipConfig, ImagesConfig, UserError
from clipcovid.data.images import fit_image
from clipcovid.io.files import read_json_object
from clipcovid.methods.checkpoints import PROMPTS, read_checkpoint
from clipcovid.methods.registry import METHODS
from clipcovid.ray_backend.resources import resolve_precision

if TYPE_CHECKING:
    from clipcovid.models.clip_model import Clip

BATCH_SIZE = 32
ENCODER_FOLDER = "encoder"  # of an exported folder: the CLIP whose embeddings the model reads
ZEROSHOT_FILE = "zeroshot.json"  # of an exported folder without a checkpoint: how images are read, and CLIP's precision


@dataclass(frozen=True, kw_only=True)
class ImageClassifier:
    """Probabilities of classes."""

    classes: tuple[str, ...]
    images: ImagesConfig
    """How images are brought to the square that it reads."""
    predict: Callable[[np.ndarray], np.ndarray]
    """Images uint8 (n, size, size) or (n, size, size, 3) → probabilities float (n, k)."""

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities (n, k), rows that sum to 1, of images uint8 (h, w) or (h, w, 3) of any size.

        Raises `BadImage` for one that can't be brought to the square, `UserError` for numbers that are not finite.
        """
        parts = [self.predict(pixels) for pixels in _fitted_batches(images, self.images)]
        outputs = np.concatenate(parts) if parts else np.empty((0, len(self.classes)))
        if not np.isfinite(outputs).all():
            raise UserError("The classifier gives probabilities that are not finite: train it anew.")
        return outputs


@dataclass(frozen=True, kw_only=True)
class ImageSegmenter:
    """Masks of regions."""

    regions: tuple[str, ...]
    task: Any
    module: Any

    def masks(self, images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """For each image, uint8 (h, w) or (h, w, 3), region → bool (h, w) of its own size."""
        import torch

        found, device = list[dict[str, np.ndarray]](), next(self.module.parameters()).device
        thresholds, fit = self.module.thresholds.tolist(), self.task.images.fit
        with torch.no_grad():
            for pixels in _fitted_batches(images, self.task.images):
                maps = self.task.probabilities(self.module, torch.from_numpy(pixels).to(device))
                for probabilities in maps.float().cpu().numpy():
                    shape = images[len(found)].shape[:2]
                    found.append(self.task.masks(probabilities, thresholds, shape, fit))
        return found


def _fitted_batches(images: Sequence[np.ndarray], size: ImagesConfig) -> Iterator[np.ndarray]:
    """Batches of images brought to one square, uint8 (n, size, size) or (n, size, size, 3)."""
    for start in range(0, len(images), BATCH_SIZE):
        yield np.stack([fit_image(image, size) for image in images[start : start + BATCH_SIZE]])


def load_model(folder: Path) -> ImageClassifier | ImageSegmenter:
    """The model that `export_model` left in `folder`."""
    if (folder / ZEROSHOT_FILE).is_file():
        return _load_zeroshot(folder)
    kind = METHODS[read_checkpoint(folder)[0].task].kind
    return load_classifier(folder) if kind == "classification" else load_segmenter(folder)


def load_classifier(run: Path) -> ImageClassifier:
    """The classifier of images in a run's folder, or an exported one; a run of another kind is a `UserError`."""
    config = _check_kind(run, "classification")
    from clipcovid.methods.task import load_checkpoint
    from clipcovid.models.clip_model import default_device

    task, module, state = load_checkpoint(run)
    predictor = task.test_predictor(module.to(default_device()).eval(), state)
    images = task.images
    if not METHODS[config.task].uses_embeddings:
        predict = _predictor(predictor, config.optim.precision, lambda pixels: {"image": pixels})
        return ImageClassifier(classes=task.classes, images=images, predict=predict)
    clip = _load_encoder(run, config.clip.precision)
    predict = _predictor(predictor, config.optim.precision, lambda pixels: {"embedding": embed_pixels(clip, pixels)})
    if config.input == "raw":
        images = replace(images, size=clip.image_size)
    return ImageClassifier(classes=task.classes, images=images, predict=predict)


def load_segmenter(run: Path) -> ImageSegmenter:
    """The segmenter in a run's folder, or an exported one; a run of another kind is a `UserError`."""
    config = _check_kind(run, "segmentation")
    from clipcovid.methods.task import load_checkpoint
    from clipcovid.models.clip_model import default_device

    task, module, _ = load_checkpoint(run)
    return ImageSegmenter(regions=tuple(config.regions), task=task, module=module.to(default_device()).eval())


def _load_zeroshot(folder: Path) -> ImageClassifier:
    """CLIP with the texts of the classes."""
    from clipcovid.inference.zeroshot import softmax
    from clipcovid.models.clip_model import class_embeddings

    settings, prompts = read_json_object(folder / ZEROSHOT_FILE), read_json_object(folder / PROMPTS)
    clip = _load_encoder(folder, settings["precision"])
    texts, images = class_embeddings(clip, prompts).T, ImagesConfig(**settings["images"])
    if settings["input"] == "raw":
        images = replace(images, size=clip.image_size)
    return ImageClassifier(
        classes=tuple(prompts),
        images=images,
        predict=lambda pixels: softmax(clip.logit_scale * embed_pixels(clip, pixels) @ texts),
    )


def embed_pixels(clip: "Clip", pixels: np.ndarray) -> np.ndarray:
    """Embeddings float32 (n, d) of uint8 images, rounded to float16 as cached ones are."""
    return clip.encode_images(pixels).half().float().cpu().numpy()


def _load_encoder(folder: Path, precision: str) -> "Clip":
    from clipcovid.models.clip import load_clip
    from clipcovid.models.clip_model import default_device

    device = default_device()
    config = ClipConfig(pretrained=str(folder / ENCODER_FOLDER))
    return load_clip(config, device=device, precision=resolve_precision(precision, device))


def _check_kind(run: Path, kind: str) -> Any:
    """The config of a run that predicts this kind from images; another is a `UserError`."""
    config, _, _ = read_checkpoint(run)
    method = METHODS[config.task]
    if method.kind != kind or (method.uses_embeddings and not (run / ENCODER_FOLDER).is_dir()):
        raise UserError(f"{run} is a {config.title} run; this wants one of {kind} from images.")
    return config


def _predictor(
    predictor: Any, precision: str, to_batch: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pixels (n, …) to probabilities (n, k), in the precision that the run is predicted in."""
    import pandas as pd

    from clipcovid.inference.predict import device_context
    from clipcovid.methods.task import Examples
    from clipcovid.models.clip_model import default_device
    from clipcovid.training.loop import predict

    context = device_context(default_device(), precision)

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        batch = to_batch(pixels)

        def read(indices: np.ndarray) -> dict[str, np.ndarray]:
            return {name: values[indices] for name, values in batch.items()}

        return predict(predictor, Examples(rows=pd.DataFrame(index=range(len(pixels))), read=read), context)

    return probabilities
