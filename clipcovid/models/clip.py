"""CLIP by name and weights, through open_clip: published weights, files, folders, runs of ours, and `tiny`."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from clipcovid.config import ClipConfig, UserError
from clipcovid.models.weights import OPENCLIP_CONFIG, checkpoint_folder, weights_of

OWN_CONFIGS = Path(__file__).parent / "configs"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Clip:
    """A CLIP model in evaluation mode that takes uint8 images and texts, and gives L2-normalised float32 features."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any, *, device: str, dtype: torch.dtype) -> None:
        self.model = cast(Any, model.eval()).to(memory_format=torch.channels_last)
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.dtype = dtype
        preprocess = cast(Any, model.visual).preprocess_cfg
        size = preprocess["size"]
        self.image_size = int(size if isinstance(size, int) else size[0])
        mean, std = (torch.tensor(preprocess[key]) for key in ("mean", "std"))
        self._scale = (1 / (255 * std)).to(self.device, dtype)
        self._offset = (-mean / std).to(self.device, dtype)

    @property
    def logit_scale(self) -> float:
        """The learned inverse temperature by which cosine similarities are multiplied (CLIP, Radford et al. 2021)."""
        return float(self.model.logit_scale.detach().exp())

    def pixels(self, images: np.ndarray) -> torch.Tensor:
        """Normalised model input (n, 3, size, size) from uint8 images (n, h, w) or (n, h, w, 3) of any size."""
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise UserError(f"Images must be uint8 (n, h, w) or (n, h, w, 3), not {images.dtype} {images.shape}.")
        writable = images if images.flags.writeable else images.copy()  # torch warns of memory that it could write to
        raw = torch.from_numpy(writable).to(self.device, non_blocking=True)
        raw = raw.unsqueeze(3) if raw.ndim == 3 else raw
        values = raw.to(self.dtype)
        if values.shape[1:3] != (self.image_size, self.image_size):
            resized = F.interpolate(
                raw.permute(0, 3, 1, 2).float(), size=self.image_size, mode="bicubic", antialias=True
            )
            values = resized.clamp_(0, 255).round_().to(self.dtype).permute(0, 2, 3, 1)
        # One fused pass, channels last, that also expands gray to three channels on the device: a third of the bytes.
        return torch.addcmul(self._offset, values, self._scale).permute(0, 3, 1, 2)

    @torch.no_grad()
    def encode_images(self, images: np.ndarray) -> torch.Tensor:
        """Features (n, d) of uint8 images as `pixels` takes them, on the model's device."""
        features = self.model.encode_image(self.pixels(images))
        return F.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """Features (n, d) of texts; what overflows the context is cut off (count it with `overflow`)."""
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = self.tokenizer(list(texts[start : start + batch_size])).to(self.device)
            parts.append(F.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu())
        return torch.cat(parts)

    def overflow(self, texts: Sequence[str]) -> dict[str, int]:
        """How much of the texts the context cuts off: `texts` and `tokens`, start and end marks counted."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            lengths = [len(self.tokenizer.encode(text)) + 2 for text in texts]
        else:
            lengths = [len(ids) for ids in inner(list(texts), truncation=False)["input_ids"]]
        cut = [length - self.tokenizer.context_length for length in lengths]
        return {"texts": sum(c > 0 for c in cut), "tokens": sum(c for c in cut if c > 0)}


def default_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_clip(config: ClipConfig, *, seed: int = 0, device: str = "cpu", precision: str = "fp32") -> Clip:
    """Build the model that `config` names with exactly the weights it names, or raise `UserError`: nothing falls back.

    `precision` is a resolved one (`fp32`, `bf16`, `fp16`). In bf16 and fp16 the weights are stored so, but for LayerNorm's.
    Random weights (`none`) follow from `seed`.
    """
    weights_of(config, seed)
    import open_clip  # seconds of import, spared to whoever only asks for an identity

    open_clip.add_model_config(OWN_CONFIGS)
    random = config.pretrained == "none"
    name, pretrained, quick_gelu = config.model, None if random else config.pretrained, False
    if Path(config.pretrained).is_dir():
        name, pretrained = f"local-dir:{checkpoint_folder(Path(config.pretrained)).resolve()}", None
    elif name.startswith("hf-hub:"):
        pretrained = None
    elif name not in open_clip.list_models():
        raise UserError(
            f"--clip.model {name!r} is unknown: use {_close(name, open_clip.list_models())}, hf-hub:… or tiny."
        )
    elif pretrained and not Path(pretrained).is_file():
        tag = open_clip.get_pretrained_cfg(name, pretrained)
        if not tag:
            tags = open_clip.list_pretrained_tags_by_model(name)
            raise UserError(
                f"--clip.pretrained {pretrained!r} is no weights tag of {name}: use {', '.join(tags)}, a path or none."
            )
        quick_gelu = bool(tag.get("quick_gelu"))  # OpenAI's weights were trained with it; open_clip only warns
    with _quiet():
        torch.manual_seed(seed)
        try:
            model = open_clip.create_model(
                name,
                pretrained=pretrained,
                precision=precision,
                device=device,
                load_weights=not random,
                require_pretrained=not random,
                force_quick_gelu=quick_gelu,
            )
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # the hub, pickle, JSON and torch each raise their own kinds
            raise UserError(_why_not(config, error)) from error
    return Clip(
        model,
        tokenizer,
        device=device,
        dtype={"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32),
    )


def save_clip(folder: Path, clip: Clip, config: ClipConfig) -> None:
    """Write a checkpoint that this project and open_clip (`local-dir:…`) load: safetensors and both configs."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    named = config.model
    if Path(config.pretrained).is_dir():
        named = f"local-dir:{checkpoint_folder(Path(config.pretrained)).resolve()}"
    open_clip.add_model_config(OWN_CONFIGS)
    state = {key: value.detach().float().contiguous().cpu() for key, value in clip.model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    both = {
        "model_cfg": open_clip.get_model_config(named),
        "preprocess_cfg": cast(Any, clip.model.visual).preprocess_cfg,
    }
    (folder / OPENCLIP_CONFIG).write_text(json.dumps(both, indent=1))
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip's remarks on the root logger and the hub's retries: what goes wrong is raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _why_not(config: ClipConfig, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    what = f"The weights {config.pretrained!r} for {config.model}" if config.pretrained != "none" else config.model
    if Path(config.pretrained).exists():
        return f"{what} can't be loaded: {first[:300]}. Do they belong to that --clip.model?"
    return (
        f"{what} can't be had ({first[:300]}): give --clip.pretrained a local .safetensors, .pt or checkpoint folder, or "
        "none for random weights."
    )


def _close(name: str, known: Sequence[str]) -> str:
    import difflib

    return ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.3) or list(known)[:4])
