"""Parquet files as JSON lines: a row of the table is a line, a column a field of the same name.

=====================  ============================================================================
null                   the field isn't there: a table can't leave one out. In lists it stays null
NaN                    null, as JSON has no such number
integer                as it is, with all its digits
decimal                a number, with all its digits
timestamp, date, time  ISO 8601 text, with its zone where it has one
duration               seconds
binary                 base64 text
dictionary             the value that the code stands for
struct, map            an object; a null in a struct is left out
=====================  ============================================================================
"""

from __future__ import annotations

import base64
import difflib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

import orjson

from sheaf_dagster.errors import SourceError
from sheaf_dagster.protocols import version_in
from sheaf_dagster.storage.formats.fields import AS_THEY_ARE, FieldMap
from sheaf_dagster.storage.formats.meaning import Meaning
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores import Store, store_at

if TYPE_CHECKING:
    import pyarrow as pa
    from typing_extensions import Buffer

__all__ = ["ParquetRows", "ParquetText", "is_parquet", "json_rows", "read_schema", "read_table"]

_BATCH_BYTES = 8 * 2**20
"""About what is read at a time, however large row groups are."""
_BATCH_ROWS = 4096
_BUFFER_BYTES = 2**20


def is_parquet(uri: str) -> bool:
    """Whether a file's suffix says that it is a Parquet file."""
    name = uri.partition("?versionId=")[0] if version_in(uri) else uri
    return name.lower().endswith((".parquet", ".pq"))


class ParquetRows:
    """The rows of a Parquet file, a few megabytes at a time.

    Args:
        store: The file; read in ranges, since its index is at its end.
        fields: Which column is which field.

    Attributes:
        schema: Its columns.
        rows: How many rows it has.

    Raises:
        SourceError: Here or while reading: it is damaged, cut short, encrypted, no Parquet file at
            all, or has columns that can't be fields.
    """

    def __init__(self, store: Store, fields: FieldMap = AS_THEY_ARE) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._name = store.uri
        self._read = 0
        with self._reading():
            raw = pa.PythonFile(_Ranges(store), mode="r")
            self._file = pq.ParquetFile(raw, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            self.schema: pa.Schema = self._file.schema_arrow
            self.rows: int = self._file.metadata.num_rows
            _require_one_of_each(store.uri, self.schema.names)
            _require_columns(store.uri, fields, self.schema.names)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, whose texts are known to be such."""
        with self._reading(), self._file:
            for batch in self._file.iter_batches(batch_size=_rows_at_a_time(self._file.metadata)):
                batch.validate(full=True)
                yield batch
                self._read += batch.num_rows

    def lines(self, fields: FieldMap) -> Iterator[bytes]:
        """The rows as lines of JSON, some at a time."""
        with self._reading():
            for batch in self.batches():
                rows = json_rows(batch.replace_schema_metadata(self.schema.metadata), fields)
                yield b"".join(b"%b\n" % row for row in rows)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError, OverflowError) as e:
            if isinstance(e, SourceError):
                raise
            raise SourceError(
                f"{self._name} can't be read as a Parquet file, somewhere after row "
                f"{self._read} ({' '.join(str(e).split())}); write the file again"
            ) from e


class ParquetText:
    """A stream of the JSON lines of a Parquet file, copied to a spool as they pass.

    Args:
        file: The file.
        spool: Receives a copy of the text, so that workers can read ranges of it.
        fields: Which column is which field.
    """

    def __init__(
        self, file: ParquetRows, spool: IO[bytes] | None = None, fields: FieldMap = AS_THEY_ARE
    ) -> None:
        self._spool = spool
        self._lines = file.lines(fields)
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


def read_schema(location: Location) -> Any:
    """The Arrow schema of a Parquet file."""
    return _read(location, lambda file: file.schema_arrow)


def read_table(location: Location) -> Any:
    """A Parquet file as an Arrow table, all of it.

    Raises:
        SourceNotFoundError: There is no such file.
        SourceError: It is no Parquet file, or can't be read.
    """
    return _read(location, lambda file: file.read())


def _read(location: Location, what: Callable[[Any], Any]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = store_at(location)
    store.require_state()
    try:
        with pq.ParquetFile(pa.PythonFile(_Ranges(store), mode="r")) as file:
            return what(file)
    except (pa.ArrowException, OSError, ValueError) as e:
        if isinstance(e, SourceError):
            raise
        raise SourceError(
            f"{store.uri} can't be read as a Parquet file ({' '.join(str(e).split())}); write the "
            "file again"
        ) from e


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
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise SourceError(
                f"{uri} has no column {column!r}, which columns names for the field {field!r}"
                f"{meant} Its columns: {', '.join(names)}"
            )


def json_rows(batch: Any, fields: FieldMap = AS_THEY_ARE) -> list[bytes]:
    """The rows of a record batch as lines of JSON, without newlines.

    Args:
        batch: The rows.
        fields: Which column is which field.
    """
    names, meaning = batch.schema.names, Meaning.of(batch.schema)
    columns = [_cells(column) for column in batch.columns]
    for i, field in enumerate(batch.schema):
        if (shape := _shape_of(field.type, nulls=meaning is not None)) is not None:
            columns[i] = [None if v is None else shape(v) for v in columns[i]]
    given: Callable[[dict[str, Any]], dict[str, Any]] = (
        _without_nulls if meaning is None else meaning.row
    )
    if fields:
        held = given
        given = lambda row: fields.row(held(row))  # noqa: E731
    rows = zip(*columns, strict=True) if columns else iter([()] * batch.num_rows)
    return [
        orjson.dumps(given(dict(zip(names, row, strict=True))), _as_json, _WITH_ARRAYS)
        for row in rows
    ]


_WITH_ARRAYS = orjson.OPT_SERIALIZE_NUMPY


def _cells(column: Any) -> list[Any]:
    """The values of a column, ready for JSON.

    Lists of numbers without a null stay arrays, which are written in a fraction of the time.
    """
    import pyarrow as pa

    kind = column.type
    numbers = (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) and (
        pa.types.is_float64(kind.value_type)
        or pa.types.is_float32(kind.value_type)
        or pa.types.is_int64(kind.value_type)
    )
    if not numbers:
        return column.to_pylist()  # type: ignore[no-any-return]
    flat = column.flatten()  # of what isn't null
    if flat.null_count:
        return column.to_pylist()  # type: ignore[no-any-return]
    values = flat.to_numpy()
    if pa.types.is_float32(kind.value_type):
        values = values.astype("float64")  # JSON has the number that it is, not its shortest form
    sizes = [0 if n is None else n for n in column.value_lengths().to_pylist()]
    ends = itertools.accumulate(sizes)
    cells = [values[end - n : end] for n, end in zip(sizes, ends, strict=True)]
    return [
        cell if ok else None for cell, ok in zip(cells, column.is_valid().to_pylist(), strict=True)
    ]


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _rows_at_a_time(metadata: Any) -> int:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    widest = max((g.total_byte_size / g.num_rows for g in groups if g.num_rows), default=1)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(widest, 1))))


def _shape_of(type: Any, nulls: bool) -> Callable[[Any], Any] | None:
    """What makes JSON's objects of a column's structs and maps; None where there are none."""
    import pyarrow as pa

    if pa.types.is_struct(type):
        shapes = {field.name: _shape_of(field.type, nulls) for field in type}
        return lambda value: {
            name: v if v is None or (shape := shapes[name]) is None else shape(v)
            for name, v in value.items()
            if nulls or v is not None
        }
    if pa.types.is_map(type):
        item = _shape_of(type.item_type, nulls)
        return lambda value: {str(k): v if item is None or v is None else item(v) for k, v in value}
    if hasattr(type, "value_type"):
        element = _shape_of(type.value_type, nulls)
        if element is not None:
            return lambda value: [None if v is None else element(v) for v in value]
    return None


def _as_json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):  # pandas' own, for nanoseconds
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


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
