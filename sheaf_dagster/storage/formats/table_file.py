"""Stored files that hold tables, of any kind: their rows, their columns, their text."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import IO, TYPE_CHECKING

from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage.formats.fields import AS_THEY_ARE, FieldMap
from sheaf_dagster.storage.formats.json_rows import json_rows
from sheaf_dagster.storage.formats.kinds import TableKind, require_kind
from sheaf_dagster.storage.formats.meaning import without_kept
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores import Store, store_at

if TYPE_CHECKING:
    import pyarrow as pa
    from typing_extensions import Buffer

__all__ = ["TableFile", "TableText", "read_schema", "read_table"]


class TableFile:
    """The rows of a file that holds a table, a few megabytes at a time.

    Args:
        store: The file; read in ranges, since its index is at its end.
        fields: Which column is which field.
        types: Of some columns, what their values must go into.

    Attributes:
        schema: Its columns.
        rows: How many rows it has.

    Raises:
        SourceError: Here or while reading: it is damaged, cut short, encrypted, no such file at
            all, or has columns that can't be fields.
    """

    def __init__(
        self,
        store: Store,
        fields: FieldMap = AS_THEY_ARE,
        types: Mapping[str, pa.DataType] = MappingProxyType({}),
    ) -> None:
        self._kind = require_kind(store.uri)
        self._uri = store.uri
        self._read = 0
        with self._reading():
            self._file = self._kind.open(_native(store))
            self.schema: pa.Schema = self._file.schema
            self.rows: int = self._file.rows
            _require_one_of_each(store.uri, self.schema.names)
            _require_columns(store.uri, fields, self.schema.names)
        held = {name: self.schema.field(name).type for name in types if name in self.schema.names}
        self._types = {name: types[name] for name, type in held.items() if types[name] != type}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, whose texts are known to be such."""
        with self._reading(), self._file:
            for batch in self._file.batches():
                batch.validate(full=True)
                self._require_types(batch)
                yield batch
                self._read += batch.num_rows

    def lines(self, fields: FieldMap, *, kept: bool = True) -> Iterator[bytes]:
        """The rows as lines of JSON, some at a time; see ``open_text``."""
        with self._reading():
            for batch in self.batches():
                batch = batch.replace_schema_metadata(self.schema.metadata)
                rows = self._as_json(batch if kept else without_kept(batch), fields)
                yield b"".join(b"%b\n" % row for row in rows)

    def _require_types(self, batch: pa.RecordBatch) -> None:
        import pyarrow as pa

        for name, type in self._types.items():
            column = batch.column(name)
            try:
                column.cast(type)
            except pa.ArrowInvalid as e:
                i = next(i for i in range(len(column)) if not _goes_into(column.slice(i, 1), type))
                raise SourceError(
                    f"{self._uri}, row {self._read + i + 1}: the value in column {name!r} can't be "
                    f"kept, since other files make it a column of type {type} ({e}). Write the files "
                    "with one type, leave the column out of keep, or name the sink .jsonl"
                ) from e
            except pa.ArrowException:
                pass  # pyarrow can't tell; whoever makes the column says what can't be in it

    def _as_json(self, batch: pa.RecordBatch, fields: FieldMap) -> list[bytes]:
        try:
            return json_rows(batch, fields)
        except (ValueError, OverflowError) as e:
            i, name = _unreadable(batch)
            raise SourceError(
                f"{self._uri}, row {self._read + i + 1}: the value in column {name!r} can't be read "
                f"({e}); years go from 1 to 9999, and a map has each key once. Correct the value, or "
                "drop the column"
            ) from e

    def _reading(self) -> AbstractContextManager[None]:
        return _reading(self._kind, self._uri, lambda: f", somewhere after row {self._read}")


class TableText:
    """A stream of the JSON lines of a table, copied to a spool as they pass.

    Args:
        file: The file.
        spool: Receives a copy of the text, so that workers can read ranges of it.
        fields: Which column is which field.
        kept: As ``open_text`` has it.
    """

    def __init__(
        self,
        file: TableFile,
        spool: IO[bytes] | None = None,
        fields: FieldMap = AS_THEY_ARE,
        *,
        kept: bool = True,
    ) -> None:
        self._spool = spool
        self._lines = file.lines(fields, kept=kept)
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        """Fills the buffer as far as the rows at hand reach; 0 after the last one."""
        if not self._rest:
            text = next(self._lines, b"")
            self._rest = memoryview(text)
            if self._spool is not None:
                self._spool.write(text)
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n


def read_schema(location: Location) -> pa.Schema:
    """The Arrow schema of a file that holds a table.

    Raises:
        SourceNotFoundError: There is no such file.
        SourceError: It is no table of the kind that its suffix names, or can't be read.
    """
    kind, raw = _opened(location)
    with _reading(kind, location.uri), kind.open(raw) as file:
        return file.schema


def read_table(location: Location) -> pa.Table:
    """A file as an Arrow table, all of it.

    Raises:
        SourceNotFoundError: There is no such file.
        SourceError: It is no table of the kind that its suffix names, or can't be read.
    """
    kind, raw = _opened(location)
    with _reading(kind, location.uri):
        return kind.read(raw)


def _opened(location: Location) -> tuple[TableKind, pa.NativeFile]:
    store = store_at(location)
    return require_kind(store.uri), _native(store)


def _native(store: Store) -> pa.NativeFile:
    import pyarrow as pa

    return pa.PythonFile(_Ranges(store), mode="r")


@contextmanager
def _reading(kind: TableKind, uri: str, where: Callable[[], str] = lambda: "") -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as e:
        if isinstance(e, SourceError):
            raise
        unknown = isinstance(e, pa.ArrowNotImplementedError)
        other = " with columns that pyarrow can read: of other types, or without these" * unknown
        raise SourceError(
            f"{uri} can't be read as a {kind.name} file{where()} ({' '.join(str(e).split())}); write "
            f"the file again{other}"
        ) from e


def _goes_into(column: pa.Array, type: pa.DataType) -> bool:
    import pyarrow as pa

    try:
        column.cast(type)
    except pa.ArrowInvalid:
        return False
    return True


def _unreadable(batch: pa.RecordBatch) -> tuple[int, str]:
    """Place and column of the first value that JSON can't be made of."""
    batch = batch.replace_schema_metadata(None)
    for i in range(batch.num_rows):
        for name in batch.schema.names:
            try:
                json_rows(batch.select([name]).slice(i, 1))
            except (ValueError, OverflowError):
                return i, name
    return 0, batch.schema.names[0]  # none alone


def _require_one_of_each(uri: str, names: Sequence[str]) -> None:
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise SourceError(
            f"{uri} has several columns with the same name ({', '.join(doubled)}); a "
            "field needs a single column. Rename or drop the others"
        )


def _require_columns(uri: str, fields: FieldMap, names: Sequence[str]) -> None:
    known = {*names, *fields.defaults}
    for field, column in fields.columns.items():
        if column not in known:
            close = difflib.get_close_matches(column, known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else "."
            raise SourceError(
                f"{uri} has no column {column!r}, which columns names for the field {field!r}"
                f"{meant} Its columns: {', '.join(names)}"
            )


class _Ranges(io.RawIOBase):
    """A stored file in which a reader may jump."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._size = store.require_state().size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._store.read_range(self._at, min(self._size, self._at + len(view)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
