"""A CLIP model: its towers behind one interface, and how it is built from open_clip's config. `clip` loads and saves it."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from clipcovid.config import UserError
from clipcovid.models.normalization import ImageNormalizer
from clipcovid.models.weights import OPENCLIP_CONFIG, TEXT_TOWER_FOLDER

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Clip:
    """A CLIP model in evaluation mode that takes uint8 images and texts, and gives L2-normalised float32 features."""

    def __init__(
        self, model: torch.nn.Module, tokenizer: Any, model_cfg: dict[str, Any], *, device: str, dtype: torch.dtype
    ) -> None:
        """`model_cfg`: what open_clip builds the model from."""
        self.model = cast(Any, model.eval()).to(memory_format=torch.channels_last)
        self.tokenizer = tokenizer
        self.model_cfg = model_cfg
        self.dtype = dtype
        preprocess = cast(Any, model.visual).preprocess_cfg
        size = preprocess["size"]
        self.image_size = int(size if isinstance(size, int) else size[0])
        self.to_input = ImageNormalizer(preprocess["mean"], preprocess["std"], self.image_size, dtype).to(device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> float:
        """The learned inverse temperature by which cosine similarities are multiplied (CLIP, Radford et al. 2021)."""
        return float(self.model.logit_scale.detach().exp())

    def preprocess(self, images: np.ndarray) -> torch.Tensor:
        """Normalised model input (n, 3, size, size) from uint8 images (n, h, w) or (n, h, w, 3) of any size."""
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise UserError(f"Images must be uint8 (n, h, w) or (n, h, w, 3), not {images.dtype} {images.shape}.")
        writable = images if images.flags.writeable else images.copy()  # torch warns of memory that it could write to
        return self.to_input(torch.from_numpy(writable).to(self.device, non_blocking=True))

    @torch.no_grad()
    def encode_images(self, images: np.ndarray) -> torch.Tensor:
        """Features (n, d) of uint8 images as `preprocess` takes them, on the model's device."""
        features = self.model.encode_image(self.preprocess(images))
        return F.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """Features (n, d) of texts; what overflows the context is cut off (count it with `count_truncated`)."""
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = self.tokenize(texts[start : start + batch_size]).to(self.device)
            parts.append(F.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu())
        return torch.cat(parts)

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids (n, t) int64 of texts: t is the context, or with a Hugging Face text encoder the longest of them."""
        return self.trim_padding(self.tokenizer(list(texts)))

    def trim_padding(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (n, t) without the columns that are padding for all of them, where the text encoder can do without."""
        encoder = getattr(getattr(self.model, "text", None), "config", None)
        if encoder is None:  # open_clip's own have a place for each token of the context
            return tokens
        used = (tokens != encoder.pad_token_id).any(dim=0).nonzero()
        return tokens[:, : int(used.max()) + 1 if len(used) else 1]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, start and end marks counted, before anything is cut off."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            return [len(self.tokenizer.encode(text)) + 2 for text in texts]
        return [len(ids) for ids in inner(list(texts), truncation=False)["input_ids"]]

    def count_truncated(self, texts: Sequence[str]) -> dict[str, int]:
        """How much of the texts the context cuts off: `texts` and `tokens`."""
        cut = [length - self.tokenizer.context_length for length in self.token_counts(texts)]
        return {"texts": sum(c > 0 for c in cut), "tokens": sum(c for c in cut if c > 0)}


def default_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cosine_logits(scale: float | torch.Tensor, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """`scale` · cosines (n, k) of rows of L2 norm 1, in fp32 even under autocast: bf16 has steps of a half near 100."""
    with torch.autocast(images.device.type, enabled=False):
        return scale * images.float() @ texts.float().T


def class_embeddings(clip: Clip, prompts: Mapping[str, Sequence[str]]) -> np.ndarray:
    """One float32 row of L2 norm 1 a class: the mean of its prompts' embeddings, normalised again."""
    texts = [text for group in prompts.values() for text in group]
    encoded, start, means = clip.encode_texts(texts).numpy(), 0, []
    for group in prompts.values():
        mean = encoded[start : start + len(group)].mean(axis=0)
        means.append(mean / np.linalg.norm(mean))
        start += len(group)
    return np.stack(means)


def checkpoint_activations(model: Any) -> None:
    """Have both towers compute their activations again in the backward pass, instead of keeping them."""
    inner: Any = getattr(getattr(model, "text", None), "transformer", None)
    if not hasattr(inner, "activation_checkpointing_enable"):
        model.set_grad_checkpointing()
        return
    model.visual.set_grad_checkpointing()  # open_clip calls Hugging Face's towers by a name that they have given up
    inner.config.use_cache = False
    inner.activation_checkpointing_enable()


def build_untrained_clip(
    folder: Path, *, device: str = "cpu", precision: str = "fp32", timm_weights: bool = False
) -> Clip:
    """The model that the open_clip config in `folder` describes, with random weights.

    `timm_weights`: but for the image encoder, whose weights are timm's published ones.
    """
    import open_clip

    name = f"local-dir:{folder.resolve()}"
    with silence_logging():
        model = open_clip.create_model(
            name,
            precision=precision,
            device=device,
            load_weights=False,
            require_pretrained=False,
            pretrained_image=timm_weights,
            pretrained_text=False,
            **text_tower_cfg(folder),
        )
        tokenizer = open_clip.get_tokenizer(name)
    return Clip(model, tokenizer, dict(open_clip.get_model_config(name)), device=device, dtype=DTYPES[precision])


def text_tower_cfg(folder: Path) -> dict[str, Any]:
    """The open_clip config entry that points to a checkpoint's Hugging Face text encoder; empty if it has none."""
    if not (folder / TEXT_TOWER_FOLDER).is_dir():
        return {}
    text_cfg = json.loads((folder / OPENCLIP_CONFIG).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    return {"text_cfg": text_cfg | {"hf_model_name": str(folder / TEXT_TOWER_FOLDER), "hf_model_pretrained": False}}


@contextmanager
def silence_logging() -> Iterator[None]:
    """Silence open_clip's remarks on the root logger and the hub's retries: what goes wrong is raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
