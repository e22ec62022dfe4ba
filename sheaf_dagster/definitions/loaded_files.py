"""Files that an asset takes or hands on: each with what the folders say that hold it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage import Location, NamedFile, files_of, read_blocks, read_lines, store_at
from sheaf_dagster.storage.formats import AS_THEY_ARE, TableFile, is_table, read_table

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "blocks_of_file",
    "joined",
    "lines_at",
    "lines_of_file",
    "pieces_at",
    "table_of",
    "text_of",
]


def blocks_of_file(file: NamedFile) -> Iterator[bytes]:
    """A file's rows as JSON, some whole lines at a time."""
    return read_blocks(file.location, AS_THEY_ARE.beside(file.folders))


def lines_of_file(file: NamedFile) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of each of a file's rows."""
    return read_lines(file.location, AS_THEY_ARE.beside(file.folders))


def text_of(file: NamedFile) -> bytes:
    """All of a file's rows as lines of JSON."""
    return b"".join(blocks_of_file(file))


def table_of(file: NamedFile) -> pa.Table:
    """A file as a table, all of it; of lines with the types that all of them have.

    Raises:
        SourceError: It can't be one.
    """
    if is_table(file.location.uri):
        return _with_folders(read_table(file.location), file)
    import pyarrow as pa
    import pyarrow.json

    text = text_of(file)
    if not text.strip():
        return pa.table({})
    # A row must fit into a block; where one doesn't, all of the text is one.
    for block_size in (16 * 2**20, len(text) + 1):
        try:
            return pa.json.read_json(io.BytesIO(text), pa.json.ReadOptions(block_size=block_size))
        except pa.ArrowInvalid as e:
            problem = e
    raise SourceError(
        f"{file.location.uri} is not an Arrow table ({problem}); load it as list[dict] instead"
    ) from problem


def joined(files: Sequence[NamedFile]) -> pa.Table:
    """Files as one table, one after the other.

    Raises:
        SourceError: One can't be a table.
    """
    import pyarrow as pa

    tables = [table_of(file) for file in files]
    tables = [t for t in tables if t.num_columns]  # files of no line
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def lines_at(place: Location) -> Iterator[bytes]:
    """The rows of a file, or of all files of a folder, as lines of JSON without their ends."""
    for file in files_of([place]):
        yield from _lines(file)


def pieces_at(place: Location) -> Iterator[Any]:
    """The same, but tables as Arrow's own with their types, a few megabytes at a time."""
    for file in files_of([place]):
        yield from _pieces(file) if is_table(file.location.uri) else _lines(file)


def _lines(file: NamedFile) -> Iterator[bytes]:
    for _, line in lines_of_file(file):
        yield line.rstrip(b"\r")


def _pieces(file: NamedFile) -> Iterator[pa.Table]:
    import pyarrow as pa

    table = TableFile(store_at(file.location))
    if not table.rows:
        yield _with_folders(table.schema.empty_table(), file)
    for batch in table.batches():
        yield _with_folders(pa.Table.from_batches([batch]), file)


def _with_folders(table: pa.Table, file: NamedFile) -> pa.Table:
    import pyarrow as pa

    for name, value in file.folders.items():
        if name not in table.schema.names:
            table = table.append_column(name, pa.repeat(pa.scalar(value), table.num_rows))
    return table
