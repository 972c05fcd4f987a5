"""Sources: how each kind of data set on disk is listed. One small function each, a file per family, registered by name.

A source gets a `DatasetRoot` (a folder or a table, local or any fsspec URI) and returns a table with the manifest's columns
that it knows, paths relative to the root, plus any further columns worth keeping. To add one, write such a function under
`@register_source("name")` in a file of this folder; splits, ids, missing columns, decoding and the rest are done for it.
"""

from clipcovid.data.sources.columns import ColumnsConfig
from clipcovid.data.sources.covidquex import merge_parts
from clipcovid.data.sources.listing import Listing, PhantomConfig, list_source
from clipcovid.data.sources.registry import PART_COLUMN, SOURCES, Source, import_sources, register_source
from clipcovid.data.sources.root import DatasetRoot

import_sources(__name__, __path__)

__all__ = [
    "PART_COLUMN",
    "SOURCES",
    "ColumnsConfig",
    "DatasetRoot",
    "Listing",
    "PhantomConfig",
    "Source",
    "list_source",
    "merge_parts",
    "register_source",
]
