"""Sources: how each kind of data set on disk is listed. One small function each, registered by name.

A source gets a `Root` (a folder or a table, local or any fsspec URI) and returns a table with the manifest's columns that
it knows, paths relative to the root, plus any further columns worth keeping. To add one, write such a function under
`@source("name")`; splits, ids, missing columns, decoding and the rest are done for it.
"""

import dataclasses
import io
import json
import os
import posixpath
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.config import UserError, digest
from clipcovid.data.captions import PLACEHOLDER
from clipcovid.data.manifest import COLUMNS, MASKS, SPLIT_NAMES, conform, strictest
from clipcovid.data.phantom import write_phantoms
from clipcovid.labels import CLASSES

NOT_IMAGES = {
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".txt",
    ".md",
    ".parquet",
    ".xml",
    ".xlsx",
    ".ini",
    ".db",
    ".yaml",
    ".yml",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Columns of a table whose names differ from the manifest's."""

    path: str = ""
    """Column of the image's path, relative to the table, absolute, or a URI."""
    image_id: str = ""
    """Column of the image's id. Default: its path."""
    label: str = ""
    """Column of the class."""
    patient_id: str = ""
    """Column of the patient, who is kept within one split."""
    split: str = ""
    """Column of the split: train, val or test (dev, valid, training and the like are understood)."""
    source: str = ""
    """Column of the origin (hospital, collection)."""
    view: str = ""
    """Column of the view (PA, AP, lateral)."""
    caption: str = ""
    """Column of the free text."""
    lung_mask: str = ""
    """Column of the lung mask's path."""
    infection_mask: str = ""
    """Column of the infection mask's path."""
    boxes: str = ""
    """Column of the boxes, as JSON text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """The synthetic chest X-rays of `--source phantom`."""

    images: int = 600
    """How many to draw."""
    size: int = 256
    """Side of an image, in pixels."""
    seed: int = 0
    """Seed of the drawing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source found, before any image was opened."""

    table: pd.DataFrame
    """The manifest's columns (and further ones), a row an image; `path` and masks are absolute or URIs."""
    dataset: str
    """The data set's name."""
    refused: pd.DataFrame
    """Rows that name no usable place: `path, reason`."""
    parts: bool
    """Whether rows of different parts with the same pixels are one image."""
    files: str
    """Sizes and times of the files in the data set's folder, hashed; "" for a table, which may point anywhere."""


class Root:
    """A folder, or a table's folder: local, or any URI that fsspec opens."""

    def __init__(self, root: str) -> None:
        self.given = root
        try:
            self.fs, path = fsspec.core.url_to_fs(root)
            self.is_folder, found = self.fs.isdir(path), self.fs.exists(path)
        except Exception as error:  # of any of fsspec's backends
            raise UserError(f"--root {root} can't be opened ({error}).") from None
        if not found:
            raise UserError(f"--root {root} does not exist.")
        self.path = path.rstrip("/") if self.is_folder else posixpath.dirname(path)
        self.file = "" if self.is_folder else posixpath.basename(path)
        around, _, chain = root.partition("::")
        self.inside = f"::{chain}" if "://" in around else ""  # of an archive: zip://folder::scans.zip
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    def folder(self) -> "Root":
        """This root, which must be a folder."""
        if not self.is_folder:
            raise UserError(f"--root {self.given} is a file; this source wants the data set's folder.")
        return self

    @cached_property
    def found(self) -> dict[str, dict[str, Any]]:
        """What fsspec knows of every file below: relative path → size, time and so on; hidden files are left out."""
        todo, seen, found = [self.path], {os.path.realpath(self.path)}, {}
        while todo:
            for path, about in self.fs.find(todo.pop(), detail=True).items():
                if not (about.get("islink") and self.fs.isdir(path)):
                    found[path[len(self.path) :].lstrip("/")] = about
                elif (real := os.path.realpath(path)) not in seen:  # find does not follow links to folders
                    seen.add(real)
                    todo.append(path)
        hidden = re.compile(r"(^|/)\.")
        names = {path.encode(errors="replace").decode(): path for path in sorted(found) if not hidden.search(path)}
        return {name: found[path] for name, path in names.items()}  # a name that is no UTF-8 ends in the quarantine

    def files(self) -> list[str]:
        """Every file below, relative and sorted, hidden ones left out."""
        return list(self.found)

    def images(self) -> list[str]:
        """`files` without the endings that are surely not images; what the rest are, their content decides."""
        return [path for path in self.files() if posixpath.splitext(path)[1].lower() not in NOT_IMAGES]

    def state(self) -> str:
        """Names, sizes and times of the images, hashed: what tells that a file has been replaced."""
        known = [
            (path, [str(self.found[path].get(key)) for key in ("size", "mtime", "ETag", "CRC")])
            for path in self.images()
        ]
        return digest(known)

    def read(self, relative: str) -> bytes:
        """A small file's content."""
        return self.fs.cat_file(posixpath.join(self.path, relative))

    def read_text(self, relative: str) -> str:
        """A small text file's content; one that is not UTF-8 is a `UserError`."""
        try:
            return self.read(relative).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{self.resolve(relative)} is not UTF-8 text: save it as UTF-8.") from None

    def resolve(self, path: str) -> str:
        """An openable place for a path of this data set: URIs and absolute paths stay, relative ones stand below the root.

        A relative path that climbs out of the root raises ValueError.
        """
        if "://" in path or posixpath.isabs(path):
            return path
        relative = tidy(path)
        if relative.split("/")[0] == "..":
            raise ValueError("the path leaves the data set's folder; an absolute path says that this is meant")
        joined = posixpath.join(self.path, relative)
        return joined if self.local else self.fs.unstrip_protocol(joined) + self.inside


def tidy(path: str) -> str:
    """A path with slashes, without `./` and the like; a URI stays as it is."""
    return path if "://" in path else posixpath.normpath(path.replace("\\", "/"))


Source = Callable[[Root, ColumnsConfig], pd.DataFrame]
SOURCES: dict[str, Source] = {}
TABLES = ("table", "imagefolder")  # sources whose data sets have names of their own, and columns
NIH_LABELS = {"No Finding": "Normal"}
PARTS = "_part"  # a column of this name says which part of the data set a row is from, see `merge_parts`


def source(name: str) -> Callable[[Source], Source]:
    """Register a source under `name`."""

    def register(function: Source) -> Source:
        SOURCES[name] = function
        return function

    return register


@source("covidquex")
def covidquex(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """COVID-QU-Ex (Tahir et al. 2021): `[part/[part/]]<Split>/<Class>/{images,lung masks,infection masks}/name.png`."""
    files = root.folder().images()
    places = {posixpath.splitext(path)[0].lower(): path for path in files}
    known = {name.lower(): name for name in CLASSES}
    rows = []
    for path in files:
        parts = path.split("/")
        if len(parts) < 4 or parts[-2].lower() != "images" or parts[-4].lower() not in SPLIT_NAMES:
            continue
        row = {
            "path": path,
            "label": known.get(parts[-3].lower(), parts[-3]),
            "split": parts[-4],
            PARTS: "/".join(parts[:-4]),
        }
        for kind in MASKS:
            beside = "/".join([*parts[:-2], kind.replace("_", " ") + "s", parts[-1]])
            row[kind] = places.get(posixpath.splitext(beside)[0].lower(), "")
        rows.append(row)
    if not rows:
        raise UserError(
            f"{root.given} is not laid out as COVID-QU-Ex (<Split>/<Class>/images/…): for a folder per class use "
            "--source imagefolder."
        )
    return pd.DataFrame(rows)


@source("imagefolder")
def imagefolder(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """A folder per class (`<Class>/…` or `<Split>/<Class>/…`); a `metadata.csv` with `file_name` in the root is joined."""
    files = root.folder().images()
    tops = {path.split("/")[0] for path in files if "/" in path}
    by_split = bool(tops) and all(top.lower() in SPLIT_NAMES for top in tops)
    at = 1 if by_split else 0
    rows = []
    for path in files:
        folders = [*path.split("/")[:-1], "", ""]  # an image outside of the class folders has no label
        rows.append({"path": path, "label": folders[at], "split": folders[0] if by_split else ""})
    if not any(row["label"] for row in rows):
        raise UserError(f"{root.given} has no class folders with images in them (<Class>/image.png).")
    table = pd.DataFrame(rows)
    if "metadata.csv" not in root.files():
        return table
    joined = rename(read_rows(root, "metadata.csv"), columns, f"{root.given}/metadata.csv")
    if not columns.path and "file_name" in joined:
        joined = joined.drop(columns="path", errors="ignore").rename(columns={"file_name": "path"})
    elif not columns.path:
        raise UserError(
            f"{root.given}/metadata.csv has no column file_name to join the images by: say which it is with "
            f"--columns.path ({', '.join(map(str, joined))})."
        )
    joined = joined.assign(path=joined["path"].map(tidy)).drop_duplicates()
    if (again := joined["path"].duplicated()).any():
        raise UserError(
            f"{root.given}/metadata.csv says different things of {joined.loc[again, 'path'].iloc[0]}: leave it one row."
        )
    both = table.merge(
        joined, on="path", how="outer", suffixes=("", " joined")
    )  # named there, not on disk: quarantined
    for column in ("label", "split"):
        if f"{column} joined" in both:
            said = both.pop(f"{column} joined")
            both[column] = said.where(said.notna() & (said != ""), both[column])
    return both


@source("table")
def table(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """A CSV, JSON, JSONL or Parquet table: columns named as in the manifest are taken, others by `--columns.*`."""
    if not root.file:
        raise UserError(f"--root {root.given} is a folder; --source table wants the table's file.")
    rows = rename(read_rows(root, root.file), columns, root.given)
    if "path" not in rows and "file_name" in rows:
        rows = rows.rename(columns={"file_name": "path"})
    if "path" not in rows:
        raise UserError(
            f"{root.given} has no column named path: say which holds the images' paths with --columns.path "
            f"({', '.join(map(str, rows))})."
        )
    return rows


@source("medpix2")
def medpix2(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """MedPix 2.0 (Siragusa et al. 2024): `descriptions_<split>.jsonl`, `Case_topic.json` and `images/`."""
    files = root.folder().files()
    places = {posixpath.splitext(posixpath.basename(path))[0]: path for path in root.images()}
    topics = {}
    for path in files:
        if posixpath.basename(path) == "Case_topic.json":
            try:
                topics = {case["U_id"]: case.get("Case") or {} for case in json.loads(root.read_text(path))}
            except (ValueError, LookupError, TypeError, AttributeError):
                raise UserError(f"{root.given}: {path} is not a JSON list of cases with their U_id.") from None
    rows = []
    for path in files:
        if not (match := re.fullmatch(r"descriptions_(\w+)\.jsonl", posixpath.basename(path))):
            continue
        for row in json_lines(root, path, needed=("U_id", "image", "Type")):
            what, case = row.get("Description") or {}, topics.get(row["U_id"], {})
            rows.append(
                {
                    "path": places.get(row["image"], f"images/{row['image']}.png"),
                    "label": row["Type"],
                    "patient_id": row["U_id"],
                    "split": match[1],
                    "view": what.get("Plane"),
                    "caption": what.get("Caption"),
                    "modality": what.get("Modality"),
                    "location": row.get("Location"),
                    "location_category": row.get("Location Category"),
                    "age": what.get("Age"),
                    "sex": what.get("Sex"),
                    "title": case.get("Title"),
                    "diagnosis": case.get("Case Diagnosis"),
                }
            )
    if not rows:
        raise UserError(f"{root.given} has no descriptions_<split>.jsonl: is it the folder of MedPix 2.0?")
    return pd.DataFrame(rows, dtype=object)


@source("nih14")
def nih14(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """NIH ChestX-ray14 (Wang et al. 2017): `Data_Entry_2017*.csv`, `BBox_List_2017.csv`, `test_list.txt`, images anywhere.

    The rule from its findings to our classes: `No Finding` alone is Normal, `Pneumonia` with whatever else is Non-COVID,
    and all others have no label; `findings` keeps them as they are. Images of `test_list.txt` are test, the others are
    split by patient. Only what is on disk is listed: the archive comes in twelve parts.
    """
    places = {posixpath.basename(path): path for path in root.folder().images()}
    tables = {posixpath.basename(path): path for path in root.files()}
    entries = [path for name, path in tables.items() if re.fullmatch(r"Data_Entry_2017.*\.csv", name)]
    if not entries:
        raise UserError(f"{root.given} has no Data_Entry_2017.csv: is it the folder of NIH ChestX-ray14?")
    rows = _needed(root, entries[0], {"Image Index", "Finding Labels", "Patient ID", "View Position"})
    rows = rows[rows["Image Index"].isin(list(places))]
    tested = set(root.read_text(tables["test_list.txt"]).split()) if "test_list.txt" in tables else set()
    boxes: dict[str, list[dict[str, Any]]] = {}
    if "BBox_List_2017.csv" in tables:
        listed = _needed(
            root, tables["BBox_List_2017.csv"], {"Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"}
        )
        for image, finding, *sides in listed[["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]].to_numpy():
            x, y, width, height = map(float, sides)
            boxes.setdefault(image, []).append({"label": finding, "x": x, "y": y, "width": width, "height": height})
    found = rows["Finding Labels"].str.split("|")
    return pd.DataFrame(
        {
            "path": rows["Image Index"].map(places),
            "label": found.map(
                lambda names: "Non-COVID" if "Pneumonia" in names else NIH_LABELS.get("|".join(names), "")
            ),
            "patient_id": rows["Patient ID"],
            "split": ["test" if image in tested else "" for image in rows["Image Index"]],
            "view": rows["View Position"],
            "boxes": [boxes.get(image, "") for image in rows["Image Index"]],
            "findings": rows["Finding Labels"],
            "age": rows.get("Patient Age", ""),
            "sex": rows.get("Patient Gender", rows.get("Patient Sex", "")),
        },
        dtype=object,
    )


@source("iuxray")
def iuxray(root: Root, columns: ColumnsConfig) -> pd.DataFrame:
    """Indiana University chest X-rays (OpenI, Demner-Fushman et al. 2016): the XML reports, or Kaggle's two CSV files.

    The caption is the report's findings and impression. Reports indexed as `normal` alone are Normal, all others have no
    label; a report's images are of one patient. Images are found by their names, wherever they are.
    """
    places: dict[str, str] = {}
    for path in root.folder().images():
        name = posixpath.splitext(posixpath.basename(path))[0]
        places.setdefault(name, path)
        places.setdefault(name.removesuffix(".dcm"), path)  # Kaggle's are called 1_IM-0001-4001.dcm.png
    tables = {posixpath.basename(path): path for path in root.files()}
    reports: dict[str, dict[str, str]] = {}
    images: list[tuple[str, str, str]] = []  # report, image, view
    if "indiana_reports.csv" in tables and "indiana_projections.csv" in tables:
        said = _needed(root, tables["indiana_reports.csv"], {"uid", "MeSH", "findings", "impression"})
        for row in said.to_dict("records"):
            reports[row["uid"]] = {name: row[name] for name in ("findings", "impression", "MeSH")}
        listed = _needed(root, tables["indiana_projections.csv"], {"uid", "filename", "projection"})
        for row in listed.to_dict("records"):
            images.append((row["uid"], posixpath.splitext(row["filename"])[0], row["projection"]))
    else:
        for path in (path for path in root.files() if path.endswith(".xml")):
            report, there = _openi(root.read_text(path), path)
            reports[path] = report
            images += [(path, name, "") for name in there]
    if not images:
        raise UserError(
            f"{root.given} has neither OpenI's XML reports nor indiana_reports.csv and indiana_projections.csv."
        )
    rows = []
    for uid, name, view in images:
        report = reports.get(uid, {})
        text = [part.strip() for part in (report.get("findings", ""), report.get("impression", "")) if part.strip()]
        place = places.get(name, places.get(name.removesuffix(".dcm"), f"{name}.png"))
        about = {"findings": report.get("findings", ""), "impression": report.get("impression", "")}
        label = "Normal" if report.get("MeSH", "").strip().lower() == "normal" else ""
        rows.append(
            {"path": place, "label": label, "patient_id": posixpath.splitext(posixpath.basename(uid))[0], "view": view}
            | {"caption": " ".join(text), "mesh": report.get("MeSH", "")}
            | about
        )
    return pd.DataFrame(rows, dtype=object)


def _openi(text: str, path: str) -> tuple[dict[str, str], list[str]]:
    """Findings, impression and MeSH terms of an OpenI report, and the names of its images."""
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not valid XML ({error}).") from None
    sections = {
        node.get("Label", "").lower(): " ".join("".join(node.itertext()).split()) for node in tree.iter("AbstractText")
    }
    terms = ";".join((node.text or "").strip() for node in tree.iter("major"))
    report = {"findings": sections.get("findings", ""), "impression": sections.get("impression", ""), "MeSH": terms}
    return report, [node.get("id", "") for node in tree.iter("parentImage")]


def _needed(root: Root, path: str, needed: set[str]) -> pd.DataFrame:
    rows = read_rows(root, path)
    if missing := needed - set(rows):
        raise UserError(f"{root.given}/{path} lacks the columns {', '.join(sorted(missing))}.")
    return rows


def rename(rows: pd.DataFrame, columns: ColumnsConfig, table: str) -> pd.DataFrame:
    """The rows of a table with the columns that `--columns.*` names under the manifest's names."""
    named = {column: name for column, name in dataclasses.asdict(columns).items() if name}
    if missing := [name for name in named.values() if name not in rows]:
        raise UserError(f"{table} has no column {missing[0]!r}; it has: {', '.join(map(str, rows))}.")
    taken = {column: rows[name] for column, name in named.items()}
    gone = [name for name in rows if name in named or (name in named.values() and name not in COLUMNS)]
    return rows.drop(columns=gone).assign(**taken)


def json_lines(root: Root, path: str, needed: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a line that is no JSON object, or lacks what is needed, is a `UserError`."""
    for number, line in enumerate(root.read_text(path).split("\n"), start=1):  # splitlines splits at U+2028, too
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error}).") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object.")
        if missing := [key for key in needed if key not in row]:
            raise UserError(f"{path}, line {number}: has no {missing[0]}.")
        yield row


def read_rows(root: Root, path: str) -> pd.DataFrame:
    """A table file's rows, text or as it holds them; its ending says its format."""
    ending = posixpath.splitext(path)[1].lower()
    try:
        if ending in (".csv", ".tsv"):
            separator = "\t" if ending == ".tsv" else ","
            text = io.StringIO(
                root.read_text(path)
            )  # without index_col, a comma at each row's end would shift the columns
            rows = pd.read_csv(text, dtype=str, keep_default_na=False, sep=separator, index_col=False)
        elif ending == ".jsonl":
            rows = pd.DataFrame(list(json_lines(root, path)), dtype=object)  # as floats, long numbers would lose digits
        elif ending == ".json":
            content = json.loads(root.read_text(path))
            rows = pd.DataFrame(content if isinstance(content, list) else list(content.values()), dtype=object)
        elif ending in (".parquet", ".pq"):
            rows = pq.read_table(pa.BufferReader(root.read(path))).to_pandas(integer_object_nulls=True)
        else:
            raise UserError(
                f"{root.given}: a table must be .csv, .tsv, .json, .jsonl or .parquet, not {ending or 'without ending'}."
            )
    except UserError:
        raise
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"{root.given}: {path} can't be read as a {ending} table ({error}).") from None
    return rows.rename(columns=lambda name: str(name).strip())


def list_source(name: str, root: str, columns: ColumnsConfig, phantoms: PhantomConfig, drawn: Path) -> Listing:
    """List a data set: every image with what its source knows of it. Phantoms are drawn into `drawn` first."""
    if name == "phantom":
        root = str(
            write_phantoms(drawn, images=phantoms.images, size=phantoms.size, seed=phantoms.seed) / "metadata.csv"
        )
        name, dataset = "table", "phantom"
    elif name not in SOURCES:
        raise UserError(f"--source {name!r} is unknown: use {', '.join([*SOURCES, 'phantom'])}.")
    elif not root:
        raise UserError(f"--source {name} needs --root, the data set's folder, table or URI.")
    elif name not in TABLES and columns != ColumnsConfig():
        raise UserError(f"--columns.* name a table's columns, and --source {name} has none.")
    else:
        dataset = name
    place = Root(root)
    if dataset in TABLES:
        dataset = posixpath.splitext(place.file)[0] or posixpath.basename(place.path)
    rows = SOURCES[name](place, columns)
    if rows.empty:
        raise UserError(f"{root} lists no images.")
    parts = PARTS in rows and rows[PARTS].nunique() > 1
    rows = conform(rows.drop(columns=["width", "height", "sha256"], errors="ignore"))  # the files themselves say
    rows["split"] = _splits(rows["split"])
    rows.loc[rows["caption"].str.fullmatch(PLACEHOLDER), "caption"] = ""
    rows, refused = _resolve(place, rows)
    while (again := rows.groupby("image_id").cumcount()).any():  # listed twice: both stay, told apart
        rows["image_id"] += again.map(lambda count: f"#{count + 1}" if count else "")
    files = place.state() if place.is_folder else ""
    return Listing(table=rows, dataset=dataset, refused=refused, parts=parts, files=files)


def _splits(given: pd.Series) -> pd.Series:
    names = given.str.lower()
    if unknown := set(names) - {"", *SPLIT_NAMES}:
        raise UserError(f"Unknown splits {sorted(unknown)}: use train, val or test, or leave the column out.")
    return names.map(lambda name: SPLIT_NAMES.get(name, ""))


def _resolve(place: Root, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make paths openable; a row whose image has no usable path is refused, a mask without one is dropped, both named."""
    refused: list[dict[str, str]] = []

    def openable(path: str) -> str:
        try:
            return place.resolve(path) if path else ""
        except ValueError as error:
            refused.append({"path": path, "reason": str(error)})
            return ""

    inside = rows["path"].map(lambda path: tidy(path).removeprefix(f"{place.path}/") if path else "")
    rows["image_id"] = rows["image_id"].where(rows["image_id"] != "", inside)
    refused += [{"path": f"row {i + 1}", "reason": "no image path"} for i in rows.index[rows["path"] == ""]]
    for column in ("path", *MASKS):
        rows[column] = rows[column].map(openable)
    return rows[rows["path"] != ""].reset_index(drop=True), pd.DataFrame(refused, columns=["path", "reason"])


def merge_parts(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Make one row of the rows of different parts that show the same pixels (`sha256`) under the same label.

    The first part's row stays, takes the masks that it lacks from the others, and the strictest of their splits.
    Returns the table and counts: `merged` rows that went into another, `moved` images whose rows had different splits.
    """
    known = table[table["sha256"] != ""]
    nth = known.groupby(["sha256", "label", PARTS]).cumcount()  # a part's own duplicates stay apart
    key = known.groupby([known["sha256"], known["label"], nth]).ngroup().reindex(table.index)
    key = key.fillna(pd.Series(-1.0 - np.arange(len(table)), index=table.index))
    moved = int((table.groupby(key)["split"].nunique() > 1).sum())
    masks = {kind: table[kind].where(table[kind] != "") for kind in MASKS}  # "first" passes over missing ones
    merged = table.assign(**masks).groupby(key, sort=False).agg("first").fillna(dict.fromkeys(MASKS, ""))
    merged["split"] = strictest(table["split"], key)
    return merged.reset_index(drop=True), {"merged": len(table) - len(merged), "moved": moved}
