"""The reference of flags, read from the commands' configs: a Markdown page a command."""

import ast
import dataclasses
import html
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from clipcovid import commands

ROOT = Path(__file__).parents[1]
INTRODUCTION = """# Flags of every command

These pages are generated from the configs when the book is built, so they list what the code accepts; `--help` prints the
same. A flag with a dot belongs to a section: `--optim.lr` is the learning rate in the section `optim`.
"""


@dataclass(frozen=True)
class Flag:
    """One option of a command line."""

    name: str
    """Dotted, as `optim.lr`; a positional argument in capitals."""
    values: str
    """What it takes: choices, a type, or `on/off`."""
    default: str | None
    """None: it must be given."""
    text: str
    aliases: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """What stands before the last dot; "" for the job's own flags."""
        return self.name.rpartition(".")[0]

    @property
    def spellings(self) -> tuple[str, ...]:
        """How it is typed."""
        if self.name.isupper():
            return (self.name,)
        dashed = [name.replace("_", "-") for name in (self.name, *self.aliases)]
        names = [name if name.startswith("-") else f"--{name}" for name in dashed]
        head, dot, last = dashed[0].rpartition(".")
        return (*names, *([f"--{head}{dot}no-{last}"] if self.values == "on/off" else []))


def pages() -> dict[str, str]:
    """File name → Markdown: `index.md`, and a page for each command."""
    loaded = all_commands()
    lines = [INTRODUCTION]
    for title, names in commands.GROUPS.items():
        rows = [f"| [`{name}`]({name}.md) | {_summary(loaded[name])} |" for name in names]
        lines += [f"## {title}", "", "| `clipcovid …` | what it does |", "|---|---|", *rows, ""]
    texts = {f"{name}.md": _page(command) for name, command in loaded.items()}
    return texts | {"index.md": "\n".join(lines)}


def all_commands() -> dict[str, commands.Command]:
    """Name → command, in the order of `clipcovid --help`."""
    return {name: commands.load_command(name) for name in commands.command_names()}


def flags(config: Any, prefix: str = "", default: Any = MISSING) -> Iterator[Flag]:
    """Every flag of a config and of those nested in it; `default`: an instance whose values are the defaults."""
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        kind, markers = _unwrapped(hints[field.name])
        value = _default(field) if default is MISSING else getattr(default, field.name)
        if dataclasses.is_dataclass(kind):
            yield from flags(
                kind, prefix if "OmitArgPrefixes" in map(str, markers) else f"{prefix}{field.name}.", value
            )
        elif not _subcommands(kind):
            names = [renamed for marker in markers if (renamed := getattr(marker, "name", None))] or [field.name]
            aliases = tuple(alias for marker in markers for alias in getattr(marker, "aliases", None) or ())
            yield Flag(
                name=names[0].upper() if "Positional" in map(str, markers) else prefix + names[0],
                values=_values(kind),
                default=None if value is MISSING else _shown(value),
                text=_documentation(config, field.name),
                aliases=aliases,
            )


def methods(config: Any) -> list[str]:
    """The names of the subcommands among a config's fields."""
    hints = typing.get_type_hints(config, include_extras=True)
    return [name for field in dataclasses.fields(config) for name in _subcommands(_unwrapped(hints[field.name])[0])]


def _page(command: commands.Command) -> str:
    config = command.config
    lines, section = [f"# clipcovid {command.name}", "", _description(command)], "."
    for flag in sorted(flags(config), key=lambda flag: flag.section):
        if flag.section != section:
            section = flag.section
            lines += ["", f"## --{section}.*" if section else "## Flags"]
        about = "**required**" if flag.default is None else f"default `{flag.default}`" if flag.default else "optional"
        spelling = ", ".join(f"`{name}`" for name in flag.spellings)
        lines += ["", f"{spelling} ({flag.values}; {about})", f":   {_escaped(flag.text)}"]
    if names := methods(config):
        links = ", ".join(f"[`{method}`]({method.replace('_', '-')}.md)" for method in names)
        lines += ["", "## Method", "", f"Then the method's name with any of its own flags: {links}."]
    return "\n".join(lines) + "\n"


def _description(command: commands.Command) -> str:
    """A command's description, its examples in a fenced block."""
    blocks = []
    for paragraph in command.description.split("\n\n"):
        text = textwrap.dedent(paragraph)
        blocks.append(f"```\n{text}\n```" if re.match("(python|clipcovid) ", text) else _escaped(text))
    return "\n\n".join(blocks)


def _summary(command: commands.Command) -> str:
    return _escaped(command.description.partition("\n")[0])


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*|\[\]])", r"\\\1", html.escape(text, quote=False))


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its annotations, and what tyro marks it with."""
    if typing.get_origin(hint) is not typing.Annotated:
        return hint, ()
    return hint.__origin__, hint.__metadata__


def _subcommands(kind: Any) -> list[str]:
    """The names of a union of configs, as tyro's annotations give them."""
    options = [option for option in typing.get_args(kind) if dataclasses.is_dataclass(_unwrapped(option)[0])]
    return [option.__metadata__[0].name for option in options]


def _values(kind: Any) -> str:
    """The values of a type, as words."""
    if kind is bool:
        return "on/off"
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{value}`" if value else "empty" for value in typing.get_args(kind))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_values(option) for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is tuple:
        return f"any number of {_values(typing.get_args(kind)[0])}s"
    names = {str: "text", int: "whole number", float: "number", Path: "path"}
    return names[kind]


def _shown(value: Any) -> str:
    """A default as it is typed; "" for none."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else "off" if value is False else "on" if value is True else str(value)


def _documentation(config: Any, name: str) -> str:
    """The docstring under a field, in the class or the nearest base that has it."""
    for owner in config.__mro__:
        if name in vars(owner).get("__annotations__", {}) and (text := _field_docstrings(owner).get(name)):
            return text
    raise LookupError(f"{config.__name__}.{name} has no docstring")


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
