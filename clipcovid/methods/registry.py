"""The trainable methods, found in the folders beside this file. No torch here: a driver or `--help` starts at once."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Annotated, Union

import tyro

from clipcovid import methods
from clipcovid.config import TrainConfig
from clipcovid.methods.method import Method


def discover_methods() -> dict[str, Method]:
    """The `METHOD` of each folder's `config.py` by its name, in alphabetical order."""
    folders = [module.name for module in pkgutil.iter_modules(methods.__path__) if module.ispkg]
    return {name: importlib.import_module(f"{methods.__name__}.{name}.config").METHOD for name in sorted(folders)}


METHODS = discover_methods()

if TYPE_CHECKING:
    AnyMethod = TrainConfig
else:
    _SUBCOMMANDS = tuple(Annotated[method.config, tyro.conf.subcommand(name)] for name, method in METHODS.items())
    AnyMethod = Annotated[Union[_SUBCOMMANDS], tyro.conf.arg(name="")]  # noqa: UP007 (a union of a tuple)
    """The type of a field that takes any method's config: on the command line a subcommand with all its flags."""
