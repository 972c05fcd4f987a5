"""From a data set's own folder to a prepared one: manifest, packed images and quarantine, through Ray Data."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pyarrow.parquet as pq
import tyro

from clipcovid.config import ComputeConfig, ImagesConfig, UserError, flatten
from clipcovid.data import images
from clipcovid.data.folder import LISTING, begin_folder, check_folder, is_ours
from clipcovid.data.manifest import (
    MASKS,
    SPLITS,
    Manifest,
    assign_splits,
    duplicates,
    read_manifest,
    split_patients,
    write_manifest,
)
from clipcovid.data.masks import decode_mask
from clipcovid.data.packed import read_shard, write_shard
from clipcovid.data.sources import PARTS, ColumnsConfig, PhantomConfig, list_source, merge_parts
from clipcovid.distribute import spread
from clipcovid.files import read_parquet, refuse_overlap, write_parquet
from clipcovid.identity import digest
from clipcovid.labels import CLASSES
from clipcovid.resources import connect, nodes, plan

DECODER = 1  # to be raised when the same file would give other pixels
SHARD = 256  # images a packed file: 13 MB at 224 px, small enough to redo, large enough to map


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare, and where to."""

    source: str = "phantom"
    """How the data set is laid out: covidquex, nih14, iuxray, medpix2, imagefolder, table, phantom (synthetic)."""
    root: str = ""
    """The data set's folder or table: a local path or any fsspec URI."""
    image_folder: Annotated[str, tyro.conf.arg(name="images")] = ""
    """The folder that a table's image paths are relative to. Default: the table's own."""
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
    val: float = 0.1
    """Share of the images for validation, where the data set gives no split."""
    test: float = 0.2
    """Share of the images for testing, where the data set gives no split."""
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
class Prepared:
    """A prepared folder as `prepare` leaves it."""

    manifest: Manifest
    quarantine: pd.DataFrame
    """`path, reason` of every file that could not be used."""
    fresh: bool
    """False where everything had been done before."""


def prepare(config: PrepareConfig, log: Callable[[str], None] = print) -> Prepared:
    """Prepare a data set; run again, it goes on where it stopped, or says that it is done.

    Writes `images/*.arrow`, `quarantine.parquet` and, last, `manifest.parquet` into `config.out`. Raises `UserError`
    where the folder holds another preparation, or more than `max_bad` of the images are bad.
    """
    _check_out(config)
    options = _options(config)
    if config.overwrite or not _begun(config.out):
        check_folder(config.out)
    else:
        _is_done(config.out, options)  # before phantoms are drawn over those of another preparation
    listing = list_source(
        config.source, config.root, config.columns, config.phantom, config.out / "phantom", config.image_folder
    )
    table, left_out, classes = _keep_classes(listing.table, config.classes)
    recipe = options | {"listing": digest(table.to_json(orient="values")), "files": listing.files}
    if config.overwrite:
        begin_folder(config.out)
    if _is_done(config.out, recipe):
        manifest = read_manifest(config.out)
        return Prepared(manifest=manifest, quarantine=_read_quarantine(config.out), fresh=False)
    if not (config.out / LISTING).exists():
        begin_folder(config.out)  # without packed files of which nothing says what they hold
    connect(config.compute)
    info: dict[str, Any] = {"left_out": left_out}
    table, info["parts"] = _final_listing(config, table, recipe, parts=listing.parts)
    _pack(config, log)
    listed = len(table) + len(listing.refused)
    table, bad, hit = _collect(table, config.out)
    quarantine = pd.concat([listing.refused, bad], ignore_index=True)
    write_parquet(config.out / "quarantine.parquet", quarantine, {})
    hit += len(listing.refused)
    share = hit / listed
    if share > config.max_bad or table.empty:
        raise UserError(
            f"{hit} of {listed} images are bad or have a bad mask ({share:.1%}; --max-bad "
            f"allows {config.max_bad:.1%}): {reasons(quarantine)}. {config.out / 'quarantine.parquet'} names them: mend "
            "the files and run again with --overwrite, or raise --max-bad."
        )
    table["split"] = assign_splits(table, val=config.val, test=config.test, seed=config.seed)
    info |= {
        "recipe": recipe,
        "images": dataclasses.asdict(config.images),
        "pack_hash": pack_hash(config.images),
        "duplicates": duplicates(table),
        "patients_across_splits": split_patients(table),
    }
    manifest = Manifest(table=table, classes=classes, dataset=listing.dataset, info=info)
    write_manifest(config.out, manifest)
    (config.out / LISTING).unlink()
    for partial in (config.out / "images").glob(".[0-9]*.arrow.[0-9]*"):  # of workers that were killed
        partial.unlink()
    return Prepared(manifest=manifest, quarantine=quarantine, fresh=True)


def pack_hash(config: ImagesConfig) -> str:
    """The hash of how pixels are made: size, mode, fit, and the decoder's version."""
    used = {key: value for key, value in flatten(config).items() if value or key != "mask_value"}  # which came later
    return digest(used | {"decoder": DECODER})


def _options(config: PrepareConfig) -> dict[str, str]:
    """The options that shape the outcome; with the listing and the files they tell one preparation from another."""
    left_out = {"out", "overwrite", "max_bad", "root", "image_folder"}
    flat = {k: str(v) for k, v in flatten(config).items() if k not in left_out and not k.startswith("compute.")}
    return flat | {"decoder": str(DECODER)}


def _check_out(config: PrepareConfig) -> None:
    """Refuse to write where the data set's own files are; a table's folder may hold prepared sets beside it."""
    for given in {config.root, config.image_folder} - {""} if config.source != "phantom" else ():
        if "://" in given.removeprefix("file://"):
            continue
        place, flag = Path(given.removeprefix("file://")), "--root" if given == config.root else "--images"
        if place.is_dir() or config.out.resolve() not in place.resolve().parents:
            refuse_overlap(config.out, flag, place)
        else:
            refuse_overlap(config.out, f"the folder of {flag}", place.parent)


def _begun(out: Path) -> bool:
    return is_ours(out) and any((out / name).exists() for name in ("manifest.parquet", LISTING))


def _is_done(out: Path, recipe: dict[str, str]) -> bool:
    """Whether `out` holds this very preparation, finished; another one there, finished or begun, is a `UserError`.

    Only what `recipe` says is compared.
    """
    if done := (out / "manifest.parquet").exists():
        there = read_manifest(out).info.get("recipe", {})
    elif (out / LISTING).exists():
        there = (read_parquet(out / LISTING)[1] or {}).get("recipe", {})
    else:
        return False
    if differs := sorted(key for key in recipe if there.get(key, "") != recipe[key]):
        what = "the data set's files or table" if set(differs) <= {"listing", "files"} else ", ".join(differs)
        raise UserError(f"{out} holds another preparation ({what} differ): choose another --out, or --overwrite it.")
    return done


def _keep_classes(table: pd.DataFrame, wanted: tuple[str, ...]) -> tuple[pd.DataFrame, dict[str, int], tuple[str, ...]]:
    """The rows of the wanted classes (unlabelled ones stay), how many of which others were left out, and the classes."""
    found = set(table["label"]) - {""}
    if len(set(wanted)) < len(wanted):
        raise UserError(f"--classes {' '.join(wanted)} names a class twice.")
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f"--classes {missing[0]!r} labels no image; found: {', '.join(sorted(found))}.")
    default = CLASSES if found <= set(CLASSES) else tuple(sorted(found))
    classes = wanted or tuple(name for name in default if name in found)
    keep = table["label"].isin(["", *classes])
    left_out = {str(label): int(count) for label, count in table.loc[~keep, "label"].value_counts().items()}
    return table[keep].reset_index(drop=True), left_out, classes


def pack_row(row: dict[str, str], config: ImagesConfig) -> dict[str, Any]:
    """Read, decode and resize one image and its masks into a row of a packed shard; what is bad is named in `bad`.

    `notes` are sentences on what was assumed.
    """
    packed: dict[str, Any] = {"image_id": row["image_id"], "image": b"", "width": 0, "height": 0, "sha256": ""}
    packed |= dict.fromkeys(MASKS, b"")
    bad, notes = dict[str, str](), list[str]()
    try:
        picture = images.read_picture(images.read_bytes(row["path"]), max_pixels=config.max_pixels)
        image = picture.pixels
        notes += picture.notes
        height, width = image.shape[:2]
        packed |= {"image": images.fit_image(image, config).tobytes(), "width": width, "height": height}
        packed["sha256"] = images.pixel_hash(image)
        for kind in MASKS:
            if row[kind]:
                try:
                    mask = decode_mask(
                        images.read_bytes(row[kind]),
                        image.shape[:2],
                        max_pixels=config.max_pixels,
                        mask_value=config.mask_value,
                        orientation=picture.orientation,
                        notes=notes,
                    )
                    packed[kind] = images.fit_mask(mask, image.shape[:2], config).tobytes()
                except images.BadImage as error:
                    bad[row[kind]] = str(error)
    except images.BadImage as error:
        bad[row["path"]] = str(error)
    return packed | {"bad": json.dumps(bad), "notes": notes}


def _final_listing(
    config: PrepareConfig, table: pd.DataFrame, recipe: dict[str, str], *, parts: bool
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Write what is to be packed, a shard a row group, its parts merged; or read it where an earlier start wrote it."""
    path, found = config.out / LISTING, {"merged": 0, "moved": 0}
    if path.exists():
        there, meta = read_parquet(path)
        if meta and "parts" in meta:
            return there, meta["parts"]
    if parts:
        write_parquet(path, table, {"recipe": recipe}, row_group_size=SHARD)
        numbers = _shards(config.out)
        hashes = {
            item["number"]: item["hashes"] for item in _spread(config, numbers, _hash_shard, "Comparing the parts")
        }
        table["sha256"] = [text for number in numbers for text in hashes[number]]
        table, found = merge_parts(table)
    table = table.drop(columns=PARTS, errors="ignore")
    write_parquet(path, table, {"recipe": recipe, "parts": found}, row_group_size=SHARD)
    return table, found


def _pack(config: PrepareConfig, log: Callable[[str], None]) -> None:
    """Write the shards that are not there yet."""
    numbers = _shards(config.out)
    todo = [number for number in numbers if not _shard_path(config.out, number).exists()]
    if len(todo) < len(numbers):
        log(f"Going on: {len(numbers) - len(todo)} of {len(numbers)} packed files are there.")
    for _ in _spread(config, todo, _pack_shard, "Packing"):
        pass


def _spread(
    config: PrepareConfig, numbers: Sequence[int], work: Callable[..., dict[str, Any]], label: str
) -> Iterator[dict[str, Any]]:
    """Run `work` on these shards of the listing over the cluster."""
    items = [{"number": number} for number in numbers]
    chosen = plan(config.compute, nodes(), gpu=False, items=len(items))
    rows = pq.ParquetFile(config.out / LISTING).metadata
    total = sum(rows.row_group(number).num_rows for number in numbers)
    settings = {"out": config.out.resolve(), "config": config.images}
    yield from spread(items, work, chosen, total=total, label=label, settings=settings)


def _shards(out: Path) -> range:
    """The numbers of the listing's shards."""
    return range(pq.ParquetFile(out / LISTING).num_row_groups)


def _shard_path(out: Path, number: int) -> Path:
    return out / "images" / f"{number:05}.arrow"


def _shard_rows(out: Path, number: int) -> list[dict[str, str]]:
    return pq.ParquetFile(out / LISTING).read_row_group(number).to_pylist()


def _pack_shard(item: dict[str, Any], *, out: Path, config: ImagesConfig) -> dict[str, Any]:
    rows = _shard_rows(out, item["number"])
    write_shard(_shard_path(out, item["number"]), [pack_row(row, config) for row in rows])
    return item | {"images": len(rows)}


def _hash_shard(item: dict[str, Any], *, out: Path, config: ImagesConfig) -> dict[str, Any]:
    """The hash of each image's pixels, "" for a bad one (which is named when it is packed)."""
    hashes = []
    for row in _shard_rows(out, item["number"]):
        try:
            hashes.append(
                images.pixel_hash(images.decode(images.read_bytes(row["path"]), max_pixels=config.max_pixels))
            )
        except images.BadImage:
            hashes.append("")
    return item | {"images": len(hashes), "hashes": hashes}


def _collect(table: pd.DataFrame, out: Path) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Read back what the shards hold of each file.

    Returns the good rows with size and hash, the bad files with reasons, and how many rows have a bad file.
    """
    columns = ["image_id", "width", "height", "sha256", "bad"]
    shards = [read_shard(path).select(columns).to_pandas() for path in sorted((out / "images").glob("[0-9]*.arrow"))]
    read = pd.concat(shards).set_index("image_id").reindex(table["image_id"]).reset_index()
    for column in ("width", "height", "sha256"):
        table[column] = read[column].to_numpy()
    bad = {row: json.loads(text) for row, text in read["bad"].items() if text != "{}"}
    for kind in MASKS:
        table.loc[[row for row, files in bad.items() if table.at[row, kind] in files], kind] = ""
    files = [pair for files in bad.values() for pair in files.items()]
    good = table[table["sha256"] != ""].reset_index(drop=True)
    return good, pd.DataFrame(files, columns=["path", "reason"]), len(bad)


def _read_quarantine(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "quarantine.parquet")


def reasons(quarantine: pd.DataFrame, most: int = 3) -> str:
    """The most frequent reasons of a quarantine table, counted, in a line; shares in them differ from file to file."""
    counts = quarantine["reason"].str.replace(r" \(\d+%\)", "", regex=True).value_counts()
    told = [f"{count} × {reason}" for reason, count in counts.head(most).items()]
    return "; ".join(told + [f"{len(counts) - most} more reasons"] * (len(counts) > most))


def split_table(manifest: Manifest) -> pd.DataFrame:
    """Images per split × class, with patients, masks and captions: what `jobs/prepare.py` prints."""
    rows = []
    for split in (*SPLITS, "all"):
        part = manifest.table if split == "all" else manifest.table[manifest.table["split"] == split]
        labels = part["label"].value_counts()
        row: dict[str, Any] = {"split": split} | {name: int(labels.get(name, 0)) for name in manifest.classes}
        if "" in set(manifest.table["label"]):
            row["no label"] = int(labels.get("", 0))
        row |= {"images": len(part), "patients": int(part.loc[part["patient_id"] != "", "patient_id"].nunique())}
        for kind in MASKS:
            row[kind.replace("_", " ") + "s"] = int((part[kind] != "").sum())
        rows.append(row | {"captions": int((part["caption"] != "").sum())})
    return pd.DataFrame(rows)
