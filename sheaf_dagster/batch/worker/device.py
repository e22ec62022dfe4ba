"""The stage of a backend that has the device, and what is done with its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.batch.messages import ChunkReport
from sheaf_dagster.batch.rows.answer_columns import settled
from sheaf_dagster.batch.rows.row import Row
from sheaf_dagster.batch.worker.files import Files
from sheaf_dagster.batch.worker.hanging import TimeLimit, took_too_long
from sheaf_dagster.batch.worker.loading import LoadedBackend
from sheaf_dagster.batch.worker.making import Batch, ChunkInMaking
from sheaf_dagster.batch.worker.model_thread import CallTooLongError, ModelThread
from sheaf_dagster.batch.worker.overlap import Behind, Prefetched
from sheaf_dagster.batch.worker.planning import Plan, with_room
from sheaf_dagster.batch.worker.predict import Begun, ErrorLine, Predictor, Stage, is_suspicious
from sheaf_dagster.batch.worker.preparing import Preparing, Ready
from sheaf_dagster.batch.worker.tally import Tally
from sheaf_dagster.errors import BatchTimeoutError

__all__ = ["Device", "Doubt"]

T = TypeVar("T")


class Doubt(NamedTuple):
    """A batch without one finite answer, which the device is to be asked about again."""

    making: ChunkInMaking
    rows: Sequence[Row]
    answers: Sequence[Any]
    tally: Tally


class _BatchBegun(NamedTuple):
    """A batch that the device has begun with."""

    making: ChunkInMaking
    rows: list[Row]
    ready: dict[int, Ready]
    predictor: Predictor
    begun: Begun
    started: float


class Device:
    """The stage that one thread has to itself, and what is done with its outputs."""

    def __init__(
        self, files: Files, preparing: Preparing, writer: Behind[ChunkReport | Doubt | None]
    ) -> None:
        self._jobs = files
        self._preparing = preparing
        self._writer = writer
        self._responder = _Responder()
        self._begun: _BatchBegun | None = None
        self._settled = 0.0
        """When the device had done the last batch."""

    def close(self) -> None:
        """Ends the thread of answers that may hang."""
        self._responder.close()

    def heard(self, made: Iterable[ChunkReport | Doubt | None]) -> Iterator[ChunkReport]:
        """The reports among what the writer made; batches in doubt are asked again."""
        for report in made:
            if isinstance(report, Doubt):
                self._ask_again(report)
            else:
                yield from self._jobs.heard([report])

    def steps(self, plan: Plan, plans: Prefetched[Plan]) -> Iterator[Sequence[ChunkReport]]:
        """Carries out a plan, and those that are ready after it: a batch at each step."""
        following: Plan | None = plan
        while following is not None:
            for _ in self._carry_out(following):
                yield list(self.heard(self._writer.done()))
            following = plans.take(0)
        self._settle()

    def _carry_out(self, plan: Plan) -> Iterator[None]:
        files, batch = self._jobs, plan.batch
        making = batch.making
        self._preparing.gone(len(batch.rows))
        if files.has_failed(making.work):
            return
        if plan.lacks_room:
            self._settle()
            plan = with_room(files, plan)
        ready = plan.ready
        if plan.failure is not None:
            self._settle()  # if that failed, too, it is named
            self._writer.hand(files.failing(making, plan.failure))
            return
        if ready is None:
            self._by_hand(batch, partial(self._timed_out, batch) if plan.hangs else Predictor.run)
            return
        if plan.errors is not None:
            self._hand_answers(making, *plan.errors)
        work, budgets, rows = making.work, files.loaded.budgets, plan.rows
        if rows and work.batch_budget is not None:
            budgets.make_room(ready[rows[0].position].size, len(rows))
        while rows and not files.has_failed(work):
            if work.window is None:
                count = len(rows)
            elif work.batch_budget is None:
                count = work.batch_size or len(rows)
            else:
                budget = budgets.of(work.batch_budget)
                count = max(1, budget // ready[rows[0].position].size)
            self._infer(making, rows[:count], ready)
            del rows[:count]
            yield

    def _infer(self, making: ChunkInMaking, rows: list[Row], ready: dict[int, Ready]) -> None:
        """Has the device begin with a batch; takes the one before it, if it goes on with this one."""
        loaded = self._jobs.loaded
        stage = Stage(
            "infer",
            lambda some: loaded.backend.infer([ready[row.position].value for row in some]),
            answers=False,
        )
        predictor = self._jobs.predictor(making, stage)
        started = perf_counter()
        begun = predictor.begin(rows)
        self._settle(0.0 if begun.goes_on else predictor.seconds)
        self._begun = _BatchBegun(making, rows, ready, predictor, begun, started)
        if not begun.goes_on:
            self._settle()

    def _settle(self, others: float = 0.0) -> None:
        """Waits for the batch that the device was given last, if there is one.

        Args:
            others: Seconds since then that count as another batch's.
        """
        if self._begun is None:
            return
        making, rows, ready, predictor, begun, started = self._begun
        self._begun = None
        loaded = self._jobs.loaded
        try:
            outputs = begun.end()
        except Exception as e:
            if loaded.told_seconds is not None:
                loaded.told_seconds()  # of this batch, and not of the next
            self._writer.hand(self._jobs.failing(making, e))
            return
        if begun.goes_on:  # the device was its own from when it was done with the one before
            predictor.seconds = perf_counter() - max(started, self._settled) - others
        self._settled = perf_counter()
        if loaded.told_seconds is not None:
            predictor.seconds = loaded.told_seconds()
        padded = max(ready[row.position].size for row in rows) * len(rows)
        loaded.meter.add(padded, predictor.seconds)
        _learn(loaded, predictor, len(rows), padded)
        self._writer.hand(partial(self._respond, making, rows, ready, outputs, predictor.tally))

    def _respond(
        self,
        making: ChunkInMaking,
        rows: list[Row],
        ready: dict[int, Ready],
        outputs: Sequence[Any],
        tally: Tally,
    ) -> ChunkReport | Doubt | None:
        """Makes responses of outputs, in the writer's thread."""
        loaded = self._jobs.loaded
        taken = [ready.pop(row.position) for row in rows]
        if type(loaded.backend).size is not ModelBackend.size:
            sizes = [one.size for one in taken]
            tally.size = sum(sizes)
            tally.padded = loaded.backend.device_size([one.value for one in taken], sizes)
        del taken
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
            return Doubt(making, rows, answers, tally)
        return making.add(loaded, rows, answers, tally)

    def _timed_out(self, batch: Batch, predictor: Predictor, rows: Sequence[Row]) -> Sequence[Any]:
        making, name = batch.making, type(self._jobs.loaded.backend).__name__
        seconds = making.work.batch_timeout or 0.0
        error = BatchTimeoutError(took_too_long(making.where, rows, name, seconds))
        return predictor.after_timeout(rows, error)

    def _ask_again(self, doubt: Doubt) -> None:
        making, rows, answers, tally = doubt
        self._by_hand(
            Batch(making, rows), lambda predictor, _: predictor.after_doubt(rows, answers), tally
        )

    def _by_hand(self, batch: Batch, ask: Ask = Predictor.run, tally: Tally | None = None) -> None:
        """Answers rows by all stages in a row, in this thread, where something is wrong."""
        files, making = self._jobs, batch.making
        if files.has_failed(making.work):
            return
        self._settle()
        self._writer.wait()  # its thread uses the backend as well
        predictor = files.predictor(making)
        try:
            answers = ask(predictor, batch.rows)
        except Exception as e:
            self._writer.hand(files.failing(making, e))
            return
        if (told := files.loaded.told_seconds) is not None:
            predictor.seconds = told()
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
