"""The flags of a config, read from its fields as tyro reads them: names, types, defaults and help."""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any


@dataclass(frozen=True)
class Flag:
    """One option of a command line."""

    name: str
    """As it is typed, without the two dashes in front: `optim.batch-size`."""
    path: tuple[str, ...]
    """The names of the fields that lead to it: `("optim", "batch_size")`."""
    type: Any
    """The field's type, without annotations."""
    default: Any
    """`MISSING` where it must be given."""
    text: str
    """The docstring under the field, on one line."""
    aliases: tuple[str, ...] = ()
    """Other spellings, as they are typed."""
    positional: bool = False
    """Whether it is typed without its name."""

    def __post_init__(self) -> None:
        assert self.text, f"{'.'.join(self.path)} has no docstring"


def config_flags(config: Any, prefix: str = "", path: tuple[str, ...] = (), default: Any = MISSING) -> Iterator[Flag]:
    """Every flag of a config class and of those nested in it, but none of its subcommands'.

    `default`: an instance whose values are the defaults.
    """
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        kind, markers = unwrap_annotated(hints[field.name])
        value = default_of(field) if default is MISSING else getattr(default, field.name)
        place = (*path, field.name)
        if dataclasses.is_dataclass(kind):
            bare = "OmitArgPrefixes" in map(str, markers)
            yield from config_flags(kind, prefix if bare else f"{prefix}{_dashed(field.name)}.", place, value)
        elif not subcommand_names(kind):
            names = [renamed for marker in markers if (renamed := getattr(marker, "name", None))] or [field.name]
            yield Flag(
                name=prefix + _dashed(names[0]),
                path=place,
                type=kind,
                default=value,
                text=_documentation(config, field.name),
                aliases=tuple(alias for marker in markers for alias in getattr(marker, "aliases", None) or ()),
                positional="Positional" in map(str, markers),
            )


def unwrap_annotated(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its annotations, and what tyro marks it with."""
    if typing.get_origin(hint) is not typing.Annotated:
        return hint, ()
    return hint.__origin__, hint.__metadata__


def subcommand_names(kind: Any) -> list[str]:
    """The names of a union of configs, as tyro's annotations give them; none for another type."""
    options = [option for option in typing.get_args(kind) if dataclasses.is_dataclass(unwrap_annotated(option)[0])]
    return [option.__metadata__[0].name for option in options]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """A field's default, `MISSING` where there is none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _documentation(config: Any, name: str) -> str:
    """The docstring under a field, in the class or the nearest base that has it; "" for none."""
    for owner in config.__mro__:
        if name in vars(owner).get("__annotations__", {}) and (text := _field_docstrings(owner).get(name)):
            return text
    return ""


@functools.cache
def _field_docstrings(owner: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    body = typing.cast(ast.ClassDef, tree).body
    return {
        statement.target.id: " ".join(following.value.value.split())
        for statement, following in itertools.pairwise(body)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
        and isinstance(following.value.value, str)
    }
