"""The notes of a preparation: DICOM headers and what was assumed of single files, kept on disk until all is packed."""

import json
from collections import Counter
from pathlib import Path

from clipcovid.data.folder import DICOM_HEADERS
from clipcovid.data.pixels import STRETCHED_NOTE

MAX_PRINTED_NOTES = 8  # different things assumed of single files that are printed


def read_packing_notes(out: Path, images: int) -> tuple[dict[str, dict[str, str]], list[str]]:
    """image_id → fields of its DICOM header; and what was assumed of how many of the `images`, the most frequent first."""
    headers: dict[str, dict[str, str]] = {}
    counts = Counter[str]()
    for path in sorted((out / DICOM_HEADERS).glob("[0-9]*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        headers |= content["headers"]
        counts.update(content["notes"])
    notes = _depth_notes(counts.pop(STRETCHED_NOTE, 0), images, bool(headers))
    common = counts.most_common(MAX_PRINTED_NOTES)
    rest = counts.total() - sum(count for _, count in common)
    notes += [f"{count:,} × {note}." for note, count in common]
    return headers, notes + [f"{rest:,} × other things were assumed of an image or mask."] * bool(rest)


def _depth_notes(stretched: int, images: int, has_dicom: bool) -> list[str]:
    """A sentence where some images, and not all, are scaled from their own range."""
    if not 0 < stretched < images:
        return []
    which, others = (
        (" or are DICOM without a window", ", or by their DICOM's window or look-up table") if has_dicom else ("", "")
    )
    return [
        f"{stretched:,} of {images:,} images have more than 8 bits{which}, and are scaled from their own darkest to their "
        f"brightest value; the others are taken as they are{others}."
    ]
