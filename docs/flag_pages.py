"""The reference of flags, read from the commands' configs: a Markdown page a command."""

import dataclasses
import html
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from clipcovid import commands
from clipcovid.flags import config_flags, subcommand_names, unwrap_annotated

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
        names = [name if name.startswith("-") else f"--{name}" for name in (self.name, *self.aliases)]
        head, dot, last = self.name.rpartition(".")
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


def flags(config: Any) -> Iterator[Flag]:
    """Every flag of a config and of those nested in it."""
    for flag in config_flags(config):
        yield Flag(
            name=flag.name.upper() if flag.positional else flag.name,
            values=_values(flag.type),
            default=None if flag.default is MISSING else _shown(flag.default),
            text=flag.text,
            aliases=flag.aliases,
        )


def methods(config: Any) -> list[str]:
    """The names of the subcommands among a config's fields."""
    hints = typing.get_type_hints(config, include_extras=True)
    fields = dataclasses.fields(config)
    return [name for field in fields for name in subcommand_names(unwrap_annotated(hints[field.name])[0])]


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
