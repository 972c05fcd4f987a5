"""CLIP by name and weights, through open_clip: published weights, files, folders, runs of ours, and `tiny`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from clipcovid.config import ClipConfig, UserError
from clipcovid.io.files import atomic_write, write_json
from clipcovid.models.availability import check_clip_available
from clipcovid.models.clip_model import DTYPES, Clip, build_untrained_clip, silence_logging, text_tower_cfg
from clipcovid.models.dual_encoder import write_text_tower
from clipcovid.models.formats import is_openai_clip
from clipcovid.models.hugging_face import conversion_problem, load_hf_clip, save_hf_clip
from clipcovid.models.state_dicts import State, check_weights, error_reason, load_matching, print_note
from clipcovid.models.weights import OPENCLIP_CONFIG, checkpoint_folder, is_hf, weights_file

CONFIG_FOLDER = Path(__file__).parent / "configs"


def load_clip(config: ClipConfig, *, seed: int = 0, device: str = "cpu", precision: str = "fp32") -> Clip:
    """Build the model that `config` names with exactly the weights it names, or raise `UserError`: nothing falls back.

    `precision` is a resolved one (`fp32`, `bf16`, `fp16`). In bf16 and fp16 the weights are stored so, but for LayerNorm's.
    Random weights (`none`) follow from `seed`.
    """
    check_clip_available(config)
    import open_clip  # seconds of import, spared to whoever only asks for an identity

    open_clip.add_model_config(CONFIG_FOLDER)
    path, published = Path(config.pretrained), config.pretrained != "none"
    name, file, quick_gelu = config.model, None, False
    towers: dict[str, Any] = {}
    if path.is_dir():
        folder = checkpoint_folder(path).resolve()
        if is_hf(folder):
            return _from_hf(folder, device=device, precision=precision)
        name, file, published, towers = f"local-dir:{folder}", weights_file(folder), False, text_tower_cfg(folder)
    elif path.is_file():
        file, published, quick_gelu = path, False, is_openai_clip(path)
        if quick_gelu and not open_clip.get_model_config(name).get("quick_gelu"):
            print_note(
                f"{path} is CLIP as OpenAI published it: {name} gets QuickGELU, the activation that it was trained with."
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
        _load_file(model, file, config.model if path.is_file() else "the model of its config")
    check_weights(model.state_dict(), f"--clip.pretrained {config.pretrained}")
    model_cfg = dict(open_clip.get_model_config(name)) | ({"quick_gelu": True} if quick_gelu else {})
    return Clip(model, tokenizer, model_cfg, device=device, dtype=DTYPES[precision])


def _load_file(model: Any, path: Path, name: str) -> None:
    """Load a file that holds the whole model, as open_clip, its forerunners or MobileCLIP name the tensors."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    def convert(state: State) -> State:
        state = convert_state_dict(model, dict(state))
        return state if hasattr(model, "positional_embedding") else convert_to_custom_text_state_dict(state)

    state = load_matching(path, model.state_dict(), name, "--clip.pretrained", convert=convert)
    model.load_state_dict(model.state_dict() | state)


def _from_hf(folder: Path, *, device: str, precision: str) -> Clip:
    """The model in a Hugging Face CLIPModel folder."""
    model_cfg, state, preprocess_cfg = load_hf_clip(folder)
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

    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().float().contiguous().cpu() for key, value in clip.model.state_dict().items()}
    with atomic_write(folder / "model.safetensors") as partial:
        save_file(state, partial)
    write_open_clip_config(folder, clip)
    write_text_tower(folder, clip)
    if hf and not conversion_problem(_full_model_cfg(clip), cast(Any, clip.model.visual).preprocess_cfg):
        save_hf_clip(folder / "hf", clip)


def write_open_clip_config(folder: Path, clip: Clip) -> None:
    """Write what open_clip needs to build the model anew: architecture, and how images are normalised."""
    both = {"model_cfg": _full_model_cfg(clip), "preprocess_cfg": cast(Any, clip.model.visual).preprocess_cfg}
    write_json(folder / OPENCLIP_CONFIG, both)


def _full_model_cfg(clip: Clip) -> dict[str, Any]:
    bias = getattr(clip.model, "logit_bias", None)  # SigLIP's loss adds one to models that have none
    return clip.model_cfg | ({} if bias is None else {"init_logit_bias": float(bias.detach())})


def _load_error(config: ClipConfig, error: Exception) -> str:
    what = f"The weights {config.pretrained!r} for {config.model}" if config.pretrained != "none" else config.model
    if Path(config.pretrained).exists():
        return f"{what} can't be loaded: {error_reason(error)}. Do they belong to that --clip.model?"
    return (
        f"{what} can't be had ({error_reason(error)}): give --clip.pretrained a local .safetensors, .pt or checkpoint "
        "folder, or "
        "none for random weights."
    )
