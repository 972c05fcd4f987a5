"""A user's mistake, and the words that errors are reported in."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

RESEARCH_ONLY = "Research use only, not for diagnosis."
ValueT = TypeVar("ValueT")


class UserError(ValueError):
    """A user's mistake. Its text is one sentence that says what is wrong and the way out; jobs end with status 2."""


class TrainingStopped(UserError):
    """A mistake that all processes of a training know of, so that none of them waits for another."""


def quote_names(names: Iterable[str]) -> str:
    """Names in quotes with commas between them: they may hold commas themselves."""
    return ", ".join(map(repr, names))


def collect_mapping(pairs: Iterable[tuple[str, ValueT]], flag: str) -> dict[str, ValueT]:
    """Name → value of the pairs that the option `flag` gave; a name with two values is a `UserError`."""
    mapping: dict[str, ValueT] = {}
    for name, value in pairs:
        if (first := mapping.setdefault(name, value)) != value:
            raise UserError(f"{flag}: {name!r} is mapped twice, to {first!r} and to {value!r}. Keep one of them.")
    return mapping


def first_names(names: Sequence[str], limit: int = 4) -> str:
    """Up to `limit` of the names, and a sign where there are more."""
    return ", ".join([*names[:limit], *["…"] * (len(names) > limit)])


def summarize_error(error: Exception) -> str:
    """What an error of another library says first, at most 300 characters; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
