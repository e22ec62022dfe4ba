"""Where rows live: locations and their stores, line-aligned chunks, parts and atomic sinks."""

from sheaf_dagster.storage.chunks import Chunk, is_blank, rows_in, split_rows
from sheaf_dagster.storage.kept_types import KeptTypes, OneType, kept_types
from sheaf_dagster.storage.lines import LineWriter, read_blocks, read_lines, text_of
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.parts import Part, PartStore
from sheaf_dagster.storage.reader import read_ranges
from sheaf_dagster.storage.sink import HeldSink, Sink
from sheaf_dagster.storage.source import (
    ScannedSource,
    SourceFile,
    digest_of,
    scan_source,
    source_digest,
)
from sheaf_dagster.storage.source_files import NamedFile, files_of
from sheaf_dagster.storage.stores import FileState, FoundFile, Store, store_at
from sheaf_dagster.storage.table_rows import TableRows, is_columnar, lines_in_chunk

__all__ = [
    "Chunk",
    "FileState",
    "FoundFile",
    "HeldSink",
    "KeptTypes",
    "LineWriter",
    "Location",
    "NamedFile",
    "OneType",
    "Part",
    "PartStore",
    "ScannedSource",
    "Sink",
    "SourceFile",
    "Store",
    "TableRows",
    "digest_of",
    "files_of",
    "is_blank",
    "is_columnar",
    "kept_types",
    "lines_in_chunk",
    "read_blocks",
    "read_lines",
    "read_ranges",
    "rows_in",
    "scan_source",
    "source_digest",
    "split_rows",
    "store_at",
    "text_of",
]
