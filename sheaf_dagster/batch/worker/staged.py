"""A backend in stages: rows are prepared ahead of the device, and answered behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.batch.messages import ChunkReport
from sheaf_dagster.batch.rows.answer_columns import settled
from sheaf_dagster.batch.rows.row import Row, named_lines
from sheaf_dagster.batch.worker.files import Files
from sheaf_dagster.batch.worker.hanging import TimeLimit, took_too_long
from sheaf_dagster.batch.worker.loading import LoadedBackend
from sheaf_dagster.batch.worker.making import Batch, ChunkInMaking
from sheaf_dagster.batch.worker.memory import is_out_of_memory
from sheaf_dagster.batch.worker.model_thread import CallTooLongError, ModelThread
from sheaf_dagster.batch.worker.overlap import Behind, Helpers, Prefetched
from sheaf_dagster.batch.worker.predict import ErrorLine, Predictor, Stage, is_suspicious
from sheaf_dagster.batch.worker.preparing import Preparing, Ready, Window, prepared
from sheaf_dagster.batch.worker.tally import Tally
from sheaf_dagster.errors import BatchTimeoutError, SheafError

__all__ = ["run_in_stages"]

T = TypeVar("T")

_BATCHES_AHEAD = 8
_BATCHES_BEHIND = 4


class _Doubt(NamedTuple):
    """A batch without one finite answer, which the device is to be asked about again."""

    making: ChunkInMaking
    rows: Sequence[Row]
    answers: Sequence[Any]
    tally: Tally


def run_in_stages(
    files: Files, batches: Iterator[Batch], stop: Callable[[], bool], threads: int
) -> Iterator[ChunkReport]:
    """Runs batches through ``prepare``, ``infer`` and ``respond``; yields the reports.

    Args:
        files: The files.
        batches: Their batches, or windows where batches are taken by size.
        stop: Whether to end early.
        threads: Threads that prepare.
    """
    writer: Behind[ChunkReport | _Doubt | None] = Behind(_BATCHES_BEHIND)
    with (
        writer,
        Helpers(threads) as helpers,
        closing(Preparing(files, helpers)) as preparing,
        Prefetched(preparing.windows(batches), _BATCHES_AHEAD) as ahead,
        closing(preparing),  # again, so that the reader doesn't wait for room
        closing(_Device(files, preparing, writer)) as device,
    ):
        window: Window | None = None
        while not (stop() or ahead.ended):
            window = window or ahead.take()
            if window is not None and preparing.is_done(window):
                for _ in device.answer(window):
                    yield from device.heard(writer.done())
                    if stop():
                        return
                window = None
            yield from device.heard(writer.done())
        if ahead.ended:
            while writer:
                yield from device.heard(writer.rest())


class _Device:
    """The stage that the calling thread has to itself, and what is done with its outputs."""

    def __init__(
        self, files: Files, preparing: Preparing, writer: Behind[ChunkReport | _Doubt | None]
    ) -> None:
        self._jobs = files
        self._preparing = preparing
        self._writer = writer
        self._responder = _Responder()

    def close(self) -> None:
        """Ends the thread of answers that may hang."""
        self._responder.close()

    def heard(self, made: Iterable[ChunkReport | _Doubt | None]) -> Iterator[ChunkReport]:
        """The reports among what the writer made; batches in doubt are asked again."""
        for report in made:
            if isinstance(report, _Doubt):
                self._ask_again(report)
            else:
                yield from self._jobs.heard([report])

    def answer(self, window: Window) -> Iterator[None]:
        """Has the device do a window's batches, one at each step."""
        batch, files = window.batch, self._jobs
        making = batch.making
        self._preparing.gone(len(batch.rows))
        if files.has_failed(making.work):
            return
        if batch.failure is not None:
            self._writer.hand(files.failing(making, batch.failure))
            return
        if not window.slices:
            self._by_hand(batch)
            return
        if window.is_hanging and wait(window.slices, 0).not_done:
            self._preparing.leave_behind()
            self._by_hand(batch, partial(self._timed_out, batch))
            return
        ready = self._preparing.take(window)
        window.slices = []
        try:
            rows = self._without_errors(batch, ready)
        except Exception as e:
            self._writer.hand(files.failing(making, e))
            return
        if not rows:
            return
        work, budgets = making.work, files.loaded.budgets
        if work.window is None:
            self._infer(making, rows, ready)
            yield
            return
        # The largest come first: whether they fit is known at once. Equal ones are as in the file.
        rows.sort(key=lambda row: -ready[row.position].size)
        if work.batch_budget is not None:
            budgets.make_room(ready[rows[0].position].size, len(rows))
        while rows and not files.has_failed(work):
            if work.batch_budget is None:
                count = work.batch_size or len(rows)
            else:
                budget = budgets.of(work.batch_budget)
                count = max(1, budget // ready[rows[0].position].size)
            self._infer(making, rows[:count], ready)
            del rows[:count]
            yield

    def _without_errors(self, batch: Batch, ready: dict[int, Ready]) -> list[Row]:
        """The rows that could be prepared; the errors of the others go to the writer."""
        making, predictor = batch.making, self._jobs.predictor(batch.making)
        good: list[Row] = []
        failed: list[tuple[Row, ErrorLine]] = []
        for row in batch.rows:
            made = ready[row.position]
            if made.error is not None and is_out_of_memory(made.error):
                # With others beside it; now alone.
                made = ready[row.position] = prepared(self._jobs.loaded.backend, [row]).ready[0]
            if made.error is None:
                good.append(row)
            elif isinstance(made.error, SheafError):
                raise made.error
            elif making.work.on_error == "fail":
                raise predictor.failure(
                    named_lines(predictor.where, [row]), made.error, row.request
                )
            else:
                failed.append((row, predictor.error(row, made.error)))
        if failed:
            rows, lines = zip(*failed, strict=True)
            self._hand_answers(making, rows, lines, predictor.tally)
        return good

    def _infer(self, making: ChunkInMaking, rows: list[Row], ready: dict[int, Ready]) -> None:
        files, loaded = self._jobs, self._jobs.loaded
        stage = Stage(
            "infer",
            lambda some: loaded.backend.infer([ready[row.position].value for row in some]),
            answers=False,
        )
        predictor = files.predictor(making, stage)
        try:
            outputs = predictor.run(rows)
        except Exception as e:
            self._writer.hand(files.failing(making, e))
            return
        tally = predictor.tally
        taken = [ready.pop(row.position) for row in rows]
        sizes = [one.size for one in taken]
        padded = max(sizes) * len(sizes)
        if type(loaded.backend).size is not ModelBackend.size:
            tally.size = sum(sizes)
            tally.padded = loaded.backend.device_size([one.value for one in taken], sizes)
        _learn(loaded, predictor, len(rows), padded)
        self._writer.hand(partial(self._respond, making, rows, outputs, tally))

    def _respond(
        self, making: ChunkInMaking, rows: list[Row], outputs: Sequence[Any], tally: Tally
    ) -> ChunkReport | _Doubt | None:
        """Makes responses of outputs, in the writer's thread."""
        loaded = self._jobs.loaded
        both = zip(rows, outputs, strict=True)
        good = [(row, out) for row, out in both if not isinstance(out, ErrorLine)]
        made = {row.position: out for row, out in good}
        stage = Stage(
            "respond",
            lambda some: settled(
                loaded.backend.respond(
                    [row.request for row in some], [made[row.position] for row in some]
                )
            ),
            final=True,
        )
        predictor = self._jobs.predictor(making, stage)
        predictor.limit = self._responder.limit(making, type(loaded.backend).__name__)
        try:
            answers = predictor.run([row for row, _ in good]) if good else ()
        except Exception as e:
            return making.fail(loaded, e)
        if len(good) < len(outputs):
            responses = iter(answers)
            answers = [out if isinstance(out, ErrorLine) else next(responses) for out in outputs]
        tally.error_rows += predictor.error_rows
        if is_suspicious(answers):
            return _Doubt(making, rows, answers, tally)
        return making.add(loaded, rows, answers, tally)

    def _timed_out(self, batch: Batch, predictor: Predictor, rows: Sequence[Row]) -> Sequence[Any]:
        making, name = batch.making, type(self._jobs.loaded.backend).__name__
        seconds = making.work.batch_timeout or 0.0
        error = BatchTimeoutError(took_too_long(making.where, rows, name, seconds))
        return predictor.after_timeout(rows, error)

    def _ask_again(self, doubt: _Doubt) -> None:
        making, rows, answers, tally = doubt
        self._by_hand(
            Batch(making, rows), lambda predictor, _: predictor.after_doubt(rows, answers), tally
        )

    def _by_hand(self, batch: Batch, ask: Ask = Predictor.run, tally: Tally | None = None) -> None:
        """Answers rows by all stages in a row, in this thread, where something is wrong."""
        files, making = self._jobs, batch.making
        if files.has_failed(making.work):
            return
        self._writer.wait()  # its thread uses the backend as well
        predictor = files.predictor(making)
        try:
            answers = ask(predictor, batch.rows)
        except Exception as e:
            self._writer.hand(files.failing(making, e))
            return
        spent = predictor.tally
        if tally is not None:
            spent.add(tally)
        self._hand_answers(making, batch.rows, answers, spent)

    def _hand_answers(
        self, making: ChunkInMaking, rows: Sequence[Row], answers: Sequence[Any], tally: Tally
    ) -> None:
        self._writer.hand(partial(making.add, self._jobs.loaded, rows, answers, tally))


class _Responder:
    """Makes the calls of ``respond``: in the writer's thread, but for those that may hang."""

    def __init__(self) -> None:
        self._thread: ModelThread | None = None

    def limit(self, making: ChunkInMaking, name: str) -> TimeLimit:
        """What makes the calls for a chunk."""
        seconds = making.work.batch_timeout
        if seconds is None:
            return lambda rows, call: call()

        def within(rows: Sequence[Row], call: Callable[[], T]) -> T:
            if self._thread is None or self._thread.lost:
                self._thread = ModelThread()
            try:
                return self._thread.call(call, seconds)
            except CallTooLongError:
                raise BatchTimeoutError(took_too_long(making.where, rows, name, seconds)) from None

        return within

    def close(self) -> None:
        if self._thread is not None:
            self._thread.end()


Ask = Callable[[Predictor, Sequence[Row]], Sequence[Any]]
"""How a predictor is to go about some rows."""


def _learn(loaded: LoadedBackend, predictor: Predictor, rows: int, padded: int) -> None:
    """Tells the sizers what a batch took."""
    if predictor.halved:
        loaded.sizer.out_of_memory(rows)
        loaded.budgets.out_of_memory(padded)
    elif predictor.calls == 1:
        loaded.sizer.observe(rows, predictor.seconds)
        loaded.budgets.observe(padded, predictor.seconds)
