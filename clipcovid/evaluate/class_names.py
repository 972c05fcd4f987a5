"""Names of classes in other programs' tables: numbers that stand for names, and names that are nearly alike."""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.classes import normalize_name
from clipcovid.io.tables import is_missing


def resolve_class_names(values: Sequence[Any] | pd.Series, classes: Sequence[str], file: str) -> list[str]:
    """Names, and with `classes` whole numbers that are no name as indices into them; a missing one is a `UserError`."""
    texts = [str(value) for value in values]
    names = {text: class_name(text, classes) for text in set(texts)}
    if missing := [text for text in names if is_missing(text) and text not in classes]:
        raise UserError(f"A row of {file} has no class ({missing[0]!r}); give every image one or leave it out.")
    return [names[text] for text in texts]


def class_name(text: str, classes: Sequence[str]) -> str:
    """The class that a number (1, 1.0, LABEL_1) stands for by the order of `classes`; any other text as it is."""
    if text in classes:
        return text
    text = re.sub(r"^(\d+)\.0+$", r"\1", text)
    index = text.removeprefix("LABEL_")  # LABEL_0 is what Hugging Face calls a class without a name
    return classes[int(index)] if index.isdecimal() and int(index) < len(classes) else text


def check_class_names(
    predicted: Collection[str], labels: Collection[str], classes: Sequence[str], files: Sequence[str]
) -> None:
    """Refuse names of classes that are nearly alike, and predictions and truth (`files`) without a class in common."""
    predicted_names, true_names = set(predicted), set(labels)
    names_of_files = {files[1]: true_names}
    names_of_files[files[0]] = names_of_files.get(files[0], set()) | predicted_names
    refuse_similar_names(names_of_files, classes)
    if not predicted_names & true_names and not classes:
        ours_text, theirs_text = (", ".join(sorted(names)[:8]) for names in (predicted_names, true_names))
        raise UserError(
            f"{files[0]} predicts {ours_text}, and in {files[1]} the classes are {theirs_text}: they have none in common. "
            "Write both alike, or say with --classes which names the numbers 0, 1, … stand for."
        )


def refuse_similar_names(names_of_files: Mapping[str, Collection[str]], classes: Sequence[str]) -> None:
    """Refuse names that differ in case, spaces, punctuation or Unicode form only, unless `classes` has both of them."""
    alike: dict[str, str] = {}
    names = [*classes, *(name for names in names_of_files.values() for name in sorted(names))]
    for name in dict.fromkeys(names):
        other = alike.setdefault(normalize_name(name) or name, name)
        if other == name or (name in classes and other in classes) or re.fullmatch(r"-?[\d.]+", name):
            continue
        holders = " and ".join(file for file, names in names_of_files.items() if name in names)
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other):
            raise UserError(
                f"The class {name!r} in {holders} and {other!r} are one text in two Unicode forms, composed (NFC) and "
                "decomposed (NFD): write both in one form, as Python's unicodedata.normalize('NFC', …) does."
            )
        raise UserError(
            f"The class {name!r} in {holders} differs from {other!r} in case, spaces or punctuation alone: write both alike."
        )
