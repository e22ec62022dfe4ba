"""Reading chunks and cutting them into batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.rows.in_columns import ColumnRows, TableBlock
from sheaf_dagster.batch.rows.occurrences import OccurrenceOf, occurrence_in
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.row import Row
from sheaf_dagster.batch.worker.keeping import contract_of, rows_to_run
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.batch.worker.making import Batch, ChunkInMaking
from sheaf_dagster.batch.worker.sizing import BatchSizer, spans
from sheaf_dagster.batch.worker.visibility import require_visible
from sheaf_dagster.storage import Chunk, TableRows, lines_in_chunk, read_ranges, rows_in

__all__ = ["read_batches"]

_AT_ONCE_BYTES = 2**19
_AT_ONCE_ROWS = 512
"""So much of a table is read at once; more takes no less time (``benchmarks/tables.py``)."""


def read_batches(
    context: ModelContext,
    sizer: BatchSizer,
    todo: Iterable[Sequence[tuple[FileWork, Chunk]]],
    failed: Callable[[FileWork], bool],
    *,
    in_columns: bool = False,
) -> Iterator[Batch]:
    """The batches of some chunks, in order; of a chunk that can't be read, what was wrong.

    Where a job has a ``window``, each is one, out of which batches are taken by size.

    Args:
        context: The model's contract.
        sizer: Says how many rows a batch has where the job doesn't.
        todo: Chunks with their files, a few at a time.
        failed: Whether a file has failed already: its chunks are passed over.
        in_columns: Rows of a table may stay in their columns.
    """
    for few in todo:
        ranges = read_ranges([(work.texts[c.file], c.start, c.end) for work, c in few])
        for (work, chunk), read in zip(few, ranges, strict=True):
            if not failed(work):
                making = ChunkInMaking(work, chunk)
                yield from _read_chunk(context, sizer, making, read, in_columns)


def _read_chunk(
    context: ModelContext,
    sizer: BatchSizer,
    making: ChunkInMaking,
    read: Callable[[], bytes],
    in_columns: bool,
) -> Iterator[Batch]:
    work, chunk = making.work, making.chunk
    try:
        require_visible(making.where, work.texts[chunk.file], work.store.folder)
        data = read()
        making.require_validated(data)
        for rows in _batches(context, sizer, making, data, in_columns):
            yield Batch(making, rows)
    except Exception as e:
        yield Batch(making, (), e)


def _batches(
    context: ModelContext,
    sizer: BatchSizer,
    making: ChunkInMaking,
    data: bytes,
    in_columns: bool,
) -> Iterator[Sequence[Row]]:
    work, chunk = making.work, making.chunk
    contract = contract_of(context.rows, work, chunk)
    if work.batch_size is None:
        sizer.make_room(chunk.rows)

    def size() -> int:
        if work.window is not None:
            return work.window
        return sizer.size if work.batch_size is None else work.batch_size

    all_run = not chunk.invalid and (work.kept is None or work.kept.has_none(chunk))
    if work.bucket_by is None and all_run:
        take = _reader(contract, chunk, data, in_columns=in_columns)
        for start, stop in spans(chunk.rows, size):
            yield take(start, stop)
        return
    rows = (
        _reader(contract, chunk, data)(0, chunk.rows)
        if all_run
        else rows_to_run(contract, making, lines_in_chunk(chunk, data))
    )
    # The window is the chunk: it is the same at every run, so the batches of one size are too.
    buckets: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        key = None if work.bucket_by is None else getattr(row.request, work.bucket_by, None)
        buckets[repr(key)].append(row)
    for bucket in buckets.values():
        for start, stop in spans(len(bucket), size):
            yield bucket[start:stop]


def _reader(
    contract: RowContract, chunk: Chunk, data: bytes, *, in_columns: bool = False
) -> Callable[[int, int], Sequence[Row]]:
    """What reads the rows of a chunk, from one to before another; each once, in order."""
    occurrence_of = occurrence_in(chunk.repeats, chunk.first_row)
    if chunk.table:
        return _TableReader(contract, chunk, data, occurrence_of, in_columns=in_columns).take
    lines = rows_in(data, chunk.first_line)
    return lambda start, stop: contract.parse(
        list(islice(lines, stop - start)), chunk.first_row + start, occurrence_of
    )


class _TableReader:
    """Reads a chunk of a table a block at a time.

    Where a batch has few rows, asking Arrow for its columns takes as long as reading them.
    """

    def __init__(
        self,
        contract: RowContract,
        chunk: Chunk,
        data: bytes,
        occurrence_of: OccurrenceOf,
        *,
        in_columns: bool,
    ) -> None:
        self._contract = contract
        self._chunk = chunk
        self._table = TableRows.of(data)
        self._occurrence_of = occurrence_of
        self._in_columns = in_columns
        self._least = min(_AT_ONCE_BYTES * chunk.rows // max(len(data), 1), _AT_ONCE_ROWS)
        self._start = self._stop = 0
        self._block: TableBlock | list[Row] = []

    def take(self, start: int, stop: int) -> Sequence[Row]:
        """The rows from one to before another."""
        if stop > self._stop:
            few = stop - start
            self._start = start
            self._stop = min(start + max(1, self._least // few) * few, self._chunk.rows)
            self._block = self._read()
        first, last = start - self._start, stop - self._start
        if isinstance(self._block, TableBlock):
            return ColumnRows(self._block, first, last)
        return self._block[first:last]

    def _read(self) -> TableBlock | list[Row]:
        rows, chunk = self._table.slice(self._start, self._stop), self._chunk
        place = (chunk.first_line + self._start, chunk.first_row + self._start)
        if self._in_columns:
            block = self._contract.hold_columns(rows, *place, self._occurrence_of)
            if block is not None:
                return block
        return self._contract.parse_columns(rows, *place, self._occurrence_of)
