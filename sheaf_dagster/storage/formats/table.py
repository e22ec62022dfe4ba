"""Tables as sinks: parts are Arrow's own, whatever kind of file they become.

A schema of ours says in its metadata what its columns are, so that its rows can be read as the JSON
that they would be in a file of lines (see ``Meaning``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from sheaf_dagster.errors import SinkError
from sheaf_dagster.storage.formats.json_rows import json_rows
from sheaf_dagster.storage.formats.kinds import TableKind
from sheaf_dagster.storage.formats.meaning import without_kept
from sheaf_dagster.storage.formats.table_join import TableJoin
from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores import Join

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Table", "packed", "unpacked"]


@dataclass(frozen=True)
class Table:
    """A file that holds a table.

    Attributes:
        kind: Of the file.
        columns: Its Arrow schema, serialised, where a contract says what they are. Otherwise they
            are as the rows have them.
    """

    kind: TableKind
    columns: bytes = field(default=b"", repr=False)
    written_as = "a row of a table"
    suffix = "arrow"

    @property
    def schema(self) -> pa.Schema:
        """The columns; none where they are as the rows have them."""
        import pyarrow as pa

        return pa.ipc.read_schema(pa.py_buffer(self.columns)) if self.columns else pa.schema([])

    def stored(self, content: bytes) -> bytes:
        """A table that ``packed`` made, as it is."""
        return content

    def content(self, stored: bytes) -> bytes:
        """The same."""
        return stored

    def of_lines(self, lines: bytes) -> bytes:
        """A table of JSON lines, whose types are as pyarrow finds them."""
        import pyarrow as pa

        rows = [orjson.loads(line) for line in lines.splitlines()]
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {}
        for name in names:
            try:
                columns[name] = pa.array([row.get(name) for row in rows])
            except (pa.ArrowException, OverflowError) as e:
                raise SinkError(
                    f"field {name!r} can't be a column of a Parquet file, whose values are of one "
                    f"type ({e}); give it one, or write JSON lines"
                ) from e
        return packed(pa.table(columns))

    def lines(self, content: bytes) -> Sequence[bytes]:
        """The rows of a part as lines of JSON."""
        return [line for batch in unpacked(content).to_batches() for line in json_rows(batch)]

    def answers(self, content: bytes) -> Sequence[bytes]:
        """The same without the requests' own fields, whose types only the whole file has."""
        table = unpacked(content)
        return [line for b in table.to_batches() for line in json_rows(without_kept(b))]

    def empty(self) -> bytes:
        """Nothing: the file is made by what joins it."""
        return b""

    def join(self, file: Join, room: Location) -> Join:
        """Parts encoded as the kind of file has it."""
        return TableJoin(file, room, self.kind, self.schema, unpacked)


def packed(table: pa.Table) -> bytes:
    """A table as it is stored in a part; the same table gives the same bytes."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def unpacked(stored: bytes) -> pa.Table:
    """The table of a stored part."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.py_buffer(stored)).read_all()
