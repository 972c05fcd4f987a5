"""The command line `clipcovid`: a module for each command, with its description, its config and its `main`."""

import ast
import difflib
import importlib
import typing
from collections.abc import Sequence
from pathlib import Path

GROUPS = {
    "Start": ("demo",),
    "Data": ("prepare", "apply-masks", "generate-captions", "embed"),
    "Classify without training": ("zeroshot", "tune-prompts", "classify"),
    "Train": ("finetune", "probe", "coop", "tip-adapter", "cnn", "hybrid", "segment", "caption", "captioner"),
    "Train many times": ("crossval", "sweep"),
    "Evaluate": ("predict", "compare", "evaluate"),
    "Use": ("cascade", "search"),
}
OTHER_NAMES = {"hparams": "sweep", "prompts": "tune-prompts"}  # of the scripts in tune/


def names() -> list[str]:
    """The names of all commands, group by group."""
    return [name for group in GROUPS.values() for name in group]


def contents() -> str:
    """All commands by their purpose, a line each, read without an import of any."""
    width = max(map(len, names()))
    lines = ["usage: clipcovid COMMAND [flags]", "", "clipcovid COMMAND --help explains a command and its flags."]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:{width}}  {summary(name)}" for name in group)]
    return "\n".join([*lines, "", "Research use only, not for diagnosis."])


def summary(name: str) -> str:
    """The first line of a command's description."""
    source = Path(__file__).with_name(f"{_module(name)}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def nearest(name: str) -> str:
    """The sentence that says that there is no command of this name, with those that are spelled like it."""
    spellings = {spelling: OTHER_NAMES.get(spelling, spelling) for spelling in (*names(), *OTHER_NAMES)}
    close = dict.fromkeys(spellings[match] for match in difflib.get_close_matches(name, spellings, n=3))
    near = f"; near it: {', '.join(close)}" if close else ""
    return f"There is no command {name!r}{near}. clipcovid --help lists all."


def run_command(name: str, args: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command of this name, e.g. `apply-masks`, with `args`, by default the command line's.

    `prog`: the name that its help and its errors give it. Default: the script's.
    """
    from clipcovid.cli import run_job  # tyro: the list of all commands does without

    module = importlib.import_module(f"{__name__}.{_module(name)}")
    run_job(typing.get_type_hints(module.main)["config"], module.main, module.__doc__, args, prog)


def _module(name: str) -> str:
    return name.replace("-", "_")
