"""A backend with rows in flight: as many under way as it allows, until the job's last row."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.backends.base import loop_of
from sheaf_dagster.backends.common.notes import NOTES
from sheaf_dagster.batch.messages import ChunkReport
from sheaf_dagster.batch.rows.row import Row, named_lines
from sheaf_dagster.batch.worker.counting import check_responses
from sheaf_dagster.batch.worker.files import Files
from sheaf_dagster.batch.worker.hanging import MAX_IN_A_ROW, took_too_long
from sheaf_dagster.batch.worker.making import Batch
from sheaf_dagster.batch.worker.memory import free_what_it_holds, is_out_of_memory
from sheaf_dagster.batch.worker.notes import PartNotes
from sheaf_dagster.batch.worker.overlap import TICK_SECONDS, Behind, Prefetched
from sheaf_dagster.batch.worker.predict import Predictor
from sheaf_dagster.batch.worker.tally import Tally
from sheaf_dagster.errors import BatchTimeoutError, SheafError, SpecError

__all__ = ["run_in_flight"]

log = logging.getLogger(__name__)

_READ_AHEAD = 2
_BATCHES_BEHIND = 4
_WAITING_ROWS = 1024
"""Besides sixteen times those in flight, so many answered rows may wait for one that is slow."""

_MOMENT_SECONDS = 0.002

_STALL_SECONDS = 3.0
"""So much after its time limit nothing has come back: the event loop itself is held up."""


def run_in_flight(
    files: Files, batches: Iterator[Batch], stop: Callable[[], bool]
) -> Iterator[ChunkReport]:
    """Keeps rows of all batches under way in ``predict_async``; yields the reports.

    A batch is no more here than rows that are read and written together.

    Args:
        files: The files.
        batches: Their batches.
        stop: Whether to end early.
    """
    writer: Behind[ChunkReport | None] = Behind(_BATCHES_BEHIND)
    flight = _Flight(files, writer)
    with writer, Prefetched(batches, _READ_AHEAD) as ahead:
        try:
            while not stop():
                while flight.has_room and (batch := ahead.take(0)) is not None:
                    flight.add(batch)
                yield from files.heard(writer.done())
                # Where rows could be added, they are awaited more than answers.
                more = flight.has_room and not ahead.ended
                if flight.step(_MOMENT_SECONDS if more else TICK_SECONDS):
                    continue
                if ahead.ended:
                    break
                batch = ahead.take()
                if batch is not None:
                    flight.add(batch)
            else:
                return
            yield from files.heard(writer.rest())
        finally:
            flight.cancel()


class _Open:
    """A batch some of whose rows are under way, or wait for a place."""

    def __init__(self, batch: Batch, predictor: Predictor) -> None:
        self.batch = batch
        self.predictor = predictor
        self.answers: list[Any] = [None] * len(batch.rows)
        self.left = len(batch.rows)

    def land(self, index: int, answer: Any) -> None:
        self.answers[index] = answer
        self.left -= 1


class _Landed(NamedTuple):
    open: _Open
    place: int
    future: Future[Any]


class _GivenUpError(Exception):
    """A row that was not asked, since its file has failed."""


class _Flight:
    """The rows under way. All of it belongs to one thread; the loop's only fills a queue."""

    def __init__(self, files: Files, writer: Behind[ChunkReport | None]) -> None:
        self._jobs = files
        self._writer = writer
        self._most = _most_in_flight(files.loaded.backend)
        self._open: deque[_Open] = deque()
        """In order: what comes of a batch is said after what came of those before it."""
        self._waiting: deque[tuple[_Open, int]] = deque()
        self._under_way: dict[Future[Any], _Open] = {}
        self._alone: Future[Any] | None = None
        """The row that has been under way without others, if the last one has."""
        self._beside: set[Future[Any]] = set()
        """Those under way when one last ran out of memory: for the same reason others of them may."""
        self._landed: queue.SimpleQueue[_Landed] = queue.SimpleQueue()
        self._failing: set[int] = set()
        """Files of which a row has failed that is to end them."""
        self._hung_in_a_row = 0
        self._tally = Tally()
        self._counted = perf_counter()
        self._heard = perf_counter()

    @property
    def has_room(self) -> bool:
        """Whether rows are wanted."""
        open_rows = sum(len(o.answers) for o in self._open)
        return not self._waiting and open_rows < 16 * self._most + _WAITING_ROWS

    def add(self, batch: Batch) -> None:
        """Takes a batch's rows on."""
        making, files = batch.making, self._jobs
        if files.has_failed(making.work):
            return
        if batch.failure is not None:
            self._writer.hand(files.failing(making, batch.failure))
        elif files.is_known_to_hang(batch):
            finish = files.in_one_call(batch)
            if finish is not None:
                self._writer.hand(finish)
        else:
            opened = _Open(batch, files.predictor(making))
            self._open.append(opened)
            self._waiting += [(opened, i) for i in range(len(batch.rows))]
            self._launch()

    def step(self, seconds: float = TICK_SECONDS) -> bool:
        """Takes in what has come back within so many seconds; False where nothing is under way."""
        self._launch()
        if not self._open:
            return False
        try:
            landed = self._landed.get(timeout=seconds)
            while True:
                self._take(landed)
                landed = self._landed.get_nowait()
        except queue.Empty:
            self._require_alive()
        self._launch()
        while self._open and not self._open[0].left:
            self._close(self._open.popleft())
        return True

    def cancel(self) -> None:
        """Gives up what is under way."""
        for future in self._under_way:
            future.cancel()

    def _launch(self) -> None:
        backend = self._jobs.loaded.backend
        while self._waiting and len(self._under_way) < self._most:
            opened, i = self._waiting.popleft()
            work = opened.batch.making.work
            if work.id in self._failing or self._jobs.has_failed(work):
                opened.land(i, _GivenUpError())
                continue
            self._count()
            request = opened.batch.rows[i].request
            notes = PartNotes(work.store.folder)
            future = loop_of(backend).start(_answer(backend, request, work.batch_timeout, notes))
            if not self._under_way:
                self._heard = perf_counter()
            self._alone = future if self._most == 1 else None
            self._under_way[future] = opened
            future.add_done_callback(lambda f, o=opened, i=i: self._landed.put(_Landed(o, i, f)))  # type: ignore[misc]

    def _take(self, landed: _Landed) -> None:
        self._count()
        self._heard = perf_counter()
        opened, i, future = landed
        del self._under_way[future]
        row = opened.batch.rows[i]
        error = future.exception()
        if error is None:
            try:
                self._check(opened, row, future.result())
            except SheafError as e:
                error = e
        if error is None:
            opened.land(i, future.result())
            return
        free_what_it_holds(error)
        if is_out_of_memory(error) and future is not self._alone:
            if future not in self._beside:
                self._most = max(1, min(self._most, len(self._under_way) + 1) // 2)
                self._tally.halved += 1
                log.warning(
                    "%s, %s: out of memory with %d rows in flight (%s); going on with %d. Lower "
                    "max_in_flight to avoid this",
                    opened.batch.making.where,
                    named_lines(opened.batch.making.where, [row]),
                    len(self._under_way) + 1,
                    type(error).__name__,
                    self._most,
                )
                self._beside = set(self._under_way)
            self._waiting.appendleft((opened, i))
            return
        if opened.batch.making.work.on_error == "fail" or _ends_the_job(error):
            self._failing.add(opened.batch.making.work.id)
        opened.land(i, error)

    def _check(self, opened: _Open, row: Row, answer: Any) -> None:
        making = opened.batch.making
        name = type(self._jobs.loaded.backend).__name__
        check_responses(
            making.where, name, "predict_async", [row], [answer], redact=making.work.redact
        )

    def _close(self, opened: _Open) -> None:
        """Judges a batch whose rows have all come back, and hands it on."""
        batch, predictor = opened.batch, opened.predictor
        making, files = batch.making, self._jobs
        if files.has_failed(making.work):
            return
        try:
            answers = [
                self._judged(opened, row, answer)
                for row, answer in zip(batch.rows, opened.answers, strict=True)
            ]
        except Exception as e:
            self._writer.hand(files.failing(making, e))
            return
        tally, self._tally = self._tally, Tally()
        tally.error_rows += predictor.error_rows
        self._writer.hand(partial(making.add, files.loaded, batch.rows, answers, tally))

    def _judged(self, opened: _Open, row: Row, answer: Any) -> Any:
        """What is written for a row."""
        hung = isinstance(answer, BatchTimeoutError)
        self._hung_in_a_row = self._hung_in_a_row + 1 if hung else 0
        if not isinstance(answer, BaseException):
            return answer
        work, where = opened.batch.making.work, opened.batch.making.where
        name = type(self._jobs.loaded.backend).__name__
        if hung and self._hung_in_a_row >= max(MAX_IN_A_ROW, self._most):
            raise BatchTimeoutError(
                f"{where}, {named_lines(where, [row])}: {name} hung on each of the {self._hung_in_a_row} rows "
                "up to this one, so it seems to hang whatever it is given; look at the backend, or "
                "raise batch_timeout"
            )
        if hung and work.on_error == "fail":
            assert work.batch_timeout is not None
            raise BatchTimeoutError(took_too_long(where, [row], name, work.batch_timeout))
        if _ends_the_job(answer):
            raise answer
        if work.on_error == "fail" and not isinstance(answer, _GivenUpError):
            raise opened.predictor.failure(
                named_lines(opened.predictor.where, [row]), answer, row.request
            )
        return opened.predictor.error(row, answer)

    def _require_alive(self) -> None:
        """Has a process ended whose event loop is held up, so that no time limit is kept in it."""
        if not self._under_way:
            return
        opened = next(iter(self._under_way.values()))
        seconds = opened.batch.making.work.batch_timeout
        if seconds is None:
            return
        if perf_counter() - self._heard > seconds + _STALL_SECONDS:
            rows = [r for r, a in zip(opened.batch.rows, opened.answers, strict=True) if a is None]
            self._landed.put(opened.predictor.limit(rows, self._landed_patiently))

    def _landed_patiently(self) -> _Landed:
        while True:
            try:
                return self._landed.get(timeout=TICK_SECONDS)
            except queue.Empty:
                continue

    def _count(self) -> None:
        """Adds up the time in which rows were under way."""
        now = perf_counter()
        spent, self._counted = now - self._counted, now
        if self._under_way:
            self._tally.seconds += spent
            self._tally.flight_seconds += spent * len(self._under_way)


def _ends_the_job(error: BaseException) -> bool:
    """Whether an error is not a row's own, whatever is to become of rows that fail."""
    return isinstance(error, SheafError) and not isinstance(error, BatchTimeoutError)


async def _answer(
    backend: ModelBackend, request: Any, seconds: float | None, notes: PartNotes
) -> Any:
    """One row's answer, within a time.

    Raises:
        BatchTimeoutError: It took longer; the call is cancelled, and left behind where it goes on
            nevertheless.
    """
    NOTES.set(notes)
    if seconds is None:
        return await backend.predict_async(request)
    call = asyncio.ensure_future(backend.predict_async(request))
    try:
        done, _ = await asyncio.wait({call}, timeout=seconds)
    except asyncio.CancelledError:
        call.cancel()
        raise
    if not done:
        call.cancel()
        raise BatchTimeoutError("took longer than batch_timeout allows")
    return call.result()


def _most_in_flight(backend: ModelBackend) -> int:
    most = backend.max_in_flight
    if not isinstance(most, int) or most < 1:
        raise SpecError(
            f"{type(backend).__name__}.max_in_flight must be a whole number of at least 1, not "
            f"{most!r}"
        )
    return most
