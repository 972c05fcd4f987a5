"""State dicts as people have them: whatever they are wrapped in, under the names that a model wants, or one sentence."""

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from clipcovid.config import UserError, summarize_error
from clipcovid.models.formats import hugging_face_folder, weights_format
from clipcovid.models.weight_detection import describe_weights

State = dict[str, torch.Tensor]
Convert = Callable[[State], State]

_AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema", "teacher")  # taken before the others
_NOT_WEIGHTS = (
    "optim",
    "scheduler",
    "scaler",
    "args",
    "config",
    "hparams",
    "hyper_parameters",
    "callbacks",
    "loops",
    "rng",
)
_OPTIONAL_KEYS = ("num_batches_tracked",)  # counters that files of before 2018 are without
_IGNORED_KEYS = ("position_ids", "attn_mask", "num_batches_tracked")  # constants that models once kept
_OPENAI = {"input_resolution", "context_length", "vocab_size"}  # numbers beside the weights in OpenAI's archives
_SAFE_GLOBALS = (  # what older files, whose names can't be listed beforehand, hold beside their weights
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "pathlib.PosixPath",
)


class _Ignored:
    """Stands for any object in a file that is no tensor: takes what it is given, and does nothing with it."""

    def __new__(cls, *_: Any, **__: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class StateDictMatch:
    """Weights under a model's names, and how they differ from what it wants."""

    state: State
    """Name in the model → tensor, of those that have its shape."""
    source: str = ""
    """Where in the file they were, and the prefix that was taken off; empty where the file is the plain state dict."""
    missing: list[str] = field(default_factory=list)
    """Names in the model that the file lacks."""
    shape_mismatches: list[str] = field(default_factory=list)
    """Tensors of another shape, each with both shapes."""
    unexpected: list[str] = field(default_factory=list)
    """Names in the file that the model lacks."""
    extra_layers: list[str] = field(default_factory=list)
    """Those of them that are further members of a numbered row of the model's: layers of a larger model."""
    without_prefix: list[str] = field(default_factory=list)
    """Names in the file that do not have the prefix."""

    @property
    def mismatch_count(self) -> int:
        """How many of the model's tensors are not there, and how many there are of a larger one."""
        return len(self.missing) + len(self.shape_mismatches) + len(self.extra_layers)


def load_weights(module: torch.nn.Module, path: Path, name: str, flag: str, *, allow_extra: bool = False) -> None:
    """Load a file into a module, as `load_matching` gives it."""
    state = load_matching(path, module.state_dict(), name, flag, allow_extra=allow_extra)
    module.load_state_dict(module.state_dict() | state)


def load_matching(
    path: Path,
    model_state: Mapping[str, torch.Tensor],
    name: str,
    flag: str,
    *,
    allow_extra: bool = False,
    convert: Convert | None = None,
) -> State:
    """A file's tensors under the names of `model_state`, each of its shape, and numbers that `check_weights` passes.

    What does not fit, and whole numbers where the model has fractions, are a `UserError`.
    `name` is the model's and `flag` what the file was given with, for the sentence. `allow_extra`: the file may have more,
    such as a head. `convert`: renames the tensors of other programs, tried where they do not fit as they are.
    """
    shapes = {key: tuple(value.shape) for key, value in model_state.items()}
    candidates = list(read_state_dicts(path))
    fits = [match for source, state in candidates for match in match_state_dict(state, shapes, source)]
    if convert is not None and not any(_is_match(match, allow_extra) for match in fits):
        fits += [match for source, state in candidates for match in match_state_dict(convert(state), shapes, source)]
    best = min(fits, key=lambda match: (match.mismatch_count, 0 if allow_extra else len(match.unexpected)))
    if not _is_match(best, allow_extra):
        raise UserError(
            _mismatch_message(path, best, shapes, name, flag, max((s for _, s in candidates), key=len), allow_extra)
        )
    fractions = {key: value for key, value in best.state.items() if model_state[key].is_floating_point()}
    check_not_quantized(fractions, f"{flag} {path}")
    check_weights(best.state, f"{flag} {path}")
    others = [
        match.source
        for match in fits
        if _is_match(match, allow_extra) and match.source != best.source and not _same_tensors(match.state, best.state)
    ]
    if others:
        print_note(
            f"{path} holds weights of {name} under {_join_words([best.source, *others])}: "
            f"{best.source or 'the first'} is taken."
        )
    elif best.without_prefix and not allow_extra:
        under = f" under {best.source}" if best.source else ""
        print_note(
            f"{path}: {name} is read{under}; {len(best.without_prefix)} other tensors ({best.without_prefix[0]} first) "
            "are not."
        )
    return best.state


def _is_match(match: StateDictMatch, part: bool) -> bool:
    return not match.mismatch_count and (part or not match.unexpected)


def _same_tensors(first: State, second: State) -> bool:
    return all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first.keys() & second.keys()
    )


def read_state_dicts(path: Path) -> Iterator[tuple[str, State]]:
    """Every state dict in a file with where it stands in it ("" at the top), running averages first; none: `UserError`."""
    content = _content(path)
    found = list(_state_dicts(content))
    if not found:
        raise UserError(
            f"{path} holds no tensors by name{_describe_content(content)}: give what torch.save(model.state_dict(), …) wrote."
        )
    yield from sorted(found, key=lambda match: not any(part in _AVERAGES for part in match[0].split(".")))


def largest_state_dict(path: Path) -> State:
    """The file's state dict with the most tensors."""
    return max((state for _, state in read_state_dicts(path)), key=len)


def _content(path: Path) -> Any:
    """What is in a file, read without running anything that is in it."""
    kind = weights_format(path)
    try:
        if kind == "safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if kind == "torchscript":
            from clipcovid.models.torchscript import read_torchscript

            return read_torchscript(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if kind == "torch" else _SAFE_GLOBALS
        safe_globals = torch.serialization.safe_globals([(_Ignored, name) for name in names])
        with path.open("rb") as file, safe_globals:  # of a path, torch goes by the ending: a .safetensors is none here
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds objects that could run code when they are read, so it is not read: save the weights alone where "
            "the model was trained, with torch.save(model.state_dict(), …), and give that."
        ) from None
    except Exception as error:  # safetensors, zip, pickle and torch each raise their own kinds
        raise UserError(f"{path} is damaged and can't be read ({type(error).__name__}): download it again.") from error


def _state_dicts(content: Any, place: str = "") -> Iterator[tuple[str, State]]:
    """Each mapping that holds tensors by name, with its place."""
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(key, str) and not any(word in key for word in _NOT_WEIGHTS):
            yield from _state_dicts(value, f"{place}.{key}" if place else key)


def _describe_content(content: Any) -> str:
    """What a file holds that has no state dict."""
    if isinstance(content, Mapping):
        return f", but {', '.join(map(str, list(content)[:4])) or 'nothing'}"
    return ", but a whole model as an object" if isinstance(content, _Ignored) else f", but a {type(content).__name__}"


def match_state_dict(state: State, shapes: Mapping[str, tuple[int, ...]], source: str = "") -> list[StateDictMatch]:
    """A state dict under the names of `shapes`, for each prefix that can be taken off or put before; the best match first.

    A dot and an underscore count as the same, for timm's feature extractors write stages.0 as stages_0.
    """
    names = {_underscored(name): name for name in shapes} | {name: name for name in shapes}
    return [_match_prefix(state, names, shapes, source, *pair) for pair in _prefixes(state, names, shapes)]


def _match_prefix(
    state: State, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], source: str, prefix: str, before: str
) -> StateDictMatch:
    """A state dict's tensors under `prefix`, which is taken off their names, with `before` put before them."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(prefix):
            plain = before + key.removeprefix(prefix)
            renamed[names.get(plain) or names.get(_underscored(plain), plain)] = value
    kept, reshaped = {}, []
    for name, value in renamed.items():
        if name in shapes and tuple(value.shape) == shapes[name]:
            kept[name] = value
        elif name in shapes and value.numel() == 1 and shapes[name] in ((), (1,)):
            kept[name] = value.reshape(shapes[name])
        elif name in shapes:
            reshaped.append(f"{name}: {tuple(value.shape)} in the file, {shapes[name]} in the model")
    unexpected = [
        name for name in renamed if name not in shapes and not name.endswith(_IGNORED_KEYS) and name not in _OPENAI
    ]
    rows = {row for name in shapes for row in _rows(name)}
    return StateDictMatch(
        state=kept,
        source=".".join(part for part in (source, prefix.removesuffix(".")) if part),
        missing=[name for name in shapes if name not in renamed and not name.endswith(_OPTIONAL_KEYS)],
        shape_mismatches=reshaped,
        unexpected=unexpected,
        extra_layers=[name for name in unexpected if not rows.isdisjoint(_rows(name))],
        without_prefix=[name for name in state if not name.startswith(prefix)],
    )


def _underscored(name: str) -> str:
    return name.replace(".", "_")


def _rows(name: str) -> list[str]:
    """The numbered rows that a tensor is in: layer1.0.conv1.weight is in layer1."""
    parts = name.split(".")
    return [".".join(parts[:at]) for at, part in enumerate(parts) if part.isdigit()]


def _prefixes(state: State, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """Prefixes to take off the names of a file and put before them: that by which most match, then others by which all do."""
    befores = [""]
    first = next(iter(shapes), "").split(".")[:-1]
    for at in range(1, len(first) + 1):
        if all(name.startswith(common := ".".join(first[:at]) + ".") for name in shapes):
            befores.append(common)
    matches: dict[tuple[str, str], int] = {("", ""): 0}
    for name, value in state.items():
        cuts = [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]
        for before in befores:
            for cut in cuts:
                plain = before + name[cut:]
                if wanted := names.get(plain) or names.get(_underscored(plain)):
                    same = 2 if tuple(value.shape) == shapes[wanted] else 1
                    matches[name[:cut], before] = matches.get((name[:cut], before), 0) + same
    ordered = sorted(
        matches, key=lambda both: (-matches[both], not any(word in both[0] for word in _AVERAGES), len(both[0]))
    )
    required = sum(not name.endswith(_OPTIONAL_KEYS) for name in shapes)
    return ordered[:1] + [both for both in ordered[1:] if matches[both] >= max(1, required)]


def error_reason(error: Exception) -> str:
    """What an error of another library says first; torch's and timm's advice to read a file unsafely is not passed on."""
    text = summarize_error(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return "its file holds objects that could run code when they are read"
    return text


def check_weights(state: Mapping[str, torch.Tensor], noun: str) -> None:
    """Weights with NaN or infinity, or whose matrices are zero throughout, are a `UserError`: they were never trained."""
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise UserError(
                f"{noun} holds {bad:,} numbers that are not finite in {name}: training diverged, or the file is damaged; "
                "give other weights."
            )
    matrices = [value for value in state.values() if value.is_floating_point() and value.ndim > 1]
    if matrices and not any(value.any() for value in matrices):
        raise UserError(
            f"{noun} holds nothing but zeros in its {len(matrices)} matrices, as a file that was never filled: give other "
            "weights."
        )


def check_not_quantized(state: Mapping[str, torch.Tensor], noun: str) -> None:
    """Whole numbers among tensors that are fractions in the model are a `UserError`."""
    for name, value in state.items():
        if not value.is_floating_point():
            raise UserError(
                f"{noun} holds {name} as whole numbers ({str(value.dtype).removeprefix('torch.')}), as quantized models do, "
                "which can't be loaded: give the weights that they were made from, in float32, float16 or bfloat16."
            )


def _mismatch_message(
    path: Path,
    best: StateDictMatch,
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
    flag: str,
    state: State,
    part: bool,
) -> str:
    """One sentence that says how a file differs from the model."""
    if folder := hugging_face_folder(path, state):
        return folder
    parts = []
    if best.missing:
        parts.append(f"{len(best.missing)} of its {len(shapes)} tensors are missing ({best.missing[0]} first)")
    if best.shape_mismatches:
        parts.append(f"{len(best.shape_mismatches)} have another shape ({best.shape_mismatches[0]})")
    if others := best.extra_layers if part else best.unexpected:
        parts.append(f"{len(others)} in the file are not the model's ({others[0]} first)")
    seems = describe_weights({key: tuple(value.shape) for key, value in state.items()})
    guess = f"; it looks like {seems}" if seems else ""
    way_out = f"give weights of {name}, or name the model that they are of"
    if name in seems:
        way_out = f"give a complete state dict of {name}, as torch.save(model.state_dict(), …) writes it"
    return f"{flag} {path} does not fit {name}: {', '.join(parts)}{guess}: {way_out}."


def _join_words(words: list[str]) -> str:
    named = [word or "the top" for word in words]
    return f"{', '.join(named[:-1])} and {named[-1]}"


@cache
def print_note(text: str) -> None:
    """Say once what was taken for granted; on stderr, for stdout may be read by a program."""
    print(f"note: {text}", file=sys.stderr)
