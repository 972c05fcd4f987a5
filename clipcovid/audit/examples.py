"""Sheets of example images for findings."""

from collections.abc import Mapping

import numpy as np

from clipcovid.audit.data import PreparedSet
from clipcovid.report.findings import Examples

IMAGES_PER_SHEET = 6


def example_sheets(prepared: PreparedSet, rows_by_caption: Mapping[str, np.ndarray]) -> tuple[Examples, ...]:
    """A sheet for each caption, of the first images of its rows, (k,) int64 in the data set's table; none for no rows."""
    return tuple(
        Examples(caption=caption, images=tuple(prepared.example(int(row)) for row in rows[:IMAGES_PER_SHEET]))
        for caption, rows in rows_by_caption.items()
        if len(rows)
    )
