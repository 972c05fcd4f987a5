"""The kinds by their names. A new kind is a file in this package with an object `KIND`."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipcovid.config import UserError
from clipcovid.evaluate.kinds.base import Kind
from clipcovid.evaluate.scores import Scores

NOT_KINDS = ("base", "registry")


@functools.cache
def kind_names() -> tuple[str, ...]:
    """The names of all kinds, in alphabetical order."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return tuple(sorted(module.name for module in modules if module.name not in NOT_KINDS))


def get_kind(name: str) -> Kind[Any]:
    """The kind of this name; an unknown one is a `UserError`."""
    if name not in kind_names():
        raise UserError(f"There is no kind of predictions called {name!r}: use {', '.join(kind_names())}.")
    kind: Kind[Any] = importlib.import_module(f"clipcovid.evaluate.kinds.{name}").KIND
    return kind


def scores_from_json(content: Mapping[str, Any]) -> Scores:
    """The scores that an entry of a metrics.json holds; what no kind has written is a `UserError`."""
    for kind in map(get_kind, kind_names()):
        if kind.scores_type.json_marker in content:
            return kind.scores_type.from_json(content)
    raise UserError(f"These are the scores of no kind ({', '.join(kind_names())}): they hold {', '.join(content)}.")
