"""The command line `clipcovid`: a module for each command, with its description, its config and its `main`.

The commands that train are the methods themselves: a folder in `clipcovid/methods` is a command.
"""

import ast
import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METHODS_FOLDER = Path(__file__).parents[1] / "methods"
GROUPS = {
    "Start": ("demo", "study"),
    "Data": ("prepare", "audit", "apply-masks", "generate-captions", "embed"),
    "Classify without training": ("zeroshot", "tune-prompts", "classify"),
    "Train": tuple(sorted(config.parent.name.replace("_", "-") for config in METHODS_FOLDER.glob("*/config.py"))),
    "Train many times": ("crossval", "sweep"),
    "Evaluate": ("predict", "compare", "ensemble", "report", "evaluate"),
    "Use": ("cascade", "search", "register"),
}
COMMAND_ALIASES = {"hparams": "sweep", "prompts": "tune-prompts"}  # of the scripts in tune/


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command, imported."""

    name: str
    description: str
    """Its first line is the summary; indented lines are examples."""
    config: Any
    """The dataclass that the command line is made from."""
    main: Callable[[Any], None]


def command_names() -> list[str]:
    """The names of all commands, group by group."""
    return [name for group in GROUPS.values() for name in group]


def command_table() -> str:
    """All commands by their purpose, a line each, read without an import of any."""
    width = max(map(len, command_names()))
    lines = ["usage: clipcovid COMMAND [flags]", "", "clipcovid COMMAND --help explains a command and its flags."]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:{width}}  {command_summary(name)}" for name in group)]
    return "\n".join([*lines, "", "Research use only, not for diagnosis."])


def command_summary(name: str) -> str:
    """The first line of a command's description."""
    module = name.replace("-", "_")
    path = (
        METHODS_FOLDER / module / "__init__.py" if name in GROUPS["Train"] else Path(__file__).with_name(f"{module}.py")
    )
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def unknown_command(name: str) -> str:
    """The sentence that says that there is no command of this name, with those that are spelled like it."""
    spellings = {spelling: COMMAND_ALIASES.get(spelling, spelling) for spelling in (*command_names(), *COMMAND_ALIASES)}
    close = dict.fromkeys(spellings[match] for match in difflib.get_close_matches(name, spellings, n=3))
    near = f"; near it: {', '.join(close)}" if close else ""
    return f"There is no command {name!r}{near}. clipcovid --help lists all."


def load_command(name: str) -> Command:
    """Import the command of this name, e.g. `apply-masks`."""
    module_name = name.replace("-", "_")
    if name in GROUPS["Train"]:
        from clipcovid.methods.registry import METHODS as registry
        from clipcovid.workflows.method import train_method

        description = importlib.import_module(f"clipcovid.methods.{module_name}")
        return Command(
            name=name,
            description=inspect.getdoc(description) or "",
            config=registry[module_name].config,
            main=train_method,
        )
    module = importlib.import_module(f"{__name__}.{module_name}")
    config = typing.get_type_hints(module.main)["config"]
    return Command(name=name, description=inspect.getdoc(module) or "", config=config, main=module.main)


def run_command(name: str, args: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command of this name with `args`, by default the command line's.

    `prog`: the name that its help and its errors give it. Default: the script's.
    """
    from clipcovid.cli import run_job  # tyro: the list of all commands does without

    command = load_command(name)
    run_job(command.config, command.main, command.description, args, prog)
