"""A command's settings in a study file: named as its flags, checked by its config, and turned into its command line."""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from clipcovid.config import override
from clipcovid.errors import UserError
from clipcovid.flags import Flag, config_flags, default_of

YES, NO = ("true", "yes", "on"), ("false", "no", "off")  # of YAML 1.1


@functools.cache
def settings_of(config_type: Any, without: tuple[str, ...] = ()) -> dict[str, Flag]:
    """Name → flag of a config's settings, but for those whose names, or sections, are in `without`."""
    flags = {flag.name: flag for flag in config_flags(config_type) if not flag.positional}
    return {name: flag for name, flag in flags.items() if not {name, name.partition(".")[0]} & {*without}}


def read_settings(flags: Mapping[str, Flag], content: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Name → value, in the types of `flags`, of a section of a study file, whose scalars are texts.

    Sections may be nested (`optim: {lr: 1e-4}`) or dotted (`optim.lr: 1e-4`). An unknown name, one that stands twice, or a
    value of another type is a `UserError` that names its `place`.
    """
    values: dict[str, Any] = {}
    for name, value in _flattened(content, flags, place):
        if name not in flags:
            raise UserError(f"{place}: there is no setting {name!r}{suggest_names(name, flags)}.")
        if name in values:
            raise UserError(f"{place}: {name} stands twice, nested and dotted: leave one of them.")
        values[name] = convert(flags[name].type, value, f"{place}.{name}")
    return values


def suggest_names(name: str, names: Collection[str]) -> str:
    """`; near it: …`, the names that are spelled like one that is unknown; where none is, `; there are: …`, all of them."""
    last = {known.rpartition(".")[2]: known for known in names}
    close = [*difflib.get_close_matches(name, [*names], n=3), *difflib.get_close_matches(name, [*last], n=2)]
    found = dict.fromkeys(last.get(match, match) for match in close)
    known = f"; there are: {', '.join(sorted(names))}" if names else ""
    return f"; near it: {', '.join(found)}" if found else known


def _flattened(
    content: Mapping[str, Any], flags: Mapping[str, Flag], place: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    sections = {name[: at + 1] for name in flags for at, letter in enumerate(name) if letter == "."}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if f"{name}." in sections and name not in flags:
            yield from _flattened(as_mapping(value, f"{place}.{name}"), flags, place, f"{name}.")
        else:
            yield name, value


def as_mapping(value: Any, place: str) -> dict[str, Any]:
    """A mapping of a study file; nothing at all is an empty one, anything else a `UserError`."""
    if value in ("", None):
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{place} must be a mapping of names to values, not {value!r}.")
    return value


def convert(kind: Any, value: Any, place: str) -> Any:
    """The text `value`, or a list of texts, in the type `kind` of a field; what does not fit is a `UserError`."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return convert(next(option for option in options if option is not type(None)), value, place)
    if origin is tuple:
        return tuple(convert(options[0], part, place) for part in (value if isinstance(value, list) else [value]))
    if isinstance(value, list | dict):
        raise UserError(f"{place} is one value, not {value!r}.")
    text = str(value)
    if origin is typing.Literal:
        if text not in options:
            raise UserError(f"{place} is {text!r}: use {', '.join(options)}.")
        return text
    if kind is bool:
        if text.lower() not in (*YES, *NO):
            raise UserError(f"{place} is {text!r}: use true or false.")
        return text.lower() in YES
    try:
        return kind(text)
    except ValueError:
        words = {int: "a whole number", float: "a number"}
        raise UserError(f"{place} is {text!r}, which is not {words.get(kind, kind.__name__)}.") from None


def build_config(
    config_type: Any,
    flags: Mapping[str, Flag],
    values: Mapping[str, Any],
    place: str,
    fields: Mapping[str, Any] | None = None,
) -> Any:
    """The config with `fields` and these values (name → value); what it refuses is a `UserError` that begins with `place`."""
    top = dict(fields or {})
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        head, *rest = flags[name].path
        if rest:
            nested.setdefault(head, {})[".".join(rest)] = value
        else:
            top[head] = value
    try:
        for field in dataclasses.fields(config_type):
            if field.name in nested:
                top[field.name] = override(default_of(field), nested[field.name])
        return config_type(**top)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def command_args(values: Mapping[str, Any]) -> Iterator[str]:
    """The words of a command line that say these values (name → value); what is None is not said."""
    for name, value in values.items():
        head, dot, last = name.rpartition(".")
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--{head}{dot}no-{last}"
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from (f"--{name}", *map(str, value))
        elif value is not None:
            yield from (f"--{name}", str(value))
