"""Where a data set lies: a folder, or a table's folder, local or any URI that fsspec opens."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import IO, Any

import fsspec

from clipcovid.config import UserError, check_encodable_names, summarize_error
from clipcovid.data.images import is_image
from clipcovid.identity import digest
from clipcovid.io.tables import decode_text

IMAGE_ENDINGS = frozenset(
    ".png .jpg .jpeg .jpe .jfif .tif .tiff .bmp .webp .gif .dcm .dicom .dic .ima".split()  # noqa: SIM905 (readable)
)
NON_IMAGE_ENDINGS = frozenset(
    ".csv .tsv .json .jsonl .txt .md .rst .parquet .xml .xls .xlsx .ods .doc .docx .pdf .ini .inf .db .yaml .yml .toml .log "  # noqa: SIM905
    ".exe .dll .jar .class .bat .cmd .sh .msi .chm .lnk .url .html .htm .xhtml .xsl .css .js .ico .svg .ttf .woff .swf "
    ".zip .gz .bz2 .xz .tar .tgz .7z .rar .py .ipynb .m .r .npy .npz .mat .h5 .hdf5 .pkl .pt .pth .nii .mha .nrrd".split()
)
NON_IMAGE_NAMES = frozenset({"dicomdir", "thumbs.db", "desktop.ini", "autorun.inf"})  # DICOMDIR is DICOM, but no image
HIDDEN = re.compile(r"(^|/)(\.|(__MACOSX|@eaDir|\$RECYCLE\.BIN|#recycle|System Volume Information)/)", re.IGNORECASE)
UNDECODABLE = re.compile("[\ud800-\udfff]")  # what Python makes of bytes in a name that are no UTF-8
SNIFFED_BYTES = 512  # bytes that tell what a file without a known ending holds


class DatasetRoot:
    """A folder, or a table's folder: local, or any URI that fsspec opens.

    `images_at`: the folder that image paths are relative to, where it is another one. `flag`: the option that gave `root`.
    `version`: which of the data set's versions in the folder is meant, "" where none is named.
    """

    def __init__(self, root: str, images_at: str = "", flag: str = "--root", version: str = "") -> None:
        self.given, self.version = root, version
        self.notes: list[str] = []  # a sentence for each thing that was assumed of the data set
        try:
            self.fs, path = fsspec.core.url_to_fs(root)
            self.is_folder, exists = self.fs.isdir(path), self.fs.exists(path)
        except Exception as error:  # of any of fsspec's backends
            raise UserError(f"{flag} {root} can't be opened ({summarize_error(error)}).") from None
        if not exists:
            raise UserError(f"{flag} {root} does not exist.")
        self.path = path.rstrip("/") if self.is_folder else posixpath.dirname(path)
        self.file = "" if self.is_folder else posixpath.basename(path)
        around, _, chain = root.partition("::")
        self.inside = f"::{chain}" if chain and "://" in around else ""  # of an archive: zip://folder::scans.zip
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.images_at = DatasetRoot(images_at, flag="--images") if images_at else self
        if images_at and not self.images_at.is_folder:
            raise UserError(f"--images {images_at} is a file: give the folder that the images' paths are relative to.")
        self.holding: set[str] = set()  # tables with images in them
        self._read: set[str] = set()

    def require_folder(self) -> "DatasetRoot":
        """This root, which must be a folder."""
        if not self.is_folder:
            raise UserError(f"--root {self.given} is a file; this source wants the data set's folder.")
        return self

    @cached_property
    def _list_files(self) -> dict[str, dict[str, Any]]:
        """What fsspec knows of every file below, hidden ones too: relative path → size, time and so on."""
        todo, visited, listed = [self.path], {os.path.realpath(self.path)}, {}
        while todo:
            for path, info in self.fs.find(todo.pop(), detail=True).items():
                if not (info.get("islink") and self.fs.isdir(path)):
                    listed[path[len(self.path) :].lstrip("/")] = info
                elif (real := os.path.realpath(path)) not in visited:  # find does not follow links to folders
                    visited.add(real)
                    todo.append(path)
        check_encodable_names(listed, "The file name")
        names = {UNDECODABLE.sub("\ufffd", path): path for path in sorted(listed)}  # these end in the quarantine
        return {name: listed[path] for name, path in names.items()}

    @cached_property
    def file_index(self) -> dict[str, dict[str, Any]]:
        """What fsspec knows of every file below: relative path → size, time and so on; hidden files are left out."""
        return {path: info for path, info in self._list_files.items() if not HIDDEN.search(path)}

    def files(self) -> list[str]:
        """Every file below, relative and sorted, hidden ones left out."""
        return list(self.file_index)

    @cached_property
    def _images(self) -> list[str]:
        images, unknown = set(), []
        for path in self.file_index:
            name = posixpath.basename(path).lower()
            ending = _ending(name)
            if ending in IMAGE_ENDINGS:
                images.add(path)
            elif ending not in NON_IMAGE_ENDINGS and name not in NON_IMAGE_NAMES:
                unknown.append(path)
        locations = [self.file_index[path]["name"] for path in unknown]
        starts = self.fs.cat_ranges(
            locations, [0] * len(locations), [SNIFFED_BYTES] * len(locations), on_error="return"
        )
        for path, start in zip(unknown, starts, strict=True):
            if not isinstance(start, bytes) or is_image(start):  # what can't be read is named in the quarantine
                images.add(path)
        return [path for path in self.file_index if path in images]

    def images(self) -> list[str]:
        """`files` that are images by their ending or, where it is none that is known, by their first bytes."""
        return list(self._images)

    def skipped_files_note(self) -> str:
        """A sentence on the files below that are no images and were not read, by ending; "" where there are none."""
        names = [posixpath.basename(path).lower() for path in self.file_index.keys() - set(self._images) - self._read]
        kinds = Counter(name if name in NON_IMAGE_NAMES else _ending(name) or "without ending" for name in names)
        if hidden := len(self._list_files) - len(self.file_index):
            kinds["hidden"] = hidden
        counts = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        texts = [f"{count} {kind}" for kind, count in counts[:12]]
        if len(counts) > 12:
            texts.append(f"{sum(count for _, count in counts[12:])} of other kinds")
        return f"Passed over as no images: {', '.join(texts)}." if texts else ""

    def existing_files(self, paths: Iterable[str]) -> set[str]:
        """Those of these paths, relative or absolute, that are files; URIs count as such. A folder is listed once at most."""
        folders: dict[str, set[str]] = {}

        def exists(path: str) -> bool:
            if "://" in path:
                return True
            if not self.local and not posixpath.isabs(path):
                return path in self._list_files
            check_encodable_names([path], "The path")
            folder, name = posixpath.split(posixpath.join(self.path, path))
            if folder not in folders:
                folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()  # noqa: PTH208, PTH112 (speed)
            return name in folders[folder]

        return {path for path in paths if exists(path)}

    def files_fingerprint(self) -> str:
        """Names, sizes and times of a folder's images and of tables with images in them, hashed: what tells that a file has
        been replaced. "" where a table has none in it, whose images may be anywhere."""
        files = {path: self.file_index[path] for path in self.images()} if self.is_folder else {}
        files |= {path: self.fs.info(posixpath.join(self.path, path)) for path in sorted(self.holding)}
        states = [
            (path, [str(info.get(key)) for key in ("size", "mtime", "ETag", "CRC")]) for path, info in files.items()
        ]
        return digest(states) if self.is_folder or states else ""

    def open(self, relative: str) -> IO[bytes]:
        """A file, to be read."""
        self._read.add(relative)
        return self.fs.open(posixpath.join(self.path, relative), "rb")

    def read(self, relative: str) -> bytes:
        """A small file's content."""
        self._read.add(relative)
        return self.fs.cat_file(posixpath.join(self.path, relative))

    def read_text(self, relative: str) -> str:
        """A small text file's content; one that is not UTF-8 is a `UserError`."""
        return decode_text(self.read(relative), self.resolve(relative))

    def relative(self, path: str) -> str:
        """The path with slashes; one with a backslash stays where a file below the root has that very name."""
        return (
            path
            if "\\" in path and self.local and self.fs.exists(posixpath.join(self.path, path))
            else posix_path(path)
        )

    def resolve(self, path: str) -> str:
        """An openable place for a path of this data set: URIs and absolute paths stay, relative ones stand below the root.

        A relative path that climbs out of the root raises ValueError.
        """
        if "://" in path or posixpath.isabs(path):
            return path
        relative = self.relative(path)
        if relative.split("/")[0] == "..":
            raise ValueError("the path leaves the data set's folder; an absolute path says that this is meant")
        joined = posixpath.join(self.path, relative)
        return joined if self.local else self.fs.unstrip_protocol(joined) + self.inside


def _ending(name: str) -> str:
    """The ending of a file's name; "" where what stands behind the last dot is none, as in a DICOM's UID."""
    ending = posixpath.splitext(name)[1]
    return ending if re.fullmatch(r"\.[a-z]\w{0,7}", ending) else ""


def posix_path(path: str) -> str:
    """A path with slashes, without `./` and the like; a URI stays as it is."""
    return path if "://" in path else posixpath.normpath(path.replace("\\", "/"))
