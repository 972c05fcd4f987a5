"""Sheets of example images for findings."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from clipcovid.audit.data import PreparedSet
from clipcovid.report.findings import ExampleSheet

IMAGES_PER_SHEET = 5  # a row on a wide screen


def example_sheets(prepared: PreparedSet, rows_by_caption: Mapping[str, np.ndarray]) -> tuple[ExampleSheet, ...]:
    """A sheet for each caption, of the first images of its rows, (k,) int64 in the data set's table; none for no rows."""
    return tuple(
        ExampleSheet(caption=caption, images=tuple(prepared.example(int(row)) for row in rows[:IMAGES_PER_SHEET]))
        for caption, rows in rows_by_caption.items()
        if len(rows)
    )


def evenly_spaced_positions(mask: np.ndarray | pd.Series) -> np.ndarray:
    """Up to `IMAGES_PER_SHEET` positions at which `mask` (n,) is true, from its first to its last at even distances."""
    rows = np.flatnonzero(mask)
    return rows[np.unique(np.linspace(0, len(rows) - 1, IMAGES_PER_SHEET).astype(int))] if len(rows) else rows
