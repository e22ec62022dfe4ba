"""Running only the rows that failed: those that have an error row in the last output."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sheaf_dagster.batch.committed import CommittedSink
from sheaf_dagster.batch.fingerprint import sink_format
from sheaf_dagster.batch.kept import Table as KeptTable
from sheaf_dagster.batch.kept import table_of
from sheaf_dagster.batch.results import BatchResult, ValidationReport
from sheaf_dagster.batch.rows.keep import written_fields
from sheaf_dagster.batch.rows.read_back import FailedLines, record_of
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.errors import PreviousOutputError
from sheaf_dagster.storage import Chunk, FileState, Location, read_blocks, store_at
from sheaf_dagster.storage.formats import Table, read_schema

__all__ = ["OnlyFailed", "has_failed_rows", "kept_identity", "last_output"]

log = logging.getLogger(__name__)


def last_output(sink: Location) -> FileState:
    """Size and version of what a sink holds.

    Raises:
        PreviousOutputError: It holds nothing.
    """
    state = store_at(sink).state()
    if state is None:
        raise PreviousOutputError(
            f"{sink.uri} doesn't exist, so there are no failed rows to run again (only='failed'); "
            "run the whole file first"
        )
    return state


def has_failed_rows(contract: RowContract, sink: Location) -> bool:
    """Whether the last output has an error row; reads as far as to the first one.

    Raises:
        PreviousOutputError: There is no output.
    """
    last_output(sink)
    failed = FailedLines(contract.request, contract.response)
    return any(len(_failed_in(block, _ends(block), failed)) for block in read_blocks(sink))


def kept_identity(spec: BatchSpec) -> str | None:
    """The identity of what a file keeps; None where all of its rows are run."""
    if spec.only is None:
        return None
    return _identity(last_output(Location.of(spec.sink, spec.storage_options)))


def _identity(state: FileState) -> str:
    return f"failed rows of {state.size}:{state.version}"


def whole_output(spec: BatchSpec, fingerprint: str, digest: str) -> BatchResult:
    """The result of a file of which no row failed, so that none was run."""
    sink = Location.of(spec.sink, spec.storage_options)
    rows = sum(block.count(b"\n") for block in read_blocks(sink))
    source = ", ".join(Location.of(uri, spec.storage_options).uri for uri in spec.sources)
    return BatchResult(
        source=source,
        sink=sink.uri,
        rows=rows,
        output_rows=rows,
        reused_rows=rows,
        seconds=0.0,
        source_digest=digest,
        fingerprint=fingerprint,
        output_bytes=last_output(sink).size,
        validation=ValidationReport(source=source, rows=rows, source_digest=digest),
    )


class OnlyFailed:
    """Keeps the answers of all rows but those that failed; see ``Keeper``.

    The n-th line of the last output is that of the n-th row, and its id must be the row's.

    Args:
        context: The model.
        spec: The file, whose sink has the last output.
        state: Its size and version.
        source_digest: Of the source as it is now.
        earlier: What is known of the job that wrote the output.

    Raises:
        PreviousOutputError: Another model wrote it, or with floats of another size.
    """

    def __init__(
        self,
        context: ModelContext,
        spec: BatchSpec,
        state: FileState,
        source_digest: str,
        earlier: CommittedSink | None,
    ) -> None:
        sink = Location.of(spec.sink, spec.storage_options)
        if earlier is None or earlier.output_bytes != state.size:
            earlier = CommittedSink("", state.size)
            log.warning(
                "%s: nothing shows which job or model wrote this file. Each answer whose id matches "
                "its row is kept",
                sink.uri,
            )
        if not context.version.startswith(earlier.model_version):
            raise PreviousOutputError(
                f"{sink.uri} has the answers of another version of the model {context.spec.name!r}; "
                "run the whole file, so that one version answers all rows"
            )
        _require_float_type(context, spec, sink)
        self.output: Location | None = sink
        self._sink = sink
        self._row_limit = spec.row_limit
        self._state = state
        self.identity = _identity(state)
        self.proven = source_digest.startswith(earlier.source_digest)
        self.checked = False
        self._failed = FailedLines(context.rows.request, context.rows.response)
        own = written_fields(context.rows.response)
        self._fields = None if own is None else own | {*spec.keep}

    def check_unchanged(self) -> None:
        """Compares the last output with what it was when the job began."""
        if store_at(self._sink).state() != self._state:
            raise PreviousOutputError(
                f"{self._sink.uri} changed while its answers were copied to a new output, so the "
                "new output was discarded. Run again"
            )

    def tables(
        self, chunks: Sequence[Chunk], text: Location | None, stop: threading.Event | None
    ) -> Iterator[KeptTable]:
        """The tables, in one pass over the last output."""
        assert text is not None
        found = _places_in(text, self._failed, self._require_fields, stop)
        starts, lengths, seen = _NONE, _NONE, 0
        for chunk in chunks:
            while len(lengths) < chunk.rows and (more := next(found, None)) is not None:
                starts, lengths = np.append(starts, more[0]), np.append(lengths, more[1])
                seen += len(more[1])
            if len(lengths) < chunk.rows:
                break
            yield table_of(starts[: chunk.rows], lengths[: chunk.rows])
            starts, lengths = starts[chunk.rows :], lengths[chunk.rows :]
        rows = sum(chunk.rows for chunk in chunks)
        seen += sum(len(lengths) for _, lengths in found)
        if seen > rows == self._row_limit:
            raise PreviousOutputError(
                f"{self._sink.uri} has {seen:,} lines, but row_limit is {rows:,}: the new output would "
                "lose the answers of the other rows. Leave row_limit out, or set it to what it was "
                "when the output was written"
            )
        if seen != rows:
            raise PreviousOutputError(
                f"{self._sink.uri} has {seen:,} lines, but the source has {rows:,} rows, so the "
                "source has changed since. Run the whole file"
            )

    def _require_fields(self, answer: bytes) -> None:
        """Refuses an answer with fields that rows which are run now wouldn't have."""
        if self._fields is None:
            return
        if others := [name for name in record_of(answer) if name not in self._fields]:
            raise PreviousOutputError(
                f"{self._sink.uri}: its answers have a field {others[0]!r}, which new answers would "
                "lack; name it in keep, or run the whole file"
            )


def _require_float_type(context: ModelContext, spec: BatchSpec, sink: Location) -> None:
    """Refuses a table whose floats are of another size than those of the new one would be."""
    format = sink_format(context, spec)
    if not isinstance(format, Table):
        return
    held = read_schema(sink)
    for column in format.schema:
        i = held.get_field_index(column.name)
        if column.name in spec.keep or i < 0:
            continue
        then, now = held.field(i).type, column.type
        if _FLOAT.findall(str(then)) != _FLOAT.findall(str(now)):
            raise PreviousOutputError(
                f"{sink.uri}: its column {column.name!r} is of type {then}, but "
                f"float_type={spec.float_type!r} makes it {now}. Kept answers can't change their "
                "digits; set float_type to what it was, or run the whole file"
            )


_FLOAT = re.compile("halffloat|float|double")
"""What pyarrow calls floats of 16, 32 and 64 bits."""

_NONE = np.empty(0, dtype=np.int64)

_Places = tuple[NDArray[np.int64], NDArray[np.int64]]


def _places_in(
    text: Location,
    failed: FailedLines,
    look_at: Callable[[bytes], None],
    stop: threading.Event | None,
) -> Iterator[_Places]:
    """Where the lines of a file begin and how long they are (0: the row failed), block by block.

    The first answer of each block is looked at.
    """
    offset = 0
    for block in read_blocks(text):
        if stop is not None and stop.is_set():
            raise InterruptedError("the job was stopped")
        ends = _ends(block)
        starts = np.append(0, ends[:-1] + 1)
        lengths = ends - starts
        lengths[_failed_in(block, ends, failed)] = 0
        if len(answered := np.flatnonzero(lengths)):
            first = answered[0]
            look_at(block[starts[first] : ends[first]])
        yield starts + offset, lengths
        offset += len(block)


def _ends(block: bytes) -> NDArray[np.int64]:
    return np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10)


def _failed_in(block: bytes, ends: NDArray[np.int64], failed: FailedLines) -> list[int]:
    """Which lines of a block are error rows."""
    lines: Iterable[int] = range(len(ends))
    if failed.mark is not None:
        # A look for a few bytes spares reading the answers.
        marked = [m.start() for m in re.finditer(re.escape(failed.mark), block)]
        lines = np.unique(np.searchsorted(ends, marked)).tolist()
    return [n for n in lines if failed.is_failed(block[ends[n - 1] + 1 if n else 0 : ends[n]])]
