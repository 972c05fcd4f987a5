"""The sources by name: a new one registers itself here."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable

import pandas as pd

from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.root import DatasetRoot

Source = Callable[[DatasetRoot, ColumnsConfig], pd.DataFrame]

SOURCES: dict[str, Source] = {}

TABULAR_SOURCES = ("table", "imagefolder")  # sources whose data sets have names of their own, and columns

VERSIONED_SOURCES = ("covidx",)  # sources whose folders may hold several versions of the data set

PART_COLUMN = "_part"  # a column of this name says which part of the data set a row is from, see `merge_parts`


def register_source(name: str) -> Callable[[Source], Source]:
    """Register a source under `name`."""

    def register(function: Source) -> Source:
        SOURCES[name] = function
        return function

    return register


def import_sources(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that its sources register themselves."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
