"""From a source's rows to the listing that is prepared: every path openable, every id of its own."""

import dataclasses
import posixpath
from pathlib import Path

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.captions import known_text
from clipcovid.data.duplicates import merge_duplicate_rows
from clipcovid.data.manifest import MASK_COLUMNS, SPLIT_ALIASES, normalize_columns
from clipcovid.data.patients import drop_placeholder_ids
from clipcovid.data.phantoms import write_phantoms
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.locating import resolve_image_paths
from clipcovid.data.sources.registry import PART_COLUMN, SOURCES, TABULAR_SOURCES, VERSIONED_SOURCES
from clipcovid.data.sources.root import DatasetRoot


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
    merge_equal_pixels: bool
    """Whether rows of different parts with the same pixels are one image."""
    files_digest: str
    """Sizes and times of the files in the data set's folder, hashed; "" for a table without images in it."""
    notes: tuple[str, ...]
    """A sentence for each thing that was assumed."""


def list_source(
    name: str,
    root: str,
    columns: ColumnsConfig,
    phantoms: PhantomConfig,
    phantom_folder: Path,
    image_folder: str = "",
    version: str = "",
) -> Listing:
    """List a data set: every image with what its source knows of it. Phantoms are drawn into `phantom_folder` first.

    `image_folder`: the folder that a table's paths are relative to. Default: the table's own. `version`: of several that
    are in the folder.
    """
    if version and name not in VERSIONED_SOURCES:
        raise UserError(f"--version is for --source {' or '.join(VERSIONED_SOURCES)}; {name} has no versions.")
    name, root, dataset = _check_source(name, root, columns, phantoms, phantom_folder, image_folder)
    source_root = DatasetRoot(root, image_folder, version=version)
    if dataset in TABULAR_SOURCES:
        dataset = posixpath.splitext(source_root.file)[0] or posixpath.basename(source_root.path)
    rows = SOURCES[name](source_root, columns)
    if rows.empty:
        raise UserError(f"{root} lists no images.")
    merge_equal_pixels = PART_COLUMN in rows and rows[PART_COLUMN].nunique() > 1
    rows = rows.drop(columns=["width", "height", "sha256"], errors="ignore")  # the files themselves say
    rows = normalize_columns(_drop_placeholders(rows, source_root.notes))
    rows["split"] = _splits(rows["split"])
    if name == "table":
        rows = resolve_image_paths(source_root, rows)
    rows, refused = _resolve(source_root.images_at, rows)
    rows = _rows_with_ids(source_root, rows)
    if source_root.is_folder and (skipped_files_note := source_root.skipped_files_note()):
        source_root.notes.append(skipped_files_note)
    return Listing(
        table=rows,
        dataset=dataset,
        refused=refused,
        merge_equal_pixels=merge_equal_pixels,
        files_digest=source_root.files_fingerprint(),
        notes=tuple(dict.fromkeys(source_root.notes)),
    )


def _check_source(
    name: str, root: str, columns: ColumnsConfig, phantoms: PhantomConfig, drawn: Path, image_folder: str
) -> tuple[str, str, str]:
    """The source, its root and the data set's name; phantoms are drawn, and options that are not the source's refused."""
    if name == "phantom":
        if root or image_folder or columns != ColumnsConfig():
            raise UserError(
                "--source phantom, the default, draws its images and takes no --root, --images or --columns.*: say with "
                f"--source how the data set is laid out ({', '.join(SOURCES)})."
            )
        root = str(
            write_phantoms(drawn, images=phantoms.images, size=phantoms.size, seed=phantoms.seed) / "metadata.csv"
        )
        name, dataset = "table", "phantom"
    elif name not in SOURCES:
        raise UserError(f"--source {name!r} is unknown: use {', '.join([*SOURCES, 'phantom'])}.")
    elif not root:
        raise UserError(f"--source {name} needs --root, the data set's folder, table or URI.")
    elif name not in TABULAR_SOURCES and columns != ColumnsConfig():
        raise UserError(f"--columns.* name a table's columns, and --source {name} has none.")
    elif image_folder and name != "table":
        raise UserError(f"--images says where a table's images are, and --source {name} finds them in --root.")
    else:
        dataset = name
    return name, root, dataset


def _drop_placeholders(rows: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The rows without patient ids and captions that stand for missing ones, which `notes` count."""
    if "patient_id" in rows:
        patients, id_notes = drop_placeholder_ids(rows["patient_id"])
        rows = rows.assign(patient_id=patients)
        notes += id_notes
    if "caption" in rows:
        placeholder = rows["caption"].map(
            lambda cell: isinstance(cell, str) and cell.strip() != "" and not known_text(cell)
        )
        rows = rows.assign(caption=rows["caption"].mask(placeholder, ""))
        if placeholder.any():
            notes.append(f"{placeholder.sum():,} captions are placeholders (N/A and the like), and are left out.")
    return rows


def _rows_with_ids(source_root: DatasetRoot, rows: pd.DataFrame) -> pd.DataFrame:
    """A row a file, each with an id of its own."""
    rows, notes = merge_duplicate_rows(rows)
    source_root.notes += notes
    if (same := rows["image_id"].duplicated()).any():
        first = rows.loc[same, "image_id"].iloc[0]
        source_root.notes.append(
            f"{same.sum():,} files have the image_id of another: they are told apart, as {first}#2."
        )
    while (again := rows.groupby("image_id").cumcount()).any():
        rows["image_id"] += again.map(lambda count: f"#{count + 1}" if count else "")
    return rows


def _splits(values: pd.Series) -> pd.Series:
    names = values.str.lower()
    if unknown := set(names) - {"", *SPLIT_ALIASES}:
        raise UserError(f"Unknown splits {sorted(unknown)}: use train, val or test, or leave the column out.")
    return names.map(lambda name: SPLIT_ALIASES.get(name, ""))


def _resolve(images_root: DatasetRoot, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make paths openable; a row whose image has no usable path is refused, a mask without one is dropped, both named."""
    refused: list[dict[str, str]] = []

    def openable(path: str) -> str:
        try:
            return images_root.resolve(path) if path else ""
        except ValueError as error:
            refused.append({"path": path, "reason": str(error)})
            return ""

    inside = rows["path"].map(
        lambda path: images_root.relative(path).removeprefix(f"{images_root.path}/") if path else ""
    )
    rows["image_id"] = rows["image_id"].where(rows["image_id"] != "", inside)
    refused += [{"path": f"row {i + 1}", "reason": "no image path"} for i in rows.index[rows["path"] == ""]]
    for column in ("path", *MASK_COLUMNS):
        rows[column] = rows[column].map(openable)
    return rows[rows["path"] != ""].reset_index(drop=True), pd.DataFrame(refused, columns=["path", "reason"])
