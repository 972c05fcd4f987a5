"""Where a data set lies: a folder, or a table's folder, local or any URI that fsspec opens."""

import os
import posixpath
import re
from functools import cached_property
from typing import Any

import fsspec

from clipcovid.config import UserError
from clipcovid.identity import digest

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


class Root:
    """A folder, or a table's folder: local, or any URI that fsspec opens."""

    def __init__(self, root: str) -> None:
        self.given = root
        self.notes: list[str] = []  # a sentence for each thing that was assumed of the data set
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
