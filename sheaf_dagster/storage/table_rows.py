"""The rows of a table in the columns in which they came, on their way to workers.

Most tables hold numbers, texts and lists of them. Their rows need not become JSON on the way to a
request: they stay Arrow's record batches, of which each chunk is a stream of its own. What such rows
mean is still said by ``json_rows`` alone, and whoever wants to have them as lines gets those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

import orjson

from sheaf_dagster.storage.chunks import MAX_CHUNK_BYTES, MAX_CHUNKS, Chunk, rows_in
from sheaf_dagster.storage.formats import FieldMap, Meaning, is_table, json_rows, read_schema
from sheaf_dagster.storage.location import Location

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TableRows", "TableScan", "copied_rows", "is_columnar", "lines_in_chunk", "stays_table"]

_FIELDS = b"sheaf_dagster.fields"


@dataclass(frozen=True)
class TableRows:
    """Some rows of a table.

    Attributes:
        batch: Their columns.
        fields: Which of these is which field.
    """

    batch: pa.RecordBatch
    fields: FieldMap

    @classmethod
    def of(cls, data: bytes) -> TableRows:
        """The rows of a chunk's bytes."""
        import pyarrow as pa

        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            table = reader.read_all().combine_chunks()
        (batch,) = table.to_batches()
        return cls(batch, FieldMap(**orjson.loads(table.schema.metadata[_FIELDS])))

    def slice(self, start: int, stop: int) -> TableRows:
        """The rows from one to before another."""
        return TableRows(self.batch.slice(start, stop - start), self.fields)

    def only(self, names: Sequence[str]) -> TableRows:
        """The same rows with some of their fields."""
        wanted = {self.fields.columns.get(name, name) for name in names}
        held = [name for name in self.batch.schema.names if name in wanted]
        # Rows of no column have no number: one is always there.
        return TableRows(self.batch.select(held or self.batch.schema.names[:1]), self.fields)

    def lines(self) -> list[bytes]:
        """The rows as lines of JSON, without newlines."""
        return json_rows(self.batch, self.fields)


def lines_in_chunk(chunk: Chunk, data: bytes) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of every row of a chunk, of a table's as JSON.

    Args:
        chunk: The chunk.
        data: Its bytes.
    """
    if chunk.table:
        return enumerate(TableRows.of(data).lines(), chunk.first_line)
    return rows_in(data, chunk.first_line)


def is_columnar(location: Location) -> bool:
    """Whether a file is a table whose rows stay in its columns."""
    return is_table(location.uri) and stays_table(read_schema(location))


def stays_table(schema: pa.Schema) -> bool:
    """Whether the rows of a table stay in its columns: all are numbers, texts, or lists of them.

    What has a form of its own in JSON, such as times, decimals and structs, becomes JSON at once: not
    all of it can, and whoever wrote it is to hear of that before anything else is done.
    """
    return bool(schema.names) and Meaning.of(schema) is None and all(map(_stays, schema.types))


def _stays(type: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return _stays(type.value_type)
    if pa.types.is_dictionary(type):
        return _stays_alone(type.value_type)
    return _stays_alone(type)


def _stays_alone(type: pa.DataType) -> bool:
    import pyarrow as pa

    return type in (pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.large_string()) or (
        pa.types.is_integer(type)
    )


@dataclass(frozen=True)
class TableScan:
    """What one pass over a table found.

    Attributes:
        rows: How many there are, as far as they count.
        digest: ``sha256:<hex>`` of the stored bytes.
        cuts: Of each chunk, its first row, and where its stream starts and ends.
    """

    rows: int
    digest: str
    cuts: Sequence[tuple[int, int, int]]

    def chunks(
        self, batch_size: int, *, file: int = 0, first_index: int = 0, first_row: int = 0
    ) -> list[Chunk]:
        """Chunks of this file, as part ``file`` of a job."""
        ends = [row for row, _, _ in self.cuts[1:]] + [self.rows]
        cuts = enumerate(zip(self.cuts, ends, strict=False))  # a table of no rows has no chunk
        return [
            Chunk(
                first_index + i, file, start, end, first_row + row, until - row, row + 1, table=True
            )
            for i, ((row, start, end), until) in cuts
        ]


def copied_rows(
    batches: Iterator[pa.RecordBatch],
    rows: int,
    batch_size: int,
    fields: FieldMap,
    copy: IO[bytes],
    digest: str,
) -> TableScan:
    """Copies rows, a stream for each chunk.

    A chunk holds whole batches: as few as make ``MAX_CHUNKS`` of all rows, or fewer where those are
    larger than ``MAX_CHUNK_BYTES``. Where the cuts fall depends on the table alone.

    Args:
        batches: The rows.
        rows: How many of them count.
        batch_size: Rows of a batch.
        fields: Which column is which field.
        copy: Takes the streams.
        digest: Of the stored bytes.
    """
    most = max(1, -(-rows // (batch_size * MAX_CHUNKS))) * batch_size
    cuts: list[tuple[int, int, int]] = []
    waiting: list[pa.RecordBatch] = []
    held = done = at = 0
    room = most

    def cut() -> None:
        nonlocal held, done, at
        stream = _stream(waiting, fields)
        copy.write(stream)
        cuts.append((done, at, at + len(stream)))
        done, at, held = done + held, at + len(stream), 0
        waiting.clear()

    for batch in batches:
        batch = _without_codes(batch.slice(0, rows - done - held))
        fit = int(MAX_CHUNK_BYTES / max(1.0, batch.nbytes / max(1, batch.num_rows))) // batch_size
        room = min(most, max(1, fit) * batch_size)
        while batch.num_rows:
            if held >= room and held % batch_size == 0:
                cut()
            # A chunk that has begun in wider room ends with the batch that it is in.
            left = room - held if held < room else -held % batch_size
            some = batch.slice(0, left)
            waiting.append(some)
            held += some.num_rows
            batch = batch.slice(some.num_rows)
        if done + held >= rows:
            break
    if held:
        cut()
    return TableScan(done, digest, tuple(cuts))


def _without_codes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows with values in place of codes of dictionaries."""
    import pyarrow as pa

    arrays = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, batch.schema.names)


def _stream(batches: Sequence[pa.RecordBatch], fields: FieldMap) -> pa.Buffer:
    import pyarrow as pa

    said: Mapping[str, Any] = asdict(fields)
    schema = batches[0].schema.with_metadata({_FIELDS: orjson.dumps(said)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    return sink.getvalue()
