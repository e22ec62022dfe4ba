"""Reading chunks and cutting them into batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.rows.occurrences import occurrence_in
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
) -> Iterator[Batch]:
    """The batches of some chunks, in order; of a chunk that can't be read, what was wrong.

    Where a job has a ``window``, each is one, out of which batches are taken by size.

    Args:
        context: The model's contract.
        sizer: Says how many rows a batch has where the job doesn't.
        todo: Chunks with their files, a few at a time.
        failed: Whether a file has failed already: its chunks are passed over.
    """
    for few in todo:
        ranges = read_ranges([(work.texts[c.file], c.start, c.end) for work, c in few])
        for (work, chunk), read in zip(few, ranges, strict=True):
            if not failed(work):
                yield from _read_chunk(context, sizer, ChunkInMaking(work, chunk), read)


def _read_chunk(
    context: ModelContext, sizer: BatchSizer, making: ChunkInMaking, read: Callable[[], bytes]
) -> Iterator[Batch]:
    work, chunk = making.work, making.chunk
    try:
        require_visible(making.where, work.texts[chunk.file], work.store.folder)
        data = read()
        making.require_validated(data)
        for rows in _batches(context, sizer, making, data):
            yield Batch(making, rows)
    except Exception as e:
        yield Batch(making, (), e)


def _batches(
    context: ModelContext,
    sizer: BatchSizer,
    making: ChunkInMaking,
    data: bytes,
) -> Iterator[list[Row]]:
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
        take = _reader(contract, chunk, data)
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


def _reader(contract: RowContract, chunk: Chunk, data: bytes) -> Callable[[int, int], list[Row]]:
    """What reads the rows of a chunk, from one to before another; each once, in order."""
    occurrence_of = occurrence_in(chunk.repeats, chunk.first_row)
    if chunk.table:
        table = TableRows.of(data)
        # Where a batch has few rows, asking Arrow for its columns takes as long as reading them.
        least = min(_AT_ONCE_BYTES * chunk.rows // max(len(data), 1), _AT_ONCE_ROWS)
        ahead: list[Row] = []

        def take(start: int, stop: int) -> list[Row]:
            begun = start + len(ahead)
            if begun < stop:
                end = min(max(stop, begun + least), chunk.rows)
                first_line, first_row = chunk.first_line + begun, chunk.first_row + begun
                some = table.slice(begun, end)
                ahead.extend(contract.parse_columns(some, first_line, first_row, occurrence_of))
            taken = ahead[: stop - start]
            del ahead[: stop - start]
            return taken

        return take
    lines = rows_in(data, chunk.first_line)
    return lambda start, stop: contract.parse(
        list(islice(lines, stop - start)), chunk.first_row + start, occurrence_of
    )
