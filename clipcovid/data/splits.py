"""Splits: who goes to train, val and test. Patients stay whole, and so do equal pixels. No torch and no Ray here."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.manifest import SPLITS
from clipcovid.data.patients import patient_folder_hint, patient_warnings


def split_units(table: pd.DataFrame) -> pd.Series:
    """The unit that splits keep together, by name: the patient, or the image itself where none is known.

    Patients and images that share equal pixels (`sha256`) are one unit, which goes by the first of their names.
    """
    units = table["patient_id"].where(table["patient_id"] != "", "image:" + table["image_id"])
    shared = (table["sha256"] != "") & table["sha256"].duplicated(keep=False)
    if not shared.any():
        return units
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers, names = pd.factorize(units)
    pixels = pd.factorize(table.loc[shared, "sha256"])[0] + len(names)
    edges = (np.ones(len(pixels), np.int8), (numbers[shared], pixels))
    nodes = int(pixels.max()) + 1
    component = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)[1][: len(names)]
    first = pd.Series(names).groupby(component).transform("min")
    return pd.Series(first.to_numpy()[numbers], index=table.index)


def strictest_split(splits: pd.Series, group: pd.Series) -> pd.Series:
    """The strictest split that each group has: test before val before train; "" where it has none."""
    ranks = splits.map({"": -1} | {split: rank for rank, split in enumerate(SPLITS)})
    return ranks.groupby(group, sort=False).max().map({-1: ""} | dict(enumerate(SPLITS)))


def make_splits(
    table: pd.DataFrame, *, val: float, test: float, seed: int, resplit: bool = False
) -> tuple[pd.Series, list[str], list[str]]:
    """Every row's split; what was assumed for it, and what of it makes scores flatter or impossible, a sentence each.

    The data set's own splits stay, or with `resplit` are put aside. Rows without one are spread by `assign_splits`. Where
    the data set has a train split, and no val or no test split, the missing one is made from train.
    """
    original, notes = table["split"], list[str]()
    if resplit and (original != "").any():
        notes.append(
            f"splits: the data set's own splits of {(original != '').sum():,} images are put aside (--resplit)."
        )
        original = pd.Series("", index=table.index)
    table = table.assign(split=original)
    unassigned, group = original == "", split_units(table)
    if unassigned.any() and not unassigned.all():
        notes.append(
            f"splits: {unassigned.sum():,} images without a split are spread {_split_unit(table)} (val {val:.0%}, "
            f"test {test:.0%}); "
            f"the other {(~unassigned).sum():,} keep theirs."
        )
    splits = assign_splits(table, val=val, test=test, seed=seed)
    names = original.unique()
    if "train" in names:
        missing = {name: share for name, share in (("val", val), ("test", test)) if name not in names}
        splits, train_notes = _split_train(table.assign(split=splits), group, missing, seed)
        notes += train_notes
    elif unassigned.all() and "train" not in splits.unique():
        splits = splits.mask(group == group.value_counts().sort_index().idxmax(), "train")
    return splits, notes, _warnings(table.assign(split=splits), original, {"train": 1.0, "val": val, "test": test})


def _split_train(
    table: pd.DataFrame, group: pd.Series, shares: Mapping[str, float], seed: int
) -> tuple[pd.Series, list[str]]:
    """Splits where those of `shares` that are (nearly) empty are made from train, and what was done."""
    splits, notes = table["split"], list[str]()
    train = int((splits == "train").sum())
    counts = splits.value_counts()
    missing = {name: share for name, share in shares.items() if share and counts.get(name, 0) < share * train / 2}
    movable = ~group.isin(group[splits != "train"])  # whoever is in another split as well would be known to both
    if not missing or not movable.any():
        return splits, notes
    moved = assign_splits(
        table[movable].assign(split=""), val=missing.get("val", 0), test=missing.get("test", 0), seed=seed
    ).reindex(table.index, fill_value="")
    for name, share in missing.items():
        splits = splits.mask(moved == name, name)
        if count := int((moved == name).sum()):
            notes.append(
                f"{name}: {share:.0%} of train {_split_unit(table)} ({count:,} images), for the set gives none."
            )
    return splits, notes


def _split_unit(table: pd.DataFrame) -> str:
    return "by patient" if (table["patient_id"] != "").any() else "by image"


def _warnings(table: pd.DataFrame, original: pd.Series, shares: Mapping[str, float]) -> list[str]:
    """What to know of a table's splits, of which `given` are the data set's own."""
    has_patient, warnings = table["patient_id"] != "", list[str]()
    if not has_patient.any():
        warnings.append(
            "no patient ids are known: splits and intervals are by image, so images of one patient may stand in several "
            f"splits; --columns.patient-id names the column of a table that has them.{patient_folder_hint(table)}"
        )
    elif not has_patient.all():
        warnings.append(
            f"{(~has_patient).sum():,} of {len(table):,} images have no patient id: each counts as a patient."
        )
    warnings += patient_warnings(table["patient_id"])
    way_out = "scores will flatter; --resplit makes splits that keep them together."
    if people := count_leaking_patients(table):
        warnings.append(f"{people:,} patients stand in more than one of the data set's own splits: {way_out}")
    if alike := count_duplicates(table)["across"]:
        warnings.append(
            f"{alike:,} images have the pixels of an image in another of the data set's own splits: {way_out}"
        )
    labels = table[(table["label"] != "") & (table["sha256"] != "")].groupby("sha256")["label"].nunique()
    if clashing := int((labels > 1).sum()):
        warnings.append(
            f"{clashing:,} images are there several times, by equal pixels, with different labels: correct them."
        )
    empty: dict[str, list[str]] = {}
    for name in set(SPLITS) - set(table["split"].unique()):
        empty.setdefault(_empty_split_note(name, shares[name], table, original), []).append(name)
    for reason, names in empty.items():
        *others, last = sorted(names, key=SPLITS.index)
        which = f"splits {', '.join(others)} and {last} are" if others else f"split {last} is"
        warnings.append(f"the {which} empty{reason}")
    return warnings


def _empty_split_note(name: str, share: float, table: pd.DataFrame, original: pd.Series) -> str:
    """Why a split has no images, and the way out: what follows on "is empty"."""
    names, units = [split for split in SPLITS if split in original.unique()], split_units(table)
    if names and "train" not in names:
        return (
            f": the data set gives {' and '.join(names)} alone, which can be predicted and scored, not trained on; --resplit "
            "makes splits of our own."
        )
    if share == 0:
        return f", as --{name} 0 asks."
    if units.nunique() == 1:
        return ": all images are of one patient or have equal pixels, and can't be divided."
    unit = "patients" if (table["patient_id"] != "").any() else "different images"
    pool = ~units.isin(units[~original.isin(["", "train"])])  # whoever is in another split stays there
    if not pool.any():
        return f": all {unit} of train are in other splits of the data set, too, and stay there; --resplit makes splits anew."
    most = int(units[pool].groupby(table["label"]).nunique().max())
    return (
        f": each class's {unit} are drawn by themselves and stay whole, and {share:.0%} of so few (at most {most:,} of a "
        f"class) can come to none; raise --{name}, or draw with another --seed."
    )


def assign_splits(table: pd.DataFrame, *, val: float, test: float, seed: int) -> pd.Series:
    """Splits for all rows: those given stay; patients without one are spread by class, seeded, a patient in one split.

    The patients of a stratum (the set of labels that they have) stand on a circle, in the order of a hash of (seed,
    patient), each taking as much of it as it has images, and the splits are arcs of it. So each class has the shares
    asked for, and few patients change their split when others are added. Where the circle starts is drawn for each
    stratum, or a stratum of one patient would always be in the same split.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UserError(f"--val {val} and --test {test} must be shares of the images that leave some for training.")
    group = split_units(table)
    pairs = pd.DataFrame({"group": group, "label": table["label"]}).drop_duplicates().sort_values("label")
    patients = pd.DataFrame({"images": group.value_counts(), "given": strictest_split(table["split"], group)})
    several = pairs["group"].duplicated(keep=False)  # few: joining the labels of all one by one takes long
    patients["stratum"] = pd.concat(
        [pairs[~several].set_index("group")["label"], pairs[several].groupby("group")["label"].agg("|".join)]
    )
    patients["draw"] = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in patients.index]
    patients = patients.sort_values(["stratum", "draw"])
    stratum, images, assigned = patients["stratum"], patients["images"], patients["given"]
    stratum_size = images.groupby(stratum).transform("sum")
    tests, vals = (
        (share * stratum_size - images.where(assigned == split, 0).groupby(stratum).transform("sum")).clip(lower=0)
        for split, share in (("test", test), ("val", val))
    )
    images = images.where(assigned == "", 0)
    circle = images.groupby(stratum).transform("sum")
    starts = {name: hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6] for name in stratum.unique()}
    start = stratum.map({name: int.from_bytes(drawn) / 256**6 for name, drawn in starts.items()})
    at = ((images.groupby(stratum).cumsum() - images / 2) / circle + start) % 1 * circle
    patients["split"] = assigned.where(
        assigned != "", np.select([at < tests, at < tests + vals], ["test", "val"], "train")
    )
    return table["split"].where(table["split"] != "", group.map(patients["split"]))


def count_leaking_patients(table: pd.DataFrame) -> int:
    """How many known patients stand in more than one split."""
    with_patient = table[table["patient_id"] != ""]
    return int((with_patient.groupby("patient_id")["split"].nunique() > 1).sum())


def count_duplicates(table: pd.DataFrame) -> dict[str, int]:
    """Images with the pixels of another: `within` one split, and `across` splits (counting the images beyond the first)."""
    alike = table[table["sha256"] != ""].groupby("sha256")["split"].agg(["size", "nunique"])
    return {"within": int((alike["size"] - alike["nunique"]).sum()), "across": int((alike["nunique"] - 1).sum())}
