"""The folder of a prepared data set: which files in it are ours, and how it is begun anew without losing any other."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipcovid.io.files import LOCK_FILE, METADATA_KEY, lock_folder, refuse_unknown_files, remove_job_files

LISTING = "listing.parquet"  # what is to be packed; there only while a preparation is unfinished
DICOM_HEADERS = "readings"  # DICOM headers and notes, a file a shard; there only while a preparation is unfinished
MARKER = ".clipcovid"  # in every folder that a preparation has begun
TABLES = ("manifest.parquet", LISTING, "quarantine.parquet")
EMBEDDING_FILES = (
    rf"embeddings/[0-9a-f]+/({re.escape(LOCK_FILE)}|\d{{5}}\.parquet|_encoder\.json|_SUCCESS|_\w+\.(faiss|json)"
    r"|_texts/[0-9a-f]+\.parquet)"
)
PREPARED_FILES = (
    r"(manifest|listing|quarantine)\.parquet|manifest\.arrow|images/\d{5}\.arrow"
    rf"|{DICOM_HEADERS}/\d{{5}}\.json|{EMBEDDING_FILES}"
)
OTHER_JOBS_FILES = r"phantom/.*|captions/.*"  # drawn and written by other jobs, which look after it themselves


def is_prepared_folder(out: Path) -> bool:
    """Whether a preparation has begun here: every file of its names counts as its own."""
    marks = (out / MARKER, out / "phantom" / "phantom.json")  # phantoms are drawn before anything is prepared
    return any(mark.is_file() for mark in marks) or any(_has_our_metadata(out / name) for name in TABLES)


def check_folder(out: Path) -> None:
    """A folder that holds anything but a prepared data set of ours, finished or not, is a `UserError`."""
    refuse_unknown_files(out, f"{PREPARED_FILES}|{OTHER_JOBS_FILES}" if is_prepared_folder(out) else "")


def reset_prepared_folder(out: Path) -> None:
    """Make the folder and its `images/`, without the packed images, tables and embeddings that a preparation wrote there.

    Nothing is deleted where `check_folder` finds anything else.
    """
    check_folder(out)
    lock_folder(out)
    (out / MARKER).touch()
    remove_job_files(out, PREPARED_FILES)
    (out / "images").mkdir(exist_ok=True)


def remove_dicom_headers(out: Path) -> None:
    """Delete what was read off DICOM headers, dates among it."""
    remove_job_files(out, rf"{DICOM_HEADERS}/\d{{5}}\.json")


def _has_our_metadata(path: Path) -> bool:
    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):  # there is none, or it is no Parquet file
        return False
