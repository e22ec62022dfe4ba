"""Where rows live: locations over fsspec, line-aligned chunks, parts and atomic sinks."""

from sheaf_dagster.storage.chunks import Chunk, is_blank, rows_in, split_rows
from sheaf_dagster.storage.lines import LineWriter, read_blocks, read_lines
from sheaf_dagster.storage.listing import FoundFile, list_files
from sheaf_dagster.storage.location import FileState, Location
from sheaf_dagster.storage.parts import Part, PartStore
from sheaf_dagster.storage.reader import read_ranges
from sheaf_dagster.storage.sink import HeldSink, Sink
from sheaf_dagster.storage.source import (
    ScannedSource,
    SourceFile,
    scan_source,
    source_digest,
)

__all__ = [
    "Chunk",
    "FileState",
    "FoundFile",
    "HeldSink",
    "LineWriter",
    "Location",
    "Part",
    "PartStore",
    "ScannedSource",
    "Sink",
    "SourceFile",
    "is_blank",
    "list_files",
    "read_blocks",
    "read_lines",
    "read_ranges",
    "rows_in",
    "scan_source",
    "source_digest",
    "split_rows",
]
