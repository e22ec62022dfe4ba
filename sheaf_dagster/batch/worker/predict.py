"""One batch through a stage of a backend: counted, checked, and split where it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from sheaf_dagster.backends.base import answered_in_shape
from sheaf_dagster.batch.messages import Hangs, said_by
from sheaf_dagster.batch.rows.answer_columns import AnswerColumns, settled
from sheaf_dagster.batch.rows.answers import ErrorLine, error_line, has_non_finite
from sheaf_dagster.batch.rows.in_columns import requests_of
from sheaf_dagster.batch.rows.repeatable import repeatable
from sheaf_dagster.batch.rows.row import Row, named_lines
from sheaf_dagster.batch.worker.counting import check_responses, checked_outputs
from sheaf_dagster.batch.worker.hanging import MAX_IN_A_ROW, TimeLimit
from sheaf_dagster.batch.worker.loading import LoadedBackend
from sheaf_dagster.batch.worker.memory import (
    free_what_it_holds,
    is_out_of_memory,
    return_cached_memory,
)
from sheaf_dagster.batch.worker.tally import Tally
from sheaf_dagster.errors import (
    BatchTimeoutError,
    PredictError,
    ResponseMismatchError,
    SheafError,
)

if TYPE_CHECKING:
    from sheaf_dagster.batch.spec import OnError

__all__ = [
    "Answer",
    "Begun",
    "ErrorLine",
    "Predictor",
    "Stage",
    "is_suspicious",
]


Answer = BaseModel | ErrorLine


@dataclass(frozen=True)
class Stage:
    """What turns some rows into something: a method of a backend, in one call.

    Attributes:
        name: The method, for messages.
        call: Given rows, returns one value for each, or what returns them once the device has them.
        answers: Whether the values are the rows' responses.
        final: Whether a row would get the same value again, whatever its mates.
    """

    name: str
    call: Callable[[Sequence[Row]], Any]
    answers: bool = True
    final: bool = False


class Begun(NamedTuple):
    """A batch begun: what ends it as ``Predictor.run`` does, and whether the device goes on with it."""

    end: Callable[[], Sequence[Any]]
    goes_on: bool


@dataclass
class Predictor:
    """Runs batches through one stage of a backend, and keeps account of what it took.

    Attributes:
        seconds: Time inside the stage.
        calls: Calls of it.
        halved: Batches that ran out of memory and were halved.
        error_rows: Rows answered by an error response.
    """

    loaded: LoadedBackend
    on_error: OnError
    where: str
    """Names the source in messages."""
    on_halve: Callable[[str], None] = lambda message: None
    limit: TimeLimit = lambda rows, call: call()
    hangs: Hangs = field(default_factory=Hangs)
    """Rows of this chunk that have run out of time before."""
    redact: bool = False
    """Leave what a backend says of a row out of messages."""
    stage: Stage | None = None
    """By default ``batch_predict``."""
    seconds: float = 0.0
    calls: int = 0
    halved: int = 0
    error_rows: int = 0

    @property
    def tally(self) -> Tally:
        """What it took, as it is reported."""
        return Tally(self.seconds, self.halved, self.error_rows)

    def __post_init__(self) -> None:
        self._stage = self.stage or Stage(
            "batch_predict",
            # The backend is asked for at each call: one that was given up is replaced by another.
            lambda rows: settled(answered_in_shape(self.loaded.backend, requests_of(rows))),
        )

    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        """One value a row, in order: an ``ErrorLine`` where the row failed.

        Raises:
            PredictError: ``on_error="fail"`` and a row failed; the message has its line.
            BatchTimeoutError: ``on_error="fail"`` and the batch took too long, or the backend
                hangs whatever it is given.
            ResponseMismatchError: Wrong number, order or type of responses.
        """
        return self.begin(rows).end()

    def begin(self, rows: Sequence[Row]) -> Begun:
        """Begins what ``run`` does; the device may go on with it after that. It raises nothing."""
        together = self.hangs.together
        if together and not together.isdisjoint(row.position for row in rows):
            return Begun(partial(self._one_by_one, rows), goes_on=False)
        values, error = None, None
        try:
            values = self._begun(rows)
        except Exception as e:
            error = e
        return Begun(partial(self._answers, rows, values, error), self._goes_on(values))

    def _answers(self, rows: Sequence[Row], values: Any, error: Exception | None) -> Sequence[Any]:
        """What rows came to, from what their stage gave, or raised."""
        try:
            if error is not None:
                raise error
            found = self._ended(rows, values)
            answers = found if isinstance(found, AnswerColumns) else list(found)
        except BatchTimeoutError as e:
            return self.after_timeout(rows, e)
        except SheafError:
            raise
        except Exception as e:
            return self.after_failure(rows, e)
        if self._stage.answers and not self._stage.final and is_suspicious(answers):
            return self.after_doubt(rows, answers)
        return answers

    def after_failure(self, rows: Sequence[Row], error: Exception) -> Sequence[Any]:
        """Goes on after a call that failed: halves the batch, or finds the rows at fault."""
        if is_out_of_memory(error) and len(rows) > 1:
            return self._halve(rows, error)
        if self.on_error == "record":
            return self._isolate(rows, error)
        raise self._first_failure(rows, error) from error

    def after_doubt(self, rows: Sequence[Row], answers: Sequence[Any]) -> Sequence[Any]:
        """Goes on after a batch without one finite answer: one row may have spoilt its mates.

        Three rows are asked again alone, or else a model that answers so to any row would take
        as many calls as there are rows.
        """
        probes = (rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1}))
        if not any(map(self._is_finite_alone, probes)):
            return answers
        self.on_halve(
            f"{self.where}, {named_lines(self.where, rows)}: {self._name} gave no finite answer "
            "to any row of this batch, but gives one to rows that it gets alone. So the rows are run "
            "one at a time. Look for a row that spoils the others"
        )
        return [answer for row in rows for answer in self.run([row])]

    def _is_finite_alone(self, row: Row) -> bool:
        try:
            return not has_non_finite(self._call([row])[0])
        except Exception:
            return False

    def _call(self, rows: Sequence[Row]) -> Sequence[Any]:
        return self._ended(rows, self._begun(rows))

    def _begun(self, rows: Sequence[Row]) -> Any:
        """What the stage gives: values, or what gives them once the device has made them."""
        self.calls += 1
        return self._within_limit(rows, lambda: self._stage.call(rows))

    def _goes_on(self, values: Any) -> bool:
        return not self._stage.answers and callable(values)

    def _ended(self, rows: Sequence[Row], values: Any) -> Sequence[Any]:
        if self._goes_on(values):
            values = self._within_limit(rows, values)
        said = self.where, self._name, self._stage.name, rows, values
        if not self._stage.answers:
            return checked_outputs(*said)
        check_responses(*said, redact=self.redact)
        return values  # type: ignore[no-any-return]

    def _within_limit(self, rows: Sequence[Row], call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            return self.limit(rows, call)
        except ResponseMismatchError as e:
            place = f"{self.where}, {named_lines(self.where, rows)}: {self._name}"
            raise ResponseMismatchError(f"{place}, {e}") from e
        except Exception as e:
            free_what_it_holds(e)
            raise
        finally:
            self.seconds += time.perf_counter() - started

    @property
    def _name(self) -> str:
        return type(self.loaded.backend).__name__

    def _halve(self, rows: Sequence[Row], error: BaseException) -> list[Any]:
        self.halved += 1
        middle = len(rows) // 2
        self.on_halve(
            f"{self.where}, {named_lines(self.where, rows)}: out of memory with {len(rows)} rows "
            f"({type(error).__name__}); trying {middle}. Lower batch_size to avoid this"
        )
        return_cached_memory()
        return [*self.run(rows[:middle]), *self.run(rows[middle:])]

    def _isolate(
        self, rows: Sequence[Row], error: Exception | None, *, known_bad: bool = True
    ) -> list[Any]:
        """Answers the good rows; about log2(batch) extra calls for each bad one."""
        if not known_bad:
            try:
                return list(self._call(rows))
            except BatchTimeoutError as e:
                return self.after_timeout(rows, e)
            except SheafError:
                raise
            except Exception as e:
                error = e
        if len(rows) == 1:
            if error is None:  # bad only by inference; hear it from the row itself
                return self._isolate(rows, None, known_bad=False)
            return [self.error(rows[0], error)]
        middle = len(rows) // 2
        before = self.error_rows
        left = self._isolate(rows[:middle], None, known_bad=False)
        # A good left half means that the right one is bad: don't try it whole again.
        right = self._isolate(rows[middle:], None, known_bad=self.error_rows == before)
        return left + right

    def after_timeout(self, rows: Sequence[Row], error: BatchTimeoutError) -> list[Any]:
        """Goes on after a call that was stopped in this process."""
        if self.on_error == "fail":
            raise error
        self.hangs = self.hangs.after(row.position for row in rows)
        return self._one_by_one(rows)

    def _one_by_one(self, rows: Sequence[Row]) -> list[Any]:
        """Answers what can be answered of rows of which some hang.

        Splitting would need fewer calls, but each that hangs costs the time limit and, on Ray,
        a worker with its loaded model.
        """
        answers: list[Any] = []
        in_a_row = 0
        for row in rows:
            error: Exception | None = None
            if row.position in self.hangs.alone:
                error = BatchTimeoutError("took longer than batch_timeout allows")
            elif in_a_row >= MAX_IN_A_ROW:
                raise BatchTimeoutError(
                    f"{self.where}, {named_lines(self.where, [row])}: {self._name} hung on each of the "
                    f"{in_a_row} rows before this one, each given alone, so it seems to hang "
                    "whatever it is given; look at the backend, or raise batch_timeout"
                )
            else:
                try:
                    answers += self._call([row])
                except BatchTimeoutError as e:
                    self.hangs = self.hangs.after([row.position])
                    error = BatchTimeoutError("took longer than batch_timeout allows")
                    error.__cause__ = e
                except SheafError:
                    raise
                except Exception as e:
                    error = e
            hung = isinstance(error, BatchTimeoutError)
            in_a_row = in_a_row + 1 if hung else 0
            if error is not None:
                answers.append(self.error(row, error))
        return answers

    def error(self, row: Row, error: BaseException) -> ErrorLine:
        """What is written for a row that failed."""
        self.error_rows += 1
        return ErrorLine(error_line(row.request, error, redact=self.redact))

    def _first_failure(self, rows: Sequence[Row], error: Exception) -> PredictError:
        """Finds the first row that fails alone, in log2(batch) calls."""
        all_rows, low, high = rows, 0, len(rows)
        while high - low > 1:
            middle = (low + high) // 2
            try:
                self._call(rows[low:middle])
            except Exception:
                high = middle
            else:
                low = middle
        try:
            self._call(rows[low:high])
        except Exception as e:
            place, cause, row = named_lines(self.where, rows[low:high]), e, rows[low].request
        else:
            all_lines = named_lines(self.where, all_rows)
            place, cause = f"{all_lines} together (each half alone succeeds)", error
            row = [r.request for r in all_rows]
        return self.failure(place, cause, row)

    def failure(self, place: str, cause: BaseException, row: Any) -> PredictError:
        """The error that ends a job.

        Args:
            place: Names the lines.
            cause: What the backend raised.
            row: The request, or the requests, that it was about.
        """
        said = repeatable(said_by(cause, redact=self.redact), row)
        failure = PredictError(
            f"{self.where}, {place}: {self._name} failed; fix the row or the model, or use "
            f'on_error="record" to go on without it: {said}'
        )
        failure.__cause__ = cause
        return failure


def is_suspicious(answers: Sequence[Any]) -> bool:
    """Whether not one of several answers is all finite numbers."""
    if isinstance(answers, AnswerColumns):
        return False
    return len(answers) > 1 and all(
        not isinstance(a, ErrorLine) and has_non_finite(a) for a in answers
    )
