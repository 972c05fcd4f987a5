"""What `mlflow models serve` runs: image files in base64 in, classes or masks out.

MLflow runs this file by its path inside a registered model, which has the package beside it, and its weights.
"""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from PIL import Image

from clipcovid.config import ImagesConfig, UserError
from clipcovid.data.images import decode_pixels
from clipcovid.data.pixels import BadImage
from clipcovid.inference.image_models import BATCH_SIZE, ImageClassifier, ImageSegmenter, load_model

IMAGE = "image"  # the column of the input: an image file (PNG, JPEG, TIFF, BMP, WebP, GIF or DICOM) in base64
MAX_BYTES = 64 << 20  # of a file: a radiograph of 16 bits a pixel has some 20 MiB


class ServedModel(PythonModel):
    """A classifier or a segmenter of images."""

    model: ImageClassifier | ImageSegmenter

    def load_context(self, context: Any) -> None:
        """Load the weights that are kept in the model."""
        self.model = load_model(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """A row an image of the column `image`; one that can't be read refuses all, with a sentence that names it."""
        texts = list(model_input[IMAGE])
        tables = []
        for start in range(0, len(texts), BATCH_SIZE):  # so that no more than these are decoded at a time
            batch = [
                decode_image_text(text, start + at, len(texts))
                for at, text in enumerate(texts[start : start + BATCH_SIZE])
            ]
            try:
                tables.append(predict_table(self.model, batch))
            except (BadImage, UserError) as error:
                raise MlflowException.invalid_parameter_value(f"The images can't be predicted: {error}") from error
        return pd.concat(tables, ignore_index=True) if tables else predict_table(self.model, [])


def decode_image_text(text: str, number: int, count: int) -> np.ndarray:
    """The pixels, uint8 (h, w) or (h, w, 3), of an image file in base64; what is none is an error with the reason.

    `number`: which of the `count` images of the request it is, from 0.
    """
    try:
        if len(text) > MAX_BYTES * 4 // 3 + 4:
            raise BadImage(f"larger than {MAX_BYTES >> 20} MiB")
        return decode_pixels(decode_base64(text), max_pixels=ImagesConfig.max_pixels)
    except BadImage as error:
        reason = str(error)
    raise MlflowException.invalid_parameter_value(f"Image {number + 1} of {count}: {reason}.")


def decode_base64(text: str) -> bytes:
    """The bytes that a text stands for, whose lines may be wrapped; what is not base64 raises `BadImage`."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise BadImage("is not base64: send the file's bytes as `base64 FILE` prints them") from None


def predict_table(model: ImageClassifier | ImageSegmenter, images: Sequence[np.ndarray]) -> pd.DataFrame:
    """predicted and prob_<class>, or of each region its mask, a PNG in base64, and its share of the image."""
    if isinstance(model, ImageClassifier):
        outputs = model.probabilities(images).astype(np.float64)
        table = pd.DataFrame(outputs, columns=[f"prob_{name}" for name in model.classes])
        table.insert(0, "predicted", [model.classes[index] for index in outputs.argmax(axis=1)])
        return table
    columns: dict[str, list[Any]] = {f"{region}_{part}": [] for region in model.regions for part in ("mask", "share")}
    for masks in model.masks(images):
        for region, mask in masks.items():
            columns[f"{region}_mask"].append(encode_mask(mask))
            columns[f"{region}_share"].append(float(mask.mean()))
    return pd.DataFrame(columns)


def encode_mask(mask: np.ndarray) -> str:
    """A mask, bool (h, w), as a PNG of 0 and 255 in base64."""
    file = BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


set_model(ServedModel())
