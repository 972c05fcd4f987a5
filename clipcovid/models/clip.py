"""CLIP by name and weights, through open_clip: published weights, files, folders, runs of ours, and `tiny`."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from clipcovid.config import ClipConfig, UserError
from clipcovid.io.files import atomic_write, write_json
from clipcovid.models.formats import is_openais_clip
from clipcovid.models.normalization import ImageNormalizer
from clipcovid.models.published import check_clip
from clipcovid.models.state_dicts import State, check_finite, load_fitting, note, reason
from clipcovid.models.weights import OPENCLIP_CONFIG, TEXT_TOWER, checkpoint_folder, is_hf, weights_file

OWN_CONFIGS = Path(__file__).parent / "configs"
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

    def pixels(self, images: np.ndarray) -> torch.Tensor:
        """Normalised model input (n, 3, size, size) from uint8 images (n, h, w) or (n, h, w, 3) of any size."""
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise UserError(f"Images must be uint8 (n, h, w) or (n, h, w, 3), not {images.dtype} {images.shape}.")
        writable = images if images.flags.writeable else images.copy()  # torch warns of memory that it could write to
        return self.to_input(torch.from_numpy(writable).to(self.device, non_blocking=True))

    @torch.no_grad()
    def encode_images(self, images: np.ndarray) -> torch.Tensor:
        """Features (n, d) of uint8 images as `pixels` takes them, on the model's device."""
        features = self.model.encode_image(self.pixels(images))
        return F.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """Features (n, d) of texts; what overflows the context is cut off (count it with `count_truncated`)."""
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = self.tokens(texts[start : start + batch_size]).to(self.device)
            parts.append(F.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu())
        return torch.cat(parts)

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids (n, t) int64 of texts: t is the context, or with a Hugging Face text encoder the longest of them."""
        return self.trim_padding(self.tokenizer(list(texts)))

    def trim_padding(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (n, t) without the columns that are padding for all of them, where the text encoder can do without."""
        encoder = getattr(getattr(self.model, "text", None), "config", None)
        if encoder is None:  # open_clip's own have a place for each token of the context
            return tokens
        used = (tokens != encoder.pad_token_id).any(dim=0).nonzero()
        return tokens[:, : int(used.max()) + 1 if len(used) else 1]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, start and end marks counted, before anything is cut off."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            return [len(self.tokenizer.encode(text)) + 2 for text in texts]
        return [len(ids) for ids in inner(list(texts), truncation=False)["input_ids"]]

    def count_truncated(self, texts: Sequence[str]) -> dict[str, int]:
        """How much of the texts the context cuts off: `texts` and `tokens`."""
        cut = [length - self.tokenizer.context_length for length in self.lengths(texts)]
        return {"texts": sum(c > 0 for c in cut), "tokens": sum(c for c in cut if c > 0)}


def default_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cosine_logits(scale: float | torch.Tensor, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """`scale` · cosines (n, k) of rows of L2 norm 1, in fp32 even under autocast: bf16 has steps of a half near 100."""
    with torch.autocast(images.device.type, enabled=False):
        return scale * images.float() @ texts.float().T


def load_clip(config: ClipConfig, *, seed: int = 0, device: str = "cpu", precision: str = "fp32") -> Clip:
    """Build the model that `config` names with exactly the weights it names, or raise `UserError`: nothing falls back.

    `precision` is a resolved one (`fp32`, `bf16`, `fp16`). In bf16 and fp16 the weights are stored so, but for LayerNorm's.
    Random weights (`none`) follow from `seed`.
    """
    check_clip(config)
    import open_clip  # seconds of import, spared to whoever only asks for an identity

    open_clip.add_model_config(OWN_CONFIGS)
    place, published = Path(config.pretrained), config.pretrained != "none"
    name, file, quick_gelu = config.model, None, False
    towers: dict[str, Any] = {}
    if place.is_dir():
        folder = checkpoint_folder(place).resolve()
        if is_hf(folder):
            return _from_hf(folder, device=device, precision=precision)
        name, file, published, towers = f"local-dir:{folder}", weights_file(folder), False, _text_tower(folder)
    elif place.is_file():
        file, published, quick_gelu = place, False, is_openais_clip(place)
        if quick_gelu and not open_clip.get_model_config(name).get("quick_gelu"):
            note(
                f"{place} is CLIP as OpenAI published it: {name} gets QuickGELU, the activation that it was trained with."
            )
    elif published and not name.startswith("hf-hub:"):  # OpenAI's were trained with it; open_clip only warns
        quick_gelu = bool(open_clip.get_pretrained_cfg(name, config.pretrained).get("quick_gelu"))
    with silence_logging():
        torch.manual_seed(seed)
        try:
            model = open_clip.create_model(
                name,
                pretrained=config.pretrained if published and not name.startswith("hf-hub:") else None,
                precision=precision,
                device=device,
                load_weights=published,
                require_pretrained=published,
                pretrained_text=False,  # with the whole model's weights or with none, a tower needs none of its own
                force_quick_gelu=quick_gelu,
                **towers,
            )
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # the hub, pickle, JSON and torch each raise their own kinds
            raise UserError(_load_error(config, error)) from error
    if file is not None:
        _load_file(model, file, config.model if place.is_file() else "the model of its config")
    check_finite(model.state_dict(), f"--clip.pretrained {config.pretrained}")
    model_cfg = dict(open_clip.get_model_config(name)) | ({"quick_gelu": True} if quick_gelu else {})
    return Clip(model, tokenizer, model_cfg, device=device, dtype=DTYPES[precision])


def _load_file(model: Any, path: Path, name: str) -> None:
    """Load a file that holds the whole model, as open_clip, its forerunners or MobileCLIP name the tensors."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    def convert(state: State) -> State:
        state = convert_state_dict(model, dict(state))
        return state if hasattr(model, "positional_embedding") else convert_to_custom_text_state_dict(state)

    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state = load_fitting(path, shapes, name, "--clip.pretrained", convert=convert)
    model.load_state_dict(model.state_dict() | state)


def _from_hf(folder: Path, *, device: str, precision: str) -> Clip:
    """The model in a Hugging Face CLIPModel folder."""
    from clipcovid.models.hugging_face import from_hf

    model_cfg, state, preprocess_cfg = from_hf(folder)
    try:
        with TemporaryDirectory() as empty:
            write_json(Path(empty) / OPENCLIP_CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
            clip = build_untrained_clip(Path(empty), device=device, precision=precision)
        clip.model.load_state_dict(state)
    except Exception as error:  # sizes that don't fit are torch's errors, towers that can't be are open_clip's
        raise UserError(f"{folder} can't be loaded: {' '.join(str(error).split())[:300]}.") from error
    return clip


def save_clip(folder: Path, clip: Clip, hf: bool = True) -> None:
    """Write a checkpoint that this project and open_clip (`local-dir:…`) load: safetensors and open_clip's config.

    With `hf`, `hf/` in it is the same model as a Hugging Face CLIPModel, where that can express it.
    """
    from safetensors.torch import save_file

    from clipcovid.models.dual_encoder import write_text_tower
    from clipcovid.models.hugging_face import conversion_problem, save_hf

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().float().contiguous().cpu() for key, value in clip.model.state_dict().items()}
    with atomic_write(folder / "model.safetensors") as partial:
        save_file(state, partial)
    write_open_clip_config(folder, clip)
    write_text_tower(folder, clip)
    if hf and not conversion_problem(_whole_cfg(clip), cast(Any, clip.model.visual).preprocess_cfg):
        save_hf(folder / "hf", clip)


def write_open_clip_config(folder: Path, clip: Clip) -> None:
    """Write what open_clip needs to build the model anew: architecture, and how images are normalised."""
    both = {"model_cfg": _whole_cfg(clip), "preprocess_cfg": cast(Any, clip.model.visual).preprocess_cfg}
    write_json(folder / OPENCLIP_CONFIG, both)


def _whole_cfg(clip: Clip) -> dict[str, Any]:
    bias = getattr(clip.model, "logit_bias", None)  # SigLIP's loss adds one to models that have none
    return clip.model_cfg | ({} if bias is None else {"init_logit_bias": float(bias.detach())})


def _text_tower(folder: Path) -> dict[str, Any]:
    """What tells open_clip where a checkpoint's Hugging Face text encoder is described, if it has one."""
    if not (folder / TEXT_TOWER).is_dir():
        return {}
    text_cfg = json.loads((folder / OPENCLIP_CONFIG).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    return {"text_cfg": text_cfg | {"hf_model_name": str(folder / TEXT_TOWER), "hf_model_pretrained": False}}


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
            **_text_tower(folder),
        )
        tokenizer = open_clip.get_tokenizer(name)
    return Clip(model, tokenizer, dict(open_clip.get_model_config(name)), device=device, dtype=DTYPES[precision])


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


@contextmanager
def silence_logging() -> Iterator[None]:
    """Silence open_clip's remarks on the root logger and the hub's retries: what goes wrong is raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _load_error(config: ClipConfig, error: Exception) -> str:
    what = f"The weights {config.pretrained!r} for {config.model}" if config.pretrained != "none" else config.model
    if Path(config.pretrained).exists():
        return f"{what} can't be loaded: {reason(error)}. Do they belong to that --clip.model?"
    return (
        f"{what} can't be had ({reason(error)}): give --clip.pretrained a local .safetensors, .pt or checkpoint folder, or "
        "none for random weights."
    )
