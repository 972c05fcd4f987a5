"""A folder of images: classes and splits from its folders, the rest from tables in it."""

import posixpath

import pandas as pd

from clipcovid.config import UserError
from clipcovid.data.classes import normalize_name
from clipcovid.data.manifest import MASK_COLUMNS, SPLIT_ALIASES
from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.layout import folder_parts, read_layout, split_of
from clipcovid.data.sources.masks import separate_masks
from clipcovid.data.sources.matching import match_paths
from clipcovid.data.sources.metadata import read_metadata
from clipcovid.data.sources.registry import register_source
from clipcovid.data.sources.root import DatasetRoot
from clipcovid.io.tables import ENDINGS as TABLE_ENDINGS
from clipcovid.io.tables import cell_text, is_missing


@register_source("imagefolder")
def imagefolder(root: DatasetRoot, columns: ColumnsConfig) -> pd.DataFrame:
    """A folder per class (`<Class>/…`, `<Split>/<Class>/…` or `<Class>/<Split>/…`), and masks, recognised by their names.

    `metadata.csv`, `.jsonl` or `.parquet` with `file_name`, in the root or any folder, and the lists of COVIDx
    (`train….txt`) are joined: what they say goes before what the folders say.
    """
    files = root.require_folder().images()
    described, tables = read_metadata(root, columns)
    described = _resolve_paths(root, described, files, tables)
    named_masks = {mask for kind in MASK_COLUMNS if kind in described for mask in described[kind]}
    files, masks = separate_masks(root, [file for file in files if file not in named_masks])
    layout = read_layout(
        root, files, classes=not _has_value(described, "label", files), splits=not _has_value(described, "split", files)
    )
    for kind in MASK_COLUMNS:
        layout[kind] = [masks.get(file, {}).get(kind, "") for file in files]
    if not tables and not (layout["label"] != "").any():
        raise UserError(
            f"{root.given} has no class folders with images in them (<Class>/image.png). {_suggestion(root)}".rstrip()
        )
    both = layout.merge(described, on="path", how="outer", suffixes=("", " said"))  # what is not on disk is quarantined
    for column in ("label", "split", *MASK_COLUMNS):
        if f"{column} said" in both:
            from_table = both.pop(f"{column} said")
            if column not in MASK_COLUMNS:
                _note_conflicts(root, column, both.assign(table=from_table), files, tables)
            both[column] = both[column].where(from_table.map(is_missing), from_table)
    _note_gaps(root, both, described, files, tables)
    return both


def _resolve_paths(root: DatasetRoot, described: pd.DataFrame, files: list[str], tables: list[str]) -> pd.DataFrame:
    """The rows of tables with their paths and masks at the files that are meant."""
    columns = [column for column in ("path", *MASK_COLUMNS) if column in described]
    names = [path for path in pd.unique(described[columns].to_numpy().ravel()) if path]
    matches = match_paths(names, files)
    corrections = {path: fitting[0] for path, fitting in matches.items() if len(fitting) == 1 and fitting != [path]}
    if corrections:
        example = next(iter(corrections))
        root.notes.append(
            f"{len(corrections)} of the {len(names)} paths in {', '.join(tables)} name no file to the letter and are read as "
            f"the only file that fits: {example} as {corrections[example]}."
        )
    return described.assign(**{c: described[c].map(lambda path: corrections.get(path, path)) for c in columns})


def _has_value(described: pd.DataFrame, column: str, files: list[str]) -> bool:
    """Whether tables say this of each of these files."""
    return column in described and set(files) <= set(described.loc[~described[column].map(is_missing), "path"])


def _note_conflicts(root: DatasetRoot, column: str, rows: pd.DataFrame, files: list[str], tables: list[str]) -> None:
    """Note images whose `label` or `split` (`column`) differs between tables (the column `table`) and folders.

    `rows`: of `column` "" where the folders were not asked. Their names count then where one of a layer is a value in the
    tables, too, for they may be anything else.
    """
    rows = rows[rows["path"].isin(files) & ~rows["table"].map(is_missing)]
    values, folders = (_normalize_values(column, rows[source].map(cell_text)) for source in ("table", column))
    if (rows[column] == "").all():
        folders = _folders_like(column, rows["path"], set(values))
    differs = (folders != "") & (values != "") & (folders != values)
    if differs.any():
        path, value = rows.loc[differs, ["path", "table"]].iloc[0]
        root.notes.append(
            f"{differs.sum():,} of {len(rows):,} images have another {column} in {', '.join(tables)} than their folder "
            f"(first: {path} is {cell_text(value)}): the table's is taken."
        )


def _normalize_values(column: str, names: pd.Series) -> pd.Series:
    """Labels or splits in the form in which equal ones are equal; "" for what is no split."""
    normalize = normalize_name if column == "label" else lambda name: SPLIT_ALIASES.get(name.lower(), "")
    return names.map({name: normalize(name) for name in names.unique()})


def _folders_like(column: str, paths: pd.Series, values: set[str]) -> pd.Series:
    """The folder of each path in the first layer of folders in which a name is one of `values`; "" where there is none."""
    folders = paths.str.rpartition("/")[0]
    parts = {folder: folder_parts(path) for folder, path in zip(folders, paths, strict=True)}
    if column == "split":
        return folders.map({folder: next(filter(None, map(split_of, of[:2])), "") for folder, of in parts.items()})
    names = {folder: [normalize_name(part) for part in of] for folder, of in parts.items()}
    layer = min((at for of in names.values() for at, name in enumerate(of) if name in values), default=None)
    return folders.map(
        {folder: "".join(of[layer : layer + 1]) if layer is not None else "" for folder, of in names.items()}
    )


def _note_gaps(
    root: DatasetRoot, rows: pd.DataFrame, described: pd.DataFrame, files: list[str], tables: list[str]
) -> None:
    """Note images that tables or folders do not speak of."""
    if tables and (apart := sorted(set(files) - set(described["path"]))):
        root.notes.append(
            f"Images without a row in {', '.join(tables)}: {len(apart)} of {len(files)}, e.g. {apart[0]}."
        )
    labels = rows["label"].map(is_missing)
    if labels.any() and not labels.all():
        root.notes.append(
            f"Images without a class: {labels.sum()} of {len(rows)}, e.g. {rows.loc[labels, 'path'].iloc[0]}."
        )


def _suggestion(root: DatasetRoot) -> str:
    """Which table may describe the images, or what there is instead of them."""
    tables = [path for path in root.files() if "/" not in path and path.lower().endswith(TABLE_ENDINGS)]
    if tables and root.images():
        return f"If {tables[0]} says their classes: --source table --root {posixpath.join(root.given, tables[0])}."
    return root.skipped_files_note()
