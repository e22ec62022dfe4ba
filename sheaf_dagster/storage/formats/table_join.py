"""Parts of Arrow tables, encoded as one file while they come.

The file is the same whatever parts came when: rows are written in groups (of Parquet: row groups),
each of the next parts until it is large enough, and the schema is that of all parts together. It is known for certain only with the last
one, so a file that was begun with another schema is begun anew then: vectors of one width that
turn out to have several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sheaf_dagster.errors import SinkError
from sheaf_dagster.storage.formats.kinds import TableKind, TableWriter
from sheaf_dagster.storage.formats.typed import one_type
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores import Join, StoredPart, store_at

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TableJoin"]

_GROUP_ROWS = 2**17
_GROUP_BYTES = 32 * 2**20
"""Of Arrow's memory; the larger a row group, the more a reader of one column can skip."""

_PIECE_BYTES = 8 * 2**20
"""S3 puts pieces of 5 MiB and more together by itself."""


class TableJoin(Join):
    """A file that grows by parts; holds a group of rows of them at most.

    Args:
        file: Puts the encoded pieces together, as the store of the file does.
        room: Folder for these pieces.
        kind: Of the file.
        base: The columns that the file has where no row says more of them.
        read: Makes a table of a part's bytes.
    """

    def __init__(
        self,
        file: Join,
        room: Location,
        kind: TableKind,
        base: pa.Schema,
        read: Callable[[bytes], pa.Table],
    ) -> None:
        self._kind = kind
        self._file = file
        self._room = room
        self._base = base
        self._read = read
        self._pieces_made = 0
        self._begin(None)

    def _begin(self, schema: pa.Schema | None) -> None:
        """Begins the file: with a schema that is known, or as the first row group has it."""
        self._file.close()
        self._writer: TableWriter | None = None
        self._written: pa.Schema | None = None
        self._schema = schema
        self._seen: pa.Schema | None = None
        self._stale = False
        self._taken: list[str] = []
        self._group: list[pa.Table] = []
        self._group_rows = self._group_bytes = 0
        self._pieces: list[StoredPart] = []
        self._buffer = _Buffer()

    def ahead(self, parts: Sequence[StoredPart]) -> None:
        """Encodes the parts that come next."""
        for part in parts:
            table = self._read(part.read())
            self._seen = (
                table.schema
                if self._seen is None
                else _unified(self._kind, self._seen, table.schema)
            )
            self._taken.append(part.store.path)
            if self._stale:
                continue
            self._group.append(table)
            self._group_rows += table.num_rows
            self._group_bytes += part.size
            if self._group_rows >= _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
                self._end_group()

    def commit(self, parts: Sequence[StoredPart], empty: bytes, prove: Callable[[], None]) -> int:
        """Encodes the parts that are missing, ends the file, and makes it appear."""
        if self._taken != [p.store.path for p in parts[: len(self._taken)]]:
            self._begin(None)  # a chunk was run again after its first part was encoded
        self.ahead(parts[len(self._taken) :])
        schema = self._known()
        if self._writer is not None and (self._stale or self._written != schema):
            self._begin(schema)
            self.ahead(parts)
        self._schema = schema
        if self._group or self._writer is None:
            self._end_group()
        assert self._writer is not None
        self._writer.close()
        self._flush(least=1)
        return self._file.commit(self._pieces, b"", prove)

    def close(self) -> None:
        """Lets go of what was encoded."""
        self._begin(None)

    def _known(self) -> pa.Schema:
        """The schema of all parts so far, with the base's word for what none of them says."""
        return self._base if self._seen is None else _completed(self._seen, self._base)

    def _end_group(self) -> None:
        import pyarrow as pa

        schema = self._schema or self._known()
        if self._writer is None or self._written is None:
            self._writer = self._kind.writer(pa.PythonFile(self._buffer, mode="w"), schema)
            self._written = schema
        try:
            tables = [_with_columns(t, self._written) for t in self._group]
        except pa.ArrowException as e:
            if self._schema is not None:
                raise SinkError(f"rows can't be written as one {self._kind.name} file ({e})") from e
            self._stale, self._group = True, []  # commit knows the schema that fits all
            return
        if tables:
            self._writer.write_table(pa.concat_tables(tables))
        self._group, self._group_rows, self._group_bytes = [], 0, 0
        self._flush(least=_PIECE_BYTES)

    def _flush(self, least: int) -> None:
        if self._buffer.size < least:
            return
        data = self._buffer.taken()
        store = store_at(self._room.child(f"piece-{self._pieces_made:06d}"))
        if not self._pieces_made:
            store.make_parents()
        self._pieces_made += 1
        store.write(data)
        piece = StoredPart(store, len(data), store.checksum(data))
        self._pieces.append(piece)
        self._file.ahead([piece])


def _unified(kind: TableKind, seen: pa.Schema, other: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    fields = {field.name: field for field in seen}
    for field in other:
        own = fields.setdefault(field.name, field)
        whole = one_type(own.type, field.type)
        if whole is None:
            raise SinkError(
                f"rows can't be written as one {kind.name} file, which needs one type per column "
                f"({field.name!r} is of type {own.type} and of type {field.type}); give the field one "
                "type, or write JSON lines"
            )
        fields[field.name] = own.with_type(whole)
    return pa.schema([*fields.values()], seen.metadata)


def _completed(schema: pa.Schema, base: pa.Schema) -> pa.Schema:
    """The schema, with the base's types where it has none."""
    import pyarrow as pa

    fields = []
    for held in schema:
        i = base.get_field_index(held.name)
        fields.append(held if i < 0 else held.with_type(_typed(held.type, base.field(i).type)))
    return pa.schema(fields, metadata=schema.metadata)


def _typed(own: pa.DataType, base: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_null(own):
        return base
    if pa.types.is_list(own) and pa.types.is_list(base):
        return pa.list_(_typed(own.value_type, base.value_type))
    return own


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    if table.schema == schema:
        return table
    columns = [
        table.column(f.name).cast(f.type)
        if f.name in table.column_names
        else pa.nulls(table.num_rows, f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


class _Buffer:
    """A file for pyarrow to write to, whose bytes are taken out as they come."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._written = 0
        self.size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._blocks.append(bytes(data))
        self.size += len(data)
        self._written += len(data)
        return len(data)

    def tell(self) -> int:
        return self._written

    def taken(self) -> bytes:
        data, self._blocks, self.size = b"".join(self._blocks), [], 0
        return data

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        return

    def close(self) -> None:
        return
