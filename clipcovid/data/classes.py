"""Classes: what the labels of a data set are taken for, before any image is opened."""

import ast
import json
import re
import shlex
import unicodedata
from collections.abc import Sequence

import pandas as pd

from clipcovid.errors import UserError, collect_mapping
from clipcovid.io.tables import MISSING_WORDS
from clipcovid.prompts import CLASSES

DASHES = re.compile("[\u2010-\u2015\u2212]")
QUOTES = "'\"`\u2018\u2019\u201c\u201d"
SEPARATORS = (",", ";")  # of findings, where each of them is a label, too
MAX_NAMED_LABELS = 4  # labels that a message names


def parse_renames(renames: Sequence[str]) -> dict[str, str]:
    """Old → new class of each `OLD=NEW`; nothing after the last `=` stands for no label.

    Other entries, and a class that gets two names, are a `UserError`.
    """
    pairs = []
    for entry in renames:
        old, equals, new = entry.rpartition("=")
        if not equals or not old.strip():
            raise UserError(f"--rename {entry!r} must be OLD=NEW, e.g. --rename Covid-19=COVID-19.")
        pairs.append((old.strip(), new.strip()))
    return collect_mapping(pairs, "--rename")


def clean_labels(
    labels: pd.Series, *, wanted: Sequence[str] = (), renames: Sequence[str] = (), where: str = "the labels"
) -> tuple[pd.Series, list[str]]:
    """Labels, text, with classes renamed and words for a missing value as ""; and what was assumed, a sentence each.

    `wanted`: classes that the user names, which are classes whatever they look like. `where`: what messages call the
    labels' place. Lists of findings, and classes that differ in case, spaces or punctuation only, are a `UserError`.
    """
    new_names, notes = parse_renames(renames), list[str]()
    if absent := [old for old in new_names if old not in set(labels)]:
        raise UserError(f"--rename {absent[0]!r} labels no image; found: {join_names(sorted(set(labels) - {''}))}.")
    words = labels.isin(MISSING_WORDS - {"", *wanted, *new_names})
    if words.any():
        notes.append(
            f"{words.sum():,} images have no label, for {join_names(labels[words].unique().tolist())} in {where} means "
            "missing; "
            "--classes or --rename can make a class of it."
        )
    labels = labels.mask(words, "").map(lambda label: new_names.get(label, label))
    counts = labels[labels != ""].value_counts()
    if not wanted:  # else those that are not wanted are left out, and counted
        _refuse_lists(counts, where)
    _refuse_similar_names(counts, wanted, where)
    return labels, notes


def keep_classes(table: pd.DataFrame, wanted: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int], tuple[str, ...]]:
    """The rows of the wanted classes (unlabelled ones stay), how many of which others were left out, and the classes."""
    labels = set(table["label"]) - {""}
    if len(set(wanted)) < len(wanted):
        raise UserError(f"--classes {' '.join(wanted)} names a class twice.")
    if missing := [name for name in wanted if name not in labels]:
        raise UserError(f"--classes {missing[0]!r} labels no image; found: {', '.join(sorted(labels))}.")
    default = CLASSES if labels <= set(CLASSES) else tuple(sorted(labels))
    classes = tuple(wanted) or tuple(name for name in default if name in labels)
    keep = table["label"].isin(["", *classes])
    left_out = {str(label): int(count) for label, count in table.loc[~keep, "label"].value_counts().items()}
    return table[keep].reset_index(drop=True), left_out, classes


def _refuse_lists(counts: pd.Series, where: str) -> None:
    names = set(counts.index)
    lists = [label for label in counts.index if _is_list(label, names)]
    if lists:
        raise UserError(
            f"Lists of findings stand in {where} ({counts[lists].sum():,} images, e.g. {lists[0]!r}), but an image has one "
            "class here: name a column with one class an image by --columns.label, or the classes to keep by --classes, or "
            f"rename each list, e.g. --rename {shlex.quote(f'{lists[0]}=Pneumonia')} (nothing after the = leaves the images "
            "without a label)."
        )


def _is_list(label: str, names: set[str]) -> bool:
    """Whether a label is the text of a list, or several of the other labels in one."""
    if label[0] + label[-1] in ("[]", "()", "{}"):
        for parse in (json.loads, ast.literal_eval):
            try:
                if not isinstance(parse(label), str | int | float):
                    return True
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return "|" in label or any(
        mark in label and all(part.strip() in names for part in label.split(mark)) for mark in SEPARATORS
    )


def _refuse_similar_names(counts: pd.Series, wanted: Sequence[str], where: str) -> None:
    twins = [names for names in counts.groupby(normalize_name).groups.values() if len(set(names) - set(wanted)) > 0]
    twins = [names for names in twins if len(names) > 1]
    if not twins:
        return
    listed, renames = [], []
    for names in twins:
        first, *others = sorted(names, key=lambda name: (name not in wanted, -counts[name], name))
        listed.append(", ".join(f"{name!r} ({counts[name]:,} images)" for name in (first, *others)))
        renames += [shlex.quote(f"{other}={first}") for other in others]
    raise UserError(
        f"Classes in {where} differ in case, spaces or punctuation only: {'; '.join(listed)}. Make one of them with "
        f"--rename {' '.join(renames)}, or, if they are meant, name all classes with --classes."
    )


def fold_text(text: str) -> str:
    """Text in small letters, one form of each letter and dash, single blanks between words and none around them."""
    return " ".join(DASHES.sub("-", unicodedata.normalize("NFKC", text)).casefold().split())


def normalize_name(name: str) -> str:
    """A class name without what people write differently: case, spaces, hyphens, quotes, marks at its ends.

    Numbers stay apart (1-2 is not 12, -1 is not 1), and so do signs at the end (COVID+ and COVID-).
    """
    text = re.sub(rf"[\s_{QUOTES}]+", " ", fold_text(name)).strip(" .,;:")
    try:
        return str(float(text))
    except ValueError:
        return re.sub(r"(?<=\w) ?[-,]? ?(?=\w)| ", _separator, text)


def _separator(match: re.Match[str]) -> str:
    before, after = match.string[max(0, match.start() - 1) : match.start()], match.string[match.end() :][:1]
    return "-" if match.group() and before.isdigit() and after.isdigit() else ""


def join_names(names: Sequence[str]) -> str:
    """Names in quotes, the first `MAX_NAMED_LABELS`, and how many more."""
    shown = ", ".join(repr(name) for name in names[:MAX_NAMED_LABELS])
    return f"{shown} and {len(names) - MAX_NAMED_LABELS:,} more" if len(names) > MAX_NAMED_LABELS else shown
