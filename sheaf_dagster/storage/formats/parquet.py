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
import io
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

import orjson

from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage.stores import Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ParquetText", "is_parquet"]

_BATCH_BYTES = 8 * 2**20
"""About what is read at a time, however large row groups are."""
_BATCH_ROWS = 4096
_BUFFER_BYTES = 2**20


def is_parquet(uri: str) -> bool:
    """Whether a file's suffix says that it is a Parquet file."""
    return uri.lower().endswith((".parquet", ".pq"))


class ParquetText:
    """A stream of the JSON lines of a Parquet file, copied to a spool as they pass.

    Args:
        store: The file; read in ranges, since its index is at its end.
        spool: Receives a copy of the text, so that workers can read ranges of it.

    Raises:
        SourceError: Here or while reading: it is damaged, cut short, encrypted, no Parquet file at
            all, or has columns that can't be fields.
    """

    def __init__(self, store: Store, spool: IO[bytes] | None = None) -> None:
        self._name = store.uri
        self._spool = spool
        self._rows = 0
        self._lines = _lines_of(store)
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        """Fills the buffer as far as the rows at hand reach; 0 after the last one."""
        import pyarrow as pa

        if not self._rest:
            try:
                rows, text = next(self._lines, (0, b""))
            except (pa.ArrowException, OSError, ValueError, OverflowError) as e:
                if isinstance(e, SourceError):
                    raise
                raise SourceError(
                    f"{self._name} can't be read as a Parquet file, somewhere after row "
                    f"{self._rows} ({' '.join(str(e).split())}); write the file again"
                ) from e
            self._rows += rows
            self._rest = memoryview(text)
            if self._spool is not None:
                self._spool.write(text)
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n


def _lines_of(store: Store) -> Iterator[tuple[int, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.PythonFile(_Ranges(store), mode="r")
    with pq.ParquetFile(raw, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        schema = file.schema_arrow
        doubled = sorted({n for n in schema.names if schema.names.count(n) > 1})
        if doubled:
            raise SourceError(
                f"{store.uri} has several columns of one name ({', '.join(doubled)}); a field has "
                "one. Rename or drop them"
            )
        shapes = [_shape_of(field.type) for field in schema]
        for batch in file.iter_batches(batch_size=_rows_at_a_time(file.metadata)):
            columns = [column.to_pylist() for column in batch.columns]
            for i, shape in enumerate(shapes):
                if shape is not None:
                    columns[i] = [None if v is None else shape(v) for v in columns[i]]
            lines = [
                orjson.dumps(
                    {n: v for n, v in zip(schema.names, row, strict=True) if v is not None},
                    default=_as_json,
                    option=orjson.OPT_APPEND_NEWLINE,
                )
                for row in (zip(*columns, strict=True) if columns else [()] * batch.num_rows)
            ]
            yield len(lines), b"".join(lines)


def _rows_at_a_time(metadata: Any) -> int:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    widest = max((g.total_byte_size / g.num_rows for g in groups if g.num_rows), default=1)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(widest, 1))))


def _shape_of(type: Any) -> Callable[[Any], Any] | None:
    """What makes JSON's objects of a column's structs and maps; None where there are none."""
    import pyarrow as pa

    if pa.types.is_struct(type):
        shapes = {field.name: _shape_of(field.type) for field in type}
        return lambda value: {
            name: v if (shape := shapes[name]) is None else shape(v)
            for name, v in value.items()
            if v is not None
        }
    if pa.types.is_map(type):
        item = _shape_of(type.item_type)
        return lambda value: {str(k): v if item is None or v is None else item(v) for k, v in value}
    if hasattr(type, "value_type"):
        element = _shape_of(type.value_type)
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
