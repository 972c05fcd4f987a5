"""From a data set's own folder to a prepared one: manifest, packed images and quarantine, through Ray Data."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pyarrow.parquet as pq
import tyro

from clipcovid.config import ComputeConfig, ImagesConfig, UserError, flatten_resolved
from clipcovid.data import images
from clipcovid.data.classes import clean_labels, keep_classes
from clipcovid.data.dicom_headers import fill_from_headers, similar_patients
from clipcovid.data.folder import (
    DICOM_HEADERS,
    LISTING,
    check_folder,
    is_prepared_folder,
    remove_dicom_headers,
    reset_prepared_folder,
)
from clipcovid.data.manifest import MASK_COLUMNS, SPLITS, Manifest, read_manifest, write_manifest
from clipcovid.data.packing import check_disk_space, pack_row
from clipcovid.data.packing_notes import read_packing_notes
from clipcovid.data.shards import mask_hashes, read_shard, write_shard
from clipcovid.data.sources import PART_COLUMN, SOURCES, ColumnsConfig, Listing, PhantomConfig, list_source, merge_parts
from clipcovid.data.splits import count_duplicates, count_leaking_patients, make_splits
from clipcovid.identity import digest
from clipcovid.io.files import lock_folder, read_parquet, refuse_overlap, unlock_folder, write_json, write_parquet
from clipcovid.ray_backend.cluster import cluster_nodes, connect
from clipcovid.ray_backend.map import parallel_map
from clipcovid.ray_backend.resources import ResourcePlan, plan_resources
from clipcovid.ray_backend.shards import sharded_map

DECODER_VERSION = 1  # to be raised when the same file would give other pixels
RULES_VERSION = 3  # to be raised when the same files would give other rows, columns or splits
SOURCE_HELP = f"How the data set is laid out: {', '.join(SOURCES)}, phantom (synthetic)."
ROWS_PER_SHARD = 256  # images a packed file: 13 MB at 224 px, small enough to redo, large enough to map


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare, and where to."""

    source: Annotated[str, tyro.conf.arg(help=SOURCE_HELP)] = "phantom"
    """How the data set is laid out: a name in `SOURCES`, or phantom for synthetic X-rays."""
    root: str = ""
    """The data set's folder or table: a local path or any fsspec URI."""
    image_folder: Annotated[str, tyro.conf.arg(name="images")] = ""
    """The folder that a table's image paths are relative to. Default: the table's own."""
    version: str = ""
    """Which version of COVIDx, where --root has the lists of several, e.g. 9A."""
    out: Path = Path()
    """The prepared folder to write. Default: data/ and the source's name."""
    columns: ColumnsConfig = ColumnsConfig()
    """Names of a table's columns."""
    phantom: PhantomConfig = PhantomConfig()
    """The synthetic images."""
    images: tyro.conf.OmitArgPrefixes[ImagesConfig] = ImagesConfig()
    """How images are decoded and resized."""
    classes: tuple[str, ...] = ()
    """Classes to keep, in this order. Default: all that are found; the three of COVID-QU-Ex in their own order."""
    rename: tuple[str, ...] = ()
    """OLD=NEW …: classes to be called otherwise, before --classes is applied; nothing after the = leaves no label."""
    val: float = 0.1
    """Share of the images for validation, where the data set gives no such split."""
    test: float = 0.2
    """Share of the images for testing, where the data set gives no such split."""
    resplit: bool = False
    """Put the data set's own splits aside, and make new ones by patient and by equal pixels."""
    seed: int = 0
    """Seed of the split."""
    max_bad: float = 0.05
    """Share of images that may be bad; above it the job stops."""
    overwrite: bool = False
    """Delete the preparation that --out holds, and begin anew."""
    compute: ComputeConfig = ComputeConfig()
    """What to ask of the cluster."""

    def __post_init__(self) -> None:
        if self.out == Path():
            object.__setattr__(self, "out", Path("data") / self.source)
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"--max-bad {self.max_bad} is a share of the images, from 0 to 1.")
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise UserError(f"--val {self.val} and --test {self.test} must be shares that leave some for training.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """A prepared folder as `prepare` leaves it."""

    manifest: Manifest
    quarantine: pd.DataFrame
    """`path, reason` of every file that could not be used."""
    created: bool
    """False where everything had been done before."""


def prepare(config: PrepareConfig, log: Callable[[str], None] = print) -> PrepareResult:
    """Prepare a data set; run again, it goes on where it stopped, or says that it is done.

    Writes `images/*.arrow`, `quarantine.parquet` and, last, `manifest.parquet` into `config.out`. Raises `UserError`
    where the folder holds another preparation, or more than `max_bad` of the images are bad.
    """
    try:
        return _prepare(config, log)
    finally:
        unlock_folder(config.out)


def _prepare(config: PrepareConfig, log: Callable[[str], None]) -> PrepareResult:
    _check_out(config)
    options = _options(config)
    if config.overwrite or not _is_started(config.out):
        check_folder(config.out)
    else:
        _is_done(config.out, options)  # before phantoms are drawn over those of another preparation
    if config.source == "phantom":
        lock_folder(config.out)
    listing = list_source(
        config.source,
        config.root,
        config.columns,
        config.phantom,
        config.out / "phantom",
        config.image_folder,
        config.version,
    )
    table, info = _rows(config, listing)
    recipe = options | {"listing": digest(table.to_json(orient="values")), "files": listing.files_digest}
    if config.overwrite:
        reset_prepared_folder(config.out)
    if _is_done(config.out, recipe):
        manifest = read_manifest(config.out)
        _remove_partial_files(config.out)  # of one that was killed at its very end
        return PrepareResult(manifest=manifest, quarantine=_read_quarantine(config.out), created=False)
    lock_folder(config.out)
    if not (config.out / LISTING).exists():
        reset_prepared_folder(config.out)  # without packed files of which nothing says what they hold
    check_disk_space(config.out, table, config.images)
    connect(config.compute)
    table, info["parts"] = _final_listing(config, table, recipe, parts=listing.merge_equal_pixels)
    _pack(config, log)
    table, quarantine = _readable_rows(config, table, listing.refused)
    headers, assumed = read_packing_notes(config.out, len(table))
    table, notes = fill_from_headers(table, headers)
    splits, more, warnings = make_splits(
        table, val=config.val, test=config.test, seed=config.seed, resplit=config.resplit
    )
    table["split"] = splits
    info["notes"] += [*assumed, *notes, *more]
    info |= {
        "recipe": recipe,
        "images": dataclasses.asdict(config.images),
        "pack_hash": pack_hash(config.images),
        "masks_hash": mask_hashes(config.out),
        "duplicates": count_duplicates(table),
        "patients_across_splits": count_leaking_patients(table),
        "warnings": [*warnings, *similar_patients(headers)],
    }
    manifest = Manifest(table=table, classes=tuple(info.pop("classes")), dataset=listing.dataset, info=info)
    write_manifest(config.out, manifest)
    _remove_partial_files(config.out)
    return PrepareResult(manifest=manifest, quarantine=quarantine, created=True)


def _rows(config: PrepareConfig, listing: Listing) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The listing's rows of the wanted classes; and `classes`, `left_out` and `notes`."""
    table = listing.table.copy()
    where = f"the column {config.columns.label or 'label'!r}" if config.source == "table" else "the labels"
    table["label"], notes = clean_labels(table["label"], wanted=config.classes, renames=config.rename, where=where)
    table, left_out, classes = keep_classes(table, config.classes)
    return table, {"left_out": left_out, "classes": classes, "notes": [*listing.notes, *notes]}


def _readable_rows(
    config: PrepareConfig, table: pd.DataFrame, refused: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows whose images could be packed, and the quarantine, which is written; too many bad ones: `UserError`."""
    listed = len(table) + len(refused)
    table, bad, hit = _read_shards(table, config.out)
    quarantine = pd.concat([refused, bad], ignore_index=True)
    write_parquet(config.out / "quarantine.parquet", quarantine, {})
    hit += len(refused)
    share = hit / listed
    if share > config.max_bad or table.empty:
        raise UserError(
            f"{hit} of {listed} images are bad or have a bad mask ({share:.1%}; --max-bad "
            f"allows {config.max_bad:.1%}): {summarize_reasons(quarantine)}. {config.out / 'quarantine.parquet'} names them: "
            "mend the files and run again with --overwrite, or raise --max-bad."
        )
    return table, quarantine


def _remove_partial_files(out: Path) -> None:
    """Remove what only an unfinished preparation has."""
    (out / LISTING).unlink(missing_ok=True)
    for partial in (out / "images").glob(".[0-9]*.arrow.[0-9]*"):  # of workers that were killed
        partial.unlink()
    remove_dicom_headers(out)


def pack_hash(config: ImagesConfig) -> str:
    """The hash of how pixels are made: size, mode, fit, and the decoder's version."""
    used = {
        key: value for key, value in flatten_resolved(config).items() if value or key != "mask_value"
    }  # which came later
    return digest(used | {"decoder": DECODER_VERSION})


def _options(config: PrepareConfig) -> dict[str, str]:
    """The options that shape the outcome; with the listing and the files they tell one preparation from another."""
    left_out = {"out", "overwrite", "max_bad", "root", "image_folder"}
    flat = {
        k: str(v) for k, v in flatten_resolved(config).items() if k not in left_out and not k.startswith("compute.")
    }
    return flat | {"decoder": str(DECODER_VERSION), "rules": str(RULES_VERSION)}


def _check_out(config: PrepareConfig) -> None:
    """Refuse to write where the data set's own files are; a table's folder may hold prepared sets beside it."""
    for location in {config.root, config.image_folder} - {""} if config.source != "phantom" else ():
        if "://" in location.removeprefix("file://"):
            continue
        path, flag = Path(location.removeprefix("file://")), "--root" if location == config.root else "--images"
        if path.is_dir() or config.out.resolve() not in path.resolve().parents:
            refuse_overlap(config.out, flag, path)
        else:
            refuse_overlap(config.out, f"the folder of {flag}", path.parent)


def _is_started(out: Path) -> bool:
    return is_prepared_folder(out) and any((out / name).exists() for name in ("manifest.parquet", LISTING))


def _is_done(out: Path, recipe: dict[str, str]) -> bool:
    """Whether `out` holds this very preparation, finished; another one there, finished or begun, is a `UserError`.

    Only what `recipe` says is compared.
    """
    if done := (out / "manifest.parquet").exists():
        earlier = read_manifest(out).info.get("recipe", {})
    elif (out / LISTING).exists():
        earlier = (read_parquet(out / LISTING)[1] or {}).get("recipe", {})
    else:
        return False
    if earlier.get("rules") != recipe["rules"]:
        raise UserError(
            f"{out} was prepared by another version of clipcovid, which made other rows and splits of the same files: "
            "choose another --out, or --overwrite it."
        )
    if differs := sorted(key for key in recipe if earlier.get(key, "") != recipe[key]):
        what = "the data set's files or table" if set(differs) <= {"listing", "files"} else ", ".join(differs)
        raise UserError(f"{out} holds another preparation ({what} differ): choose another --out, or --overwrite it.")
    return done


def _final_listing(
    config: PrepareConfig, table: pd.DataFrame, recipe: dict[str, str], *, parts: bool
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Write what is to be packed, a shard a row group, its parts merged; or read it where an earlier start wrote it."""
    path, counts = config.out / LISTING, {"merged": 0, "moved": 0}
    if path.exists():
        earlier, meta = read_parquet(path)
        if meta and "parts" in meta:
            return earlier, meta["parts"]
    if parts:
        write_parquet(path, table, {"recipe": recipe}, row_group_size=ROWS_PER_SHARD)
        items = _shard_items(config.out)
        results = parallel_map(
            items,
            _hash_shard,
            _plan_packing(config, items),
            total=len(table),
            label="Comparing the parts",
            settings=_packing_settings(config),
        )
        hashes = {item["number"]: item["hashes"] for item in results}
        table["sha256"] = [text for item in items for text in hashes[item["number"]]]
        table, counts = merge_parts(table)
    table = table.drop(columns=PART_COLUMN, errors="ignore")
    write_parquet(path, table, {"recipe": recipe, "parts": counts}, row_group_size=ROWS_PER_SHARD)
    return table, counts


def _pack(config: PrepareConfig, log: Callable[[str], None]) -> None:
    """Write the shards that do not exist yet."""
    items = _shard_items(config.out)
    sharded_map(
        config.out / "images",
        items,
        _pack_shard,
        _plan_packing(config, items),
        suffix=".arrow",
        label="Packing",
        settings=_packing_settings(config),
        resume_message="{done} of {shards} packed files are there",
        log=log,
    )


def _shard_items(out: Path) -> list[dict[str, Any]]:
    """Number and images of each shard, a row group of the listing."""
    metadata = pq.ParquetFile(out / LISTING).metadata
    return [
        {"number": number, "images": metadata.row_group(number).num_rows} for number in range(metadata.num_row_groups)
    ]


def _plan_packing(config: PrepareConfig, items: Sequence[dict[str, Any]]) -> ResourcePlan:
    return plan_resources(config.compute, cluster_nodes(), gpu=False, items=len(items))


def _packing_settings(config: PrepareConfig) -> dict[str, Any]:
    return {"out": config.out.resolve(), "config": config.images}


def _shard_rows(out: Path, number: int) -> list[dict[str, str]]:
    return pq.ParquetFile(out / LISTING).read_row_group(number).to_pylist()


def _pack_shard(item: dict[str, Any], *, out: Path, config: ImagesConfig) -> dict[str, Any]:
    rows = [pack_row(row, config) for row in _shard_rows(out, item["number"])]
    headers = {row["image_id"]: row["header"] for row in rows if row["header"]}
    notes = Counter(note for row in rows for note in row["notes"])
    if headers or notes:  # before the shard, which says that all is done
        write_json(out / DICOM_HEADERS / f"{item['number']:05}.json", {"headers": headers, "notes": notes})
    write_shard(Path(item["path"]), rows)
    return item | {"images": len(rows)}


def _hash_shard(item: dict[str, Any], *, out: Path, config: ImagesConfig) -> dict[str, Any]:
    """The hash of each image's pixels, "" for a bad one (which is named when it is packed)."""
    hashes = []
    for row in _shard_rows(out, item["number"]):
        try:
            hashes.append(
                images.pixel_hash(images.decode_pixels(images.read_bytes(row["path"]), max_pixels=config.max_pixels))
            )
        except images.BadImage:
            hashes.append("")
    return item | {"images": len(hashes), "hashes": hashes}


def _read_shards(table: pd.DataFrame, out: Path) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Read back what the shards hold of each file.

    Returns the good rows with size and hash, the bad files with reasons, and how many rows have a bad file.
    """
    columns = ["image_id", "width", "height", "sha256", "bad"]
    shards = [read_shard(path).select(columns).to_pandas() for path in sorted((out / "images").glob("[0-9]*.arrow"))]
    read = pd.concat(shards).set_index("image_id").reindex(table["image_id"]).reset_index()
    for column in ("width", "height", "sha256"):
        table[column] = read[column].to_numpy()
    bad = {row: json.loads(text) for row, text in read["bad"].items() if text != "{}"}
    for kind in MASK_COLUMNS:
        table.loc[[row for row, files in bad.items() if table.at[row, kind] in files], kind] = ""
    files = [pair for files in bad.values() for pair in files.items()]
    good = table[table["sha256"] != ""].reset_index(drop=True)
    return good, pd.DataFrame(files, columns=["path", "reason"]), len(bad)


def _read_quarantine(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "quarantine.parquet")


def summarize_reasons(quarantine: pd.DataFrame, limit: int = 3) -> str:
    """The most frequent reasons of a quarantine table, counted, in a line; shares in them differ from file to file."""
    counts = quarantine["reason"].str.replace(r" \(\d+%\)", "", regex=True).value_counts()
    reasons = [f"{count} × {reason}" for reason, count in counts.head(limit).items()]
    return "; ".join(reasons + [f"{len(counts) - limit} more reasons"] * (len(counts) > limit))


def count_by_split(manifest: Manifest) -> pd.DataFrame:
    """Images per split × class, with patients, masks and captions: what `clipcovid prepare` prints."""
    rows = []
    for split in (*SPLITS, "all"):
        part = manifest.table if split == "all" else manifest.table[manifest.table["split"] == split]
        labels = part["label"].value_counts()
        row: dict[str, Any] = {"split": split} | {name: int(labels.get(name, 0)) for name in manifest.classes}
        if "" in set(manifest.table["label"]):
            row["no label"] = int(labels.get("", 0))
        row["images"] = len(part)
        if (manifest.table["patient_id"] != "").any():
            row["patients"] = int(part.loc[part["patient_id"] != "", "patient_id"].nunique())
        for kind in MASK_COLUMNS:
            row[kind.replace("_", " ") + "s"] = int((part[kind] != "").sum())
        rows.append(row | {"captions": int((part["caption"] != "").sum())})
    return pd.DataFrame(rows)
