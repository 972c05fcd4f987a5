"""Duplicates across splits and data sets: equal pixels, and near duplicates; and what is said of one picture twice."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from clipcovid.audit.accepted_pairs import PAIR_COLUMNS, read_accepted_pairs
from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import AuditData, hashes_by_name
from clipcovid.audit.image_pool import ImagePool
from clipcovid.audit.near_duplicates import MAX_VERIFIED, NEIGHBOURS, NearDuplicates, find_near_duplicates
from clipcovid.audit.planted import Recall, measure_recall
from clipcovid.data.classes import normalize_name
from clipcovid.evaluate.number_format import agree, format_count
from clipcovid.evaluate.text_table import TextTable
from clipcovid.report.findings import ExampleSheet, Finding, Severity

PAIRS_FILE = "near_duplicates.csv"  # to be reviewed, and given to --accept
MAX_ROWS = 50  # pairs that a table lists
MAX_SHEETS = 12  # pairs that are drawn
PLACES = {
    "splits": "in several splits",
    "sets": "in several data sets",
    "one split": "in one split",
    "one patient": "of one patient in one split",
}
ADVICE = {
    "splits": "Take one of each pair out of the set, or put both into one split, and prepare it again",
    "sets": "Never train on one of the sets and test on the other with these images in it",
    "one split": "Each counts twice; take one of each pair out",
    "one patient": "These may be films that were taken one after the other; nothing, if they are",
}
SEVERITY: Mapping[str, Severity] = {"splits": "high", "sets": "high", "one split": "low", "one patient": "info"}


def check_duplicates(data: AuditData, config: AuditConfig) -> list[Finding]:
    """Findings on equal pixels, near duplicates (with the recall of the search), and labels that contradict each other."""
    pool = ImagePool.from_data(data)
    accepted = read_accepted_pairs(config.accept, hashes_by_name({part.name: part.manifest for part in data.sets}))
    equal = describe_pairs(pool, equal_pairs(pool.table)).replace({"place": {"one patient": "one split"}})
    embeddings, encoder = pool.embeddings()
    thumbnails = pool.thumbnails
    found = find_near_duplicates(thumbnails, pool.read, pool.searches(), embeddings=embeddings)
    recall = measure_recall(thumbnails, pool.read, seed=config.seed, floors=found.min_similarities)
    near = describe_pairs(pool, found.pairs)
    near = near[(near["pixels_1"] != near["pixels_2"]) | (near["pixels_1"] == "")]
    reviewed = accepted.accepted(near["pixels_1"], near["pixels_2"])
    findings = _pair_findings("equal pixels", equal, pool)
    findings += _pair_findings("near duplicates", near[~reviewed], pool)
    findings += _conflicts(pd.concat([equal, near[~reviewed]], ignore_index=True), pool)
    gone = accepted.count_gone(pool.table["sha256"])
    return [*findings, _search_finding(pool, found, recall, encoder, int(reviewed.sum()), gone)]


def equal_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """`first`, `second`: each image of equal pixels (`sha256`) with the first that has them in each split and data set.

    So n images of equal pixels in one split are n - 1 pairs, and each other split that has them adds what it needs.
    """
    rows = table[(table["sha256"] != "") & table["sha256"].duplicated(keep=False)]
    pairs = []
    for _, images in rows.groupby("sha256", sort=False):
        groups = [group.index.to_numpy() for _, group in images.groupby(["set", "split"], sort=False)]
        pairs += [(group[0], other) for group in groups for other in group[1:]]
        pairs += [(group[0], other[0]) for group, other in itertools.combinations(groups, 2)]
    return pd.DataFrame(np.array(pairs, np.int64).reshape(-1, 2), columns=["first", "second"])


def describe_pairs(pool: ImagePool, pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs with what is known of both images: `set_1`, `image_1`, `pixels_1`, `split_1`, `label_1`, …; and `place`.

    `place`: a key of `PLACES`. Pairs within another data set than the audited one are left out.
    """
    names = np.array([part.name for part in pool.sets], object)
    described = pairs.copy()
    for number, column in ((1, "first"), (2, "second")):
        rows = pool.table.loc[pairs[column]].reset_index(drop=True)
        described[f"set_{number}"] = names[rows["set"]]
        for name, source in (("image", "image_id"), ("pixels", "sha256")):
            described[f"{name}_{number}"] = rows[source]
        for name in ("split", "label", "patient_id"):
            described[f"{name}_{number}"] = rows[name]
    same_set = described["set_1"] == described["set_2"]
    same_split = described["split_1"] == described["split_2"]
    same_patient = (described["patient_id_1"] == described["patient_id_2"]) & (described["patient_id_1"] != "")
    places = ["sets", "splits", "one patient"]
    described["place"] = np.select([~same_set, ~same_split, same_patient], places, "one split")
    return described[~same_set | (described["set_1"] == names[0])].reset_index(drop=True)


def _pair_findings(check: str, pairs: pd.DataFrame, pool: ImagePool) -> list[Finding]:
    """A finding for each place where there are pairs; one that says so where there are none at all."""
    if pairs.empty:
        return [
            Finding(
                check=check,
                severity="info",
                summary=f"None found among {format_count(len(pool), 'image')}.",
                advice="Nothing.",
                numbers={"pairs": 0},
            )
        ]
    findings = []
    for place in pairs["place"].unique().tolist():
        there = pairs[pairs["place"] == place]
        images = int(pd.concat([there["first"], there["second"]]).nunique())
        between = there[["split_1", "split_2"]].apply(lambda row: " and ".join(sorted(row)), axis=1).value_counts()
        detail = "; ".join(f"{count:,} {name}" for name, count in between.items()) if place == "splits" else ""
        reviewed = (
            ", or write yes beside what may stay in near_duplicates.csv and give it to --accept"
            if "near" in check
            else ""
        )
        findings.append(
            Finding(
                check=f"{check} {PLACES[place]}",
                severity=SEVERITY[place],
                summary=f"{format_count(len(there), 'pair')} of images ({format_count(images, 'image')}) "
                f"{_what(check, len(there))} {PLACES[place]}" + (f" ({detail})." if detail else "."),
                advice=f"{ADVICE[place]}{reviewed}.",
                numbers={"pairs": len(there), "images": images, "listed": pair_records(there)},
                tables=(_pair_table(there),),
                examples=_sheets(there, pool),
            )
        )
    assert sum(finding.numbers["pairs"] for finding in findings) == len(pairs)
    return findings


def _what(check: str, pairs: int) -> str:
    if check == "equal pixels":
        return agree(pairs, "has equal pixels and is", "have equal pixels and are")
    return agree(pairs, "shows one picture and is", "show one picture and are")


def pair_records(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """Pairs as audit.json has them."""
    columns = [str(name) for name in pairs if name not in ("first", "second", "place")]
    return _records(pairs[columns].round(3))


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows by their columns' names."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def near_pairs(findings: Iterable[Finding]) -> pd.DataFrame:
    """The near duplicates that findings list, as `write_pairs` takes them."""
    listed = [row for one in findings if one.check.startswith("near duplicates ") for row in one.numbers["listed"]]
    return pd.DataFrame(listed).reindex(columns=[name for name in PAIR_COLUMNS if name not in ("accepted", "comment")])


def _pair_table(pairs: pd.DataFrame) -> TextTable:
    rows = [
        (
            f"{row['image_1']} — {row['image_2']}",
            f"{row['set_1']} {row['split_1']} — {row['set_2']} {row['split_2']}",
            f"{row['label_1']} — {row['label_2']}" if row["label_1"] != row["label_2"] else row["label_1"],
            _score(row),
        )
        for row in _records(pairs.head(MAX_ROWS))
    ]
    title = f"The first {MAX_ROWS} of {len(pairs):,} pairs (audit.json has all)" if len(pairs) > MAX_ROWS else "Pairs"
    return TextTable(title=title, headers=("images", "where", "class", "agreement"), sections=[rows], wrap_cells=True)


def _score(row: Mapping[str, Any]) -> str:
    """The agreement of a pair's pixels in words, and by what it was found."""
    if not isinstance(row.get("found_by"), str):
        return "equal pixels"
    turned = [word for word in ("mirrored", "inverted") if row[word]]
    return ", ".join([f"{row['score']:.2f} by {row['found_by']}", *turned])


def _sheets(pairs: pd.DataFrame, pool: ImagePool) -> tuple[ExampleSheet, ...]:
    return tuple(
        ExampleSheet(
            caption=f"{row['split_1']} {row['label_1']} — {row['split_2']} {row['label_2']}: {_score(row)}",
            images=(pool.example(row["first"]), pool.example(row["second"])),
        )
        for row in _records(pairs.head(MAX_SHEETS))
    )


def _conflicts(pairs: pd.DataFrame, pool: ImagePool) -> list[Finding]:
    """What contradicts itself among duplicates: labels, and patients within the audited set."""
    classes = [pairs[f"label_{number}"].map(normalize_name) for number in (1, 2)]
    labels = pairs[(classes[0] != classes[1]) & (classes[0] != "") & (classes[1] != "")]
    patients = pairs[
        (pairs["place"] != "sets")
        & (pairs["patient_id_1"] != pairs["patient_id_2"])
        & (pairs["patient_id_1"] != "")
        & (pairs["patient_id_2"] != "")
    ]
    findings = []
    for there, check, what, advice in (
        (
            labels,
            "labels of duplicates",
            "different labels",
            "Correct the labels, or take both out: one of them is wrong",
        ),
        (
            patients,
            "patients of duplicates",
            "different patient ids",
            "Give them one patient id, or splits part them",
        ),
    ):
        if len(there):
            findings.append(
                Finding(
                    check=check,
                    severity="medium",
                    summary=f"{format_count(len(there), 'pair')} of duplicates {agree(len(there), 'has', 'have')} {what}.",
                    advice=f"{advice}.",
                    numbers={"pairs": len(there), "of_duplicates": len(pairs)},
                    tables=(_pair_table(there),),
                    examples=_sheets(there, pool),
                )
            )
    return findings


def _search_finding(
    pool: ImagePool, found: NearDuplicates, recall: Mapping[str, Recall], encoder: str, accepted: int, gone: int
) -> Finding:
    """How the search was done and what it finds of planted changes; what it leaves out."""
    rows = [(name, f"{one.found} of {one.planted}") for name, one in recall.items()]
    planted, hits = sum(one.planted for one in recall.values()), sum(one.found for one in recall.values())
    compared = f"{format_count(found.verified, 'proposed pair')} of {format_count(len(pool), 'image')}"
    notes = [f"{compared} {agree(found.verified, 'was', 'were')} compared on their pixels"]
    notes.append(
        f"embeddings are of {encoder}" if encoder else "no encoder has embedded all images, so embeddings are left out"
    )
    if found.min_similarities:
        notes.append(f"of {' and '.join(found.min_similarities)} the {MAX_VERIFIED:,} most alike pairs were compared")
    if found.saturated_images:
        full = found.saturated_images
        have = f"{format_count(full, 'image')} {agree(full, 'has', 'have')}"
        notes.append(f"{have} {NEIGHBOURS} or more duplicates, and may have more than are listed")
    if accepted:
        notes.append(f"{format_count(accepted, 'pair')} {agree(accepted, 'is', 'are')} accepted by --accept")
    if gone:
        of_gone = f"{format_count(gone, 'pair')} of --accept {agree(gone, 'is', 'are')} of images"
        notes.append(f"{of_gone} that are not here any more, or have other pixels now")
    share = (
        f"{hits:,} of {planted:,} planted copies {agree(hits, 'was', 'were')} found ({hits / planted:.0%})"
        if planted
        else "nothing could be planted"
    )
    return Finding(
        check="search for near duplicates",
        severity="info",
        summary=f"{share}; {'; '.join(notes)}.",
        advice="Where a change is found too seldom, look for its kind by other means"
        + ("" if encoder else ", or embed the set with clipcovid embed")
        + ".",
        numbers={
            "recall": {name: {"found": one.found, "planted": one.planted} for name, one in recall.items()},
            "verified_pairs": found.verified,
            "accepted_pairs": accepted,
            "accepted_pairs_gone": gone,
            "embeddings": encoder,
        },
        tables=(TextTable(title="Copies that were planted and found", headers=("change", "found"), sections=[rows]),),
    )
