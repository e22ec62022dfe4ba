"""The kinds of files that hold tables, by their suffix.

A further kind is one module like ``parquet``, and its name in ``KINDS``.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from sheaf_dagster.errors import SpecError
from sheaf_dagster.protocols import version_in
from sheaf_dagster.storage.formats.parquet import Parquet

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "KINDS",
    "TableKind",
    "TableReader",
    "TableWriter",
    "is_parquet",
    "is_table",
    "kind_of",
    "require_kind",
]


class TableReader(Protocol):
    """An open file, whose rows are read once.

    Attributes:
        schema: Its columns.
        rows: How many rows it has.
    """

    schema: pa.Schema
    rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in order, a few megabytes at a time."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes it."""


class TableWriter(Protocol):
    """A file that is being written."""

    def write_table(self, table: pa.Table) -> object:
        """Adds rows; those that are read together afterwards, where the kind has such groups."""

    def close(self) -> None:
        """Ends the file."""


class TableKind(Protocol):
    """How tables of one kind are read and written; travels to workers.

    What goes wrong is raised as pyarrow raises it, or as an ``OSError`` or ``ValueError``. The same
    tables must give the same bytes.
    """

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the names of such files, in lower case, with their dots."""

    def open(self, file: pa.NativeFile) -> TableReader:
        """Opens a file."""

    def read(self, file: pa.NativeFile) -> pa.Table:
        """All of a file."""

    def writer(self, file: pa.NativeFile, schema: pa.Schema) -> TableWriter:
        """Begins a file; it is written from its beginning to its end."""


KINDS: list[TableKind] = [Parquet()]


def kind_of(uri: str) -> TableKind | None:
    """The kind of table that a file's suffix names; None where it names none."""
    name = uri.partition("?versionId=")[0] if version_in(uri) else uri
    return next((kind for kind in KINDS if name.lower().endswith(kind.suffixes)), None)


def require_kind(uri: str) -> TableKind:
    """The same of a file that holds a table.

    Raises:
        SpecError: Its suffix names none.
    """
    kind = kind_of(uri)
    if kind is None:
        known = " or ".join(suffix for kind in KINDS for suffix in kind.suffixes)
        raise SpecError(f"{uri} doesn't have the suffix of a table; rename it to end in {known}")
    return kind


def is_parquet(uri: str) -> bool:
    """Whether it is a Parquet file, which other libraries read by themselves."""
    return isinstance(kind_of(uri), Parquet)


def is_table(uri: str) -> bool:
    """Whether a file's suffix says that it holds a table."""
    return kind_of(uri) is not None
