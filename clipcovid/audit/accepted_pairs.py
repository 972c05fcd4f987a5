"""Pairs of images that a person has looked at: a CSV file that an audit writes, a person fills in, and an audit reads."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from clipcovid.errors import UserError
from clipcovid.io.files import write_text
from clipcovid.io.tables import read_table_file

PAIR_COLUMNS = ("accepted", "score", "set_1", "image_1", "pixels_1", "set_2", "image_2", "pixels_2", "comment")
"""`accepted`: yes for a pair that is no duplicate or may stay, no for one that is; empty where nobody has looked yet."""
ANSWERS = ("yes", "no", "")


@dataclasses.dataclass(frozen=True)
class AcceptedPairs:
    """The rows of a file of reviewed pairs."""

    table: pd.DataFrame = dataclasses.field(default_factory=lambda: pd.DataFrame(columns=list(PAIR_COLUMNS)))
    """`PAIR_COLUMNS`, text."""

    def accepted(self, hashes: pd.Series, others: pd.Series) -> pd.Series:
        """Which pairs, by the hashes of both images' pixels, were accepted, bool (n,)."""
        known = set(_pixel_pairs(self.table[self.table["accepted"] == "yes"]))
        return pd.Series([frozenset(pair) in known for pair in zip(hashes, others, strict=True)], hashes.index, bool)

    def count_gone(self, hashes: pd.Series) -> int:
        """How many accepted pairs have an image whose pixels are not among those with these hashes."""
        rows = self.table[self.table["accepted"] == "yes"]
        return int((~(rows["pixels_1"].isin(hashes) & rows["pixels_2"].isin(hashes))).sum())


def read_accepted_pairs(
    path: Path | None, hashes_by_name: Mapping[tuple[str, str], str] | None = None
) -> AcceptedPairs:
    """The pairs of a file that `write_pairs` wrote and a person filled in; another file is a `UserError`. None: no pairs.

    A pair is known by its pixels: one whose image has changed since is not accepted any more. So two answers to a pair are a
    `UserError`, and so is a hash that is another image's than the one named. `hashes_by_name`: the hash of the pixels of each
    image that is there, by the names of its set and itself.
    """
    if path is None:
        return AcceptedPairs()
    table = read_table_file(path)
    if missing := [column for column in PAIR_COLUMNS if column not in table and column != "comment"]:
        raise UserError(
            f"{path} lacks the columns {', '.join(missing)}: fill in the near_duplicates.csv that an audit writes."
        )
    answers = table["accepted"].astype(str).str.strip().str.casefold()
    if (unknown := ~answers.isin(ANSWERS)).any():
        row = int(unknown.to_numpy().argmax())
        raise UserError(
            f"{path}, row {row + 2}: accepted is {table['accepted'].iloc[row]!r}; write yes, no, or nothing where the pair "
            "has not been looked at."
        )
    if (empty := (answers == "yes") & ((table["pixels_1"] == "") | (table["pixels_2"] == ""))).any():
        row = int(empty.to_numpy().argmax())
        raise UserError(f"{path}, row {row + 2}: pixels_1 or pixels_2 is empty: leave them as the audit wrote them.")
    table = table.assign(accepted=answers).reindex(columns=list(PAIR_COLUMNS), fill_value="").astype(str)
    _refuse_two_answers(table, path)
    _refuse_other_images(table, path, hashes_by_name or {})
    return AcceptedPairs(table)


def _pixel_pairs(table: pd.DataFrame) -> pd.Series:
    """The hashes of both images' pixels, whichever comes first: frozensets (n,)."""
    return pd.Series(list(map(frozenset, zip(table["pixels_1"], table["pixels_2"], strict=True))), table.index, object)


def _refuse_two_answers(table: pd.DataFrame, path: Path) -> None:
    """A `UserError` where a pair is accepted in one row and is not in another, whichever image comes first."""
    first = dict[frozenset[str], tuple[int, str]]()
    for number, (answer, pair) in enumerate(zip(table["accepted"], _pixel_pairs(table), strict=True), 2):
        other, given = first.setdefault(pair, (number, answer)) if answer else (number, answer)
        if given != answer:
            raise UserError(
                f"{path}, rows {other} and {number}: accepted is {given} and {answer} for the same two pictures; write one "
                "answer in both, or delete one of the rows."
            )


def _refuse_other_images(table: pd.DataFrame, path: Path, hashes_by_name: Mapping[tuple[str, str], str]) -> None:
    """A `UserError` where an answered row's hash is not that of the image that it names, but of another one."""
    names_by_hash = {pixels: name for (_, name), pixels in hashes_by_name.items()}
    for side in (1, 2):
        cells = zip(
            *(table[name] for name in ("accepted", f"set_{side}", f"image_{side}", f"pixels_{side}")), strict=True
        )
        for number, (answer, group, name, pixels) in enumerate(cells, 2):
            known = hashes_by_name.get((group, name), pixels)
            if answer and known != pixels and pixels in names_by_hash:
                raise UserError(
                    f"{path}, row {number}: image_{side} {name} is not the image with these pixels, which is "
                    f"{names_by_hash[pixels]}: change accepted and comment alone, leave the other cells as the audit wrote "
                    "them, or delete the row."
                )


def write_pairs(path: Path, pairs: pd.DataFrame, reviewed: Path | None = None) -> None:
    """Write pairs (`PAIR_COLUMNS` but the answer and the comment) to be reviewed, with the answers of an earlier file.

    Answers that `path` holds already are kept, too, where the earlier file has none.
    Accepted pairs that were not found again are kept at the end, for they may be once more.
    """
    files = [file for file in (path if path.exists() else None, reviewed) if file]
    answered = pd.concat(
        [AcceptedPairs().table, *(read_accepted_pairs(file).table for file in files)], ignore_index=True
    )
    answered = answered[answered["accepted"] != ""]
    answered = answered[~_pixel_pairs(answered).duplicated(keep="last")]
    answers = dict(
        zip(_pixel_pairs(answered), zip(answered["accepted"], answered["comment"], strict=True), strict=True)
    )
    given = [answers.get(key, ("", "")) for key in _pixel_pairs(pairs)]
    table = pairs.assign(accepted=[answer for answer, _ in given], comment=[comment for _, comment in given])
    again = AcceptedPairs(pairs.assign(accepted="yes")).accepted(answered["pixels_1"], answered["pixels_2"])
    rows = pd.concat([table, answered[~again & (answered["accepted"] == "yes")]], ignore_index=True)
    write_text(path, rows[list(PAIR_COLUMNS)].to_csv(index=False))
