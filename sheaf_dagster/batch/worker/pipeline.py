"""What a worker does with chunks: read, parse, predict, serialise, write the part.

The same function runs in tasks, in actors and in the driver's own process, so a chunk's bytes
are the same wherever it runs.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sheaf_dagster.batch.messages import (
    ChunkReport,
    ErrorMessage,
    FileJob,
    said_by,
    worker_name,
)
from sheaf_dagster.batch.rows.answers import error_line, response_lines
from sheaf_dagster.batch.rows.repeatable import repeatable
from sheaf_dagster.batch.rows.requests import Row
from sheaf_dagster.batch.worker.hanging import TimeLimit
from sheaf_dagster.batch.worker.loading import LoadedBackend, ModelContext
from sheaf_dagster.batch.worker.overlap import prefetch
from sheaf_dagster.batch.worker.predict import Answer, Predictor
from sheaf_dagster.batch.worker.sizing import BatchSizer, spans
from sheaf_dagster.batch.worker.visibility import require_visible
from sheaf_dagster.contracts import deviations_of
from sheaf_dagster.errors import PredictError, SourceChangedError
from sheaf_dagster.storage import Chunk, read_ranges, rows_in

__all__ = ["LimitFor", "run_chunks"]

log = logging.getLogger(__name__)

_OVERLAP_FROM_SECONDS = 0.002
"""Batches that take longer than this get reading and writing threads of their own; below it,
handing batches between threads costs more than it hides (``make bench``)."""

_BATCHES_AHEAD = 2
_BATCHES_BEHIND = 4
_TICK_SECONDS = 0.02
"""While the reader waits for work, reports go out this soon."""


LimitFor = Callable[[LoadedBackend, FileJob, Chunk], TimeLimit]
"""Makes what makes the backend's calls for a chunk: within ``batch_timeout``, where there is one,
and from the thread that they must come from."""


@dataclass
class _Batch:
    state: _ChunkState
    rows: Sequence[Row]
    last: bool


@dataclass
class _ChunkState:
    """A chunk in the making."""

    job: FileJob
    chunk: Chunk
    lines: list[bytes] = field(default_factory=list)
    failure: BaseException | None = None
    error_rows: int = 0
    non_finite: int = 0
    deviations: Counter[str] = field(default_factory=Counter)
    predict_seconds: float = 0.0
    halved: int = 0
    started: float = field(default_factory=time.time)

    @property
    def where(self) -> str:
        return self.job.names[self.chunk.file]


def run_chunks(
    context: ModelContext,
    loaded: LoadedBackend,
    grabs: Iterable[Sequence[tuple[FileJob, Chunk]]],
    stop: Callable[[], bool] = lambda: False,
    limit_for: LimitFor | None = None,
) -> Iterator[ChunkReport]:
    """Runs chunks through a loaded backend; yields a report as each is done.

    While a batch is in the model, the next is read and parsed and the last one serialised and
    written, where the model takes long enough for that to pay. A chunk that fails is reported,
    and the rest of its file's chunks are passed over without a report. Ends after the batch in
    hand once ``stop`` says so.

    Args:
        context: The model and its contract.
        loaded: Its backend.
        grabs: Chunks with their files, a few at a time; the next are asked for when needed.
        stop: Whether to end early.
        limit_for: Makes what makes the backend's calls; by default they are made where they stand.
    """
    failed: set[int] = set()
    batches = _read(context, loaded.sizer, grabs, failed)
    for batch in batches:
        answers = _predict(loaded, batch, failed, limit_for)
        report = _finish(loaded, batch, answers, failed)
        if report is not None:
            yield report
        # A remote store takes longer than any handing over.
        remote = not batch.state.job.store.folder.is_local
        if remote or loaded.usual_seconds > _OVERLAP_FROM_SECONDS:
            yield from _overlapped(loaded, batches, failed, stop, limit_for)
            return
        if stop():
            return


def _overlapped(
    loaded: LoadedBackend,
    batches: Iterator[_Batch],
    failed: set[int],
    stop: Callable[[], bool],
    limit_for: LimitFor | None,
) -> Iterator[ChunkReport]:
    ahead = prefetch(batches, _BATCHES_AHEAD, _TICK_SECONDS)
    behind: deque[Future[ChunkReport | None]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="sheaf-writer") as writer, closing(ahead):
        try:
            for batch in ahead:
                if stop():
                    return
                if batch is not None:
                    answers = _predict(loaded, batch, failed, limit_for)
                    behind.append(writer.submit(_finish, loaded, batch, answers, failed))
                while behind and (behind[0].done() or len(behind) > _BATCHES_BEHIND):
                    report = behind.popleft().result()
                    if report is not None:
                        yield report
            while behind:
                report = behind.popleft().result()
                if report is not None:
                    yield report
        finally:
            writer.shutdown(wait=True, cancel_futures=True)


def _read(
    context: ModelContext,
    sizer: BatchSizer,
    grabs: Iterable[Sequence[tuple[FileJob, Chunk]]],
    failed: set[int],
) -> Iterator[_Batch]:
    for grab in grabs:
        ranges = read_ranges([(job.texts[c.file], c.start, c.end) for job, c in grab])
        for (job, chunk), read in zip(grab, ranges, strict=True):
            if job.id not in failed:
                yield from _read_chunk(context, sizer, job, chunk, read)


def _read_chunk(
    context: ModelContext,
    sizer: BatchSizer,
    job: FileJob,
    chunk: Chunk,
    read: Callable[[], bytes],
) -> Iterator[_Batch]:
    state = _ChunkState(job, chunk)
    try:
        require_visible(state.where, job.texts[chunk.file], job.store.folder)
        data = read()
        if chunk.crc >= 0 and zlib.crc32(data) != chunk.crc:
            raise SourceChangedError(
                f"{state.where} changed after it was validated (from line "
                f"{chunk.first_line}); run again once its writer has finished"
            )
        lines = rows_in(data, chunk.first_line)
        del data
        for rows, last in _batches(context, sizer, job, chunk, lines):
            yield _Batch(state, rows, last)
    except Exception as e:
        state.failure = e
        yield _Batch(state, (), True)


def _batches(
    context: ModelContext,
    sizer: BatchSizer,
    job: FileJob,
    chunk: Chunk,
    lines: Iterator[tuple[int, bytes]],
) -> Iterator[tuple[list[Row], bool]]:
    if job.batch_size is None:
        sizer.make_room(chunk.rows)

    def size() -> int:
        return sizer.size if job.batch_size is None else job.batch_size

    if job.bucket_by is None:
        for start, stop in spans(chunk.rows, size):
            batch = list(islice(lines, stop - start))
            yield context.rows.parse(batch, chunk.first_row + start), stop == chunk.rows
        return
    # The window is the chunk: it is the same at every run, so the batches of one size are too.
    buckets: dict[Any, list[Row]] = defaultdict(list)
    for row in context.rows.parse(list(lines), chunk.first_row):
        buckets[repr(getattr(row.request, job.bucket_by, None))].append(row)
    left = chunk.rows
    for bucket in buckets.values():
        for start, stop in spans(len(bucket), size):
            left -= stop - start
            yield bucket[start:stop], not left


def _predict(
    loaded: LoadedBackend, batch: _Batch, failed: set[int], limit_for: LimitFor | None
) -> list[Answer]:
    state = batch.state
    if state.failure is not None or not batch.rows or state.job.id in failed:
        return []
    job = state.job
    predictor = Predictor(loaded, job.on_error, state.where, log.warning, redact=job.redact)
    if limit_for is not None:
        predictor.limit = limit_for(loaded, job, state.chunk)
        predictor.hangs = job.hangs.get(state.chunk.index, predictor.hangs)
    try:
        answers = predictor.run(batch.rows)
    except Exception as e:
        state.failure = e
        answers = []
    if predictor.halved:
        loaded.sizer.out_of_memory(len(batch.rows))
    elif predictor.calls == 1 and state.failure is None:
        loaded.sizer.observe(len(batch.rows), predictor.seconds)
    loaded.batch_seconds.append(predictor.seconds / max(predictor.calls, 1))
    state.predict_seconds += predictor.seconds
    state.halved += predictor.halved
    state.error_rows += predictor.error_rows
    return answers


def _finish(
    loaded: LoadedBackend, batch: _Batch, answers: list[Answer], failed: set[int]
) -> ChunkReport | None:
    """Serialises a batch's answers; after the last batch of a chunk, writes its part."""
    state = batch.state
    part = None
    try:
        if state.failure is None and state.job.id not in failed:
            _serialise(state, batch.rows, answers, type(loaded.backend).__name__)
            if not batch.last:
                return None
            part = state.job.store.write(
                state.chunk.index,
                b"\n".join([*state.lines, b""]),
                rows=len(state.lines),
                error_rows=state.error_rows,
                non_finite=state.non_finite,
                model=loaded.tag,
                counts={kind[0]: n for kind, n in state.deviations.items()},
            )
            state.lines = []
    except Exception as e:
        state.failure = e
    if state.job.id in failed:
        return None
    if state.failure is not None:
        failed.add(state.job.id)
    return ChunkReport(
        job=state.job.id,
        chunk=state.chunk.index,
        first_row=state.chunk.first_row,
        worker=worker_name(),
        part=part,
        failure=(
            ErrorMessage.of(state.failure, state.where, redact=state.job.redact)
            if state.failure is not None
            else None
        ),
        predict_seconds=state.predict_seconds,
        halved=state.halved,
        batch_size=state.job.batch_size or loaded.sizer.size,
        started=max(state.started, loaded.ready_at),
        ended=time.time(),
        load_seconds=loaded.load_seconds,
        model_digest=loaded.digest,
    )


def _serialise(
    state: _ChunkState, rows: Sequence[Row], answers: list[Answer], backend: str
) -> None:
    in_order = state.job.bucket_by is None
    if not in_order and not state.lines:
        state.lines = [b""] * state.chunk.rows
    responses = [a for a in answers if not isinstance(a, bytes)]
    try:
        lines, bad = response_lines(responses)
    except Exception:
        # Not the fault of the others: find the rows.
        lines, bad = _one_by_one(state, rows, answers, backend)
    else:
        for response in responses:
            state.deviations.update(deviations_of(response))
    state.non_finite += bad
    if len(lines) < len(answers):
        made = iter(lines)
        lines = [a if isinstance(a, bytes) else next(made) for a in answers]
    if in_order:
        state.lines += lines
        return
    for row, line in zip(rows, lines, strict=True):
        state.lines[row.position - state.chunk.first_row] = line


def _one_by_one(
    state: _ChunkState, rows: Sequence[Row], answers: list[Answer], backend: str
) -> tuple[list[bytes], int]:
    """Lines of answers of which some can't be written: half a surrogate, an unknown type."""
    lines, bad = [], 0
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, bytes):
            lines.append(answer)
            continue
        try:
            (line,), n = response_lines([answer])
        except Exception as e:
            if state.job.on_error == "fail":
                said = repeatable(said_by(e, redact=state.job.redact), row.request)
                raise PredictError(
                    f"{state.where}, line {row.line}: the answer of {backend} can't be written as "
                    f'JSON; fix the model, or use on_error="record" to go on without it: {said}'
                ) from e
            state.error_rows += 1
            lines.append(error_line(row.request, e, redact=state.job.redact))
        else:
            bad += n
            state.deviations.update(deviations_of(answer))
            lines.append(line)
    return lines, bad
