"""Whether weights can be had, known in seconds: before Ray starts, and before a library tries the network for a minute.

Files are looked at (see `formats`), published weights are looked for in Hugging Face's cache, and where they are not there
the hub is asked for them once. No torch here.
"""

import importlib
import importlib.util
import re
import sys
import threading
import types
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from clipcovid.config import ClipConfig, UserError, summarize_error
from clipcovid.models import weights as places
from clipcovid.models.formats import hugging_face_folder, safetensors_shapes, weights_format
from clipcovid.models.weight_detection import open_clip_configs

HUB_TIMEOUT_S = 4.0  # seconds that the hub has to answer
_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_FILES = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_FOLDER = "--clip.pretrained a local file or folder, or none for random weights"
_FILE = "--weights a local file, or none for random weights"


def check_clip_available(config: ClipConfig) -> None:
    """A CLIP whose weights are not there, not readable, or not to be had is a `UserError`."""
    location = places.locate_weights(config)
    if isinstance(location, list):
        for file in location:
            check_file(file)
    elif config.model.startswith("hf-hub:"):
        files = ("open_clip_config.json",) if location == "none" else _OPEN_CLIP_FILES
        _check_hub(config.model.removeprefix("hf-hub:"), files, config.model, _FOLDER)
    elif config.model not in open_clip_configs():
        matches = ", ".join(close_matches(config.model, open_clip_configs()))
        raise UserError(f"--clip.model {config.model!r} is unknown: use {matches}, hf-hub:… or tiny.")
    elif location != "none":
        _check_tag(config.model, location)


def check_timm_available(arch: str, weights: str) -> None:
    """`check_clip_available` for a timm architecture and its `weights`: pretrained, a file, or none."""
    name, _, tag = arch.partition(".")
    if not is_timm_architecture(name):
        raise UserError(
            f"--arch {arch!r} is not a timm architecture: use {', '.join(close_matches(name, timm_names()))}, …"
        )
    if weights == "pretrained":
        tags = [tag] if tag else re.findall(rf"['\"]{re.escape(name)}\.(\w+)\*?['\"]", _timm_sources())
        tag = next(iter(tags), "*")  # the first is the one that timm takes by default
        _check_hub(f"timm/{name}.{tag}", _FILES, arch, _FILE, others=f"timm/{name}.*")
    elif weights != "none":
        _check_weights_file(weights, "pretrained or none")


def is_timm_architecture(name: str) -> bool:
    """Whether timm has an architecture of this name, without a tag of weights; former names count."""
    return bool(re.search(rf"\bdef {re.escape(name)}\(|['\"]{re.escape(name)}['\"]", _timm_sources()))


def timm_names() -> list[str]:
    """The names of timm's architectures."""
    return re.findall(r"@register_model\ndef (\w+)\(", _timm_sources())


def check_smp_encoder_available(encoder: str, weights: str) -> None:
    """`check_timm_available` for an encoder of segmentation-models-pytorch and its `weights`: imagenet, a file, or none."""
    if encoder.startswith("tu-"):
        check_timm_available(encoder.removeprefix("tu-"), "pretrained" if weights == "imagenet" else weights)
    elif weights == "imagenet":
        _check_hub(f"smp-hub/{encoder}.imagenet", _FILES, encoder, _FILE, others=f"smp-hub/{encoder}.*")
    elif weights != "none":
        _check_weights_file(weights, "imagenet or none")


def check_hub_model_available(name: str, flag: str, weights: bool = True) -> None:
    """`check_clip_available` for a Hugging Face folder or hub model; with `weights` false, its config is enough."""
    if Path(name).is_dir():
        for file in places.hf_weights(Path(name)) if weights else ():
            check_file(file)
        return
    if name.count("/") > 1 or name.startswith(("/", ".", "~")):
        raise UserError(
            f"{flag} {name} can't be had: there is no such folder; give a local folder, or org/name of the hub."
        )
    _check_hub(name, _FILES if weights else ("config.json",), f"{flag} {name}", f"{flag} a local folder")


def check_file(path: Path) -> None:
    """A file that holds no weights, or those of a Hugging Face CLIP without its config, is a `UserError`."""
    if path.suffix in (".json", ".txt"):
        return  # a config or a vocabulary
    if weights_format(path) != "safetensors" or (path.parent / places.HF_CONFIG).is_file():
        return
    if folder := hugging_face_folder(path, safetensors_shapes(path)):
        raise UserError(folder)


def close_matches(name: str, known: Any) -> list[str]:
    """The names most like one that is unknown."""
    return get_close_matches(name, list(known), n=4, cutoff=0.3) or sorted(known)[:4]


def _check_weights_file(weights: str, words: str) -> None:
    if not Path(weights).is_file():
        raise UserError(f"--weights {weights}: no such file; or use {words}.")
    check_file(Path(weights))


def _check_tag(model: str, tag: str) -> None:
    """The same of open_clip's published weights."""
    table: Any = _open_clip_table()
    entry = table.get_pretrained_cfg(model, tag)
    if not entry:
        tags = ", ".join(table.list_pretrained_tags_by_model(model)) or "none are published"
        raise UserError(f"--clip.pretrained {tag!r} is no weights tag of {model}: use {tags}, a path or none.")
    repo, _, file = entry.get("hf_hub", "").rpartition("/")
    if repo:
        _check_hub(repo, (file,) if file else _OPEN_CLIP_FILES, f"{model} with the weights {tag!r}", _FOLDER)


def _check_hub(repo: str, files: Sequence[str], what: str, instead: str, others: str = "") -> None:
    """A model of the hub that is neither in the cache nor to be had is a `UserError`.

    `others`: a pattern of repositories that will do as well, for libraries choose among several.
    """
    from huggingface_hub import constants

    cache_folder = Path(constants.HF_HUB_CACHE)
    pattern = f"models--{(others or repo).replace('/', '--')}"
    if any(next(cache_folder.glob(f"{pattern}/snapshots/*/{file}"), None) for file in files):
        return
    problem = _hub_problem(repo, files[0])
    if problem and not (others and problem == _NOT_ON_HUB):
        raise UserError(
            f"{what} can't be had: it is not in {cache_folder}, and {problem}; fetch it where there is a network with "
            f"`hf download {repo}` and copy that folder here, or give {instead}."
        )


_NOT_ON_HUB = "the hub has no such model, or only for those who are logged in"


@cache
def _hub_problem(repo: str, file: str) -> str:
    """Why the hub will not give a repository's files; empty where it will. It is asked once, for `HUB_TIMEOUT_S`."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers: list[str] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(repo, file), timeout=HUB_TIMEOUT_S)
            answers.append("")
        except EntryNotFoundError:
            answers.append("")
        except RepositoryNotFoundError:
            answers.append(_NOT_ON_HUB)
        except Exception as error:  # sockets, proxies and the hub each raise their own kinds
            answers.append(f"the hub does not answer ({summarize_error(error)})")

    thread = threading.Thread(target=ask, daemon=True)  # a name that does not resolve can take longer than any timeout
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return answers[0] if answers else f"the hub does not answer within {HUB_TIMEOUT_S:g} s"


@cache
def _timm_sources() -> str:
    """The text of timm's architectures, where their names stand: timm itself imports torch."""
    spec = importlib.util.find_spec("timm")
    folders = [Path(place) / "models" for place in (spec.submodule_search_locations or ())] if spec else []
    return "\n".join(file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.glob("*.py")))


@cache
def _open_clip_table() -> types.ModuleType:
    """open_clip's module of published weights, without the rest of open_clip, which imports torch."""
    if loaded := sys.modules.get("open_clip.pretrained"):
        return loaded
    spec, name, heavy = importlib.util.find_spec("open_clip"), "clipcovid_open_clip", "safetensors.torch"
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or ()) if spec else []
    sys.modules[name] = package
    hidden = heavy not in sys.modules
    if hidden:
        sys.modules[heavy] = None  # type: ignore[assignment]  # how Python marks what can't be imported: it can do without
    try:
        return importlib.import_module(f"{name}.pretrained")
    finally:
        if hidden:
            del sys.modules[heavy]
