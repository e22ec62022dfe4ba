"""One batch through a backend: counted, checked, and split where it fails."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.batch.messages import Hangs, said_by
from sheaf_dagster.batch.rows.answers import error_line
from sheaf_dagster.batch.rows.repeatable import repeatable
from sheaf_dagster.batch.rows.requests import Row, lines_of
from sheaf_dagster.batch.spec import OnError
from sheaf_dagster.batch.worker.hanging import MAX_IN_A_ROW, TimeLimit
from sheaf_dagster.batch.worker.loading import LoadedBackend
from sheaf_dagster.contracts import row_identity
from sheaf_dagster.errors import (
    BatchTimeoutError,
    PredictError,
    ResponseMismatchError,
    SheafError,
)

__all__ = ["Answer", "Predictor"]

_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, JAX
    "can't allocate memory",  # torch on the CPU
    "failed to allocate memory",  # ONNX Runtime
    "cublas_status_alloc_failed",
)

Answer = BaseModel | bytes
"""A response, or the finished line of an error response, without its newline."""


@dataclass
class Predictor:
    """Runs batches and keeps account of what it took.

    Attributes:
        seconds: Time inside ``batch_predict``.
        calls: Calls of ``batch_predict``.
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
    seconds: float = 0.0
    calls: int = 0
    halved: int = 0
    error_rows: int = 0

    def run(self, rows: Sequence[Row]) -> list[Answer]:
        """One answer a row, in order.

        Raises:
            PredictError: ``on_error="fail"`` and a row failed; the message has its line.
            BatchTimeoutError: ``on_error="fail"`` and the batch took too long, or the backend
                hangs whatever it is given.
            ResponseMismatchError: Wrong number, order or type of responses.
        """
        if not self.hangs.together.isdisjoint(row.position for row in rows):
            return self._one_by_one(rows)
        try:
            return list(self._call(rows))
        except BatchTimeoutError as e:
            return self._after_timeout(rows, e)
        except SheafError:
            raise
        except Exception as e:
            if _is_out_of_memory(e) and len(rows) > 1:
                return self._halve(rows, e)
            if self.on_error == "record":
                return self._isolate(rows, e)
            raise self._first_failure(rows, e) from e

    def _call(self, rows: Sequence[Row]) -> Sequence[BaseModel]:
        requests = [row.request for row in rows]
        started = time.perf_counter()
        try:
            responses = self.limit(rows, lambda: self.loaded.backend.batch_predict(requests))
        finally:
            self.seconds += time.perf_counter() - started
            self.calls += 1
        self._check(rows, requests, responses)
        return responses

    def _check(self, rows: Sequence[Row], requests: Sequence[Any], responses: Any) -> None:
        name = self._name
        if not isinstance(responses, (list, tuple)):
            raise ResponseMismatchError(
                f"{self.where}, {lines_of(rows)}: {name}.batch_predict returned "
                f"{type(responses).__name__}; it must return a list with one response for each "
                "request"
            )
        if len(responses) != len(requests):
            raise ResponseMismatchError(
                f"{self.where}, {lines_of(rows)}: {name}.batch_predict returned "
                f"{len(responses)} responses for {len(requests)} requests; it must return one for "
                "each, in the same order"
            )
        kind: type | None = None
        for row, request, response in zip(rows, requests, responses, strict=True):
            # Once for each type: pydantic's isinstance takes longer than all the rest here.
            if type(response) is kind:
                pass
            elif isinstance(response, BaseModel):
                kind = type(response)
            else:
                raise ResponseMismatchError(
                    f"{self.where}, line {row.line}: {name} returned "
                    f"{type(response).__name__} instead of a response (a pydantic model)"
                )
            own = getattr(request, "request_id", None)
            if own is not None and getattr(response, "request_id", None) is own:
                continue  # copied, as it should be; comparing UUIDs takes longer
            asked, answered = row_identity(request), row_identity(response)
            if None not in (asked, answered) and answered != asked:
                what = f"request {answered} in place of {asked}"
                raise ResponseMismatchError(
                    f"{self.where}, line {row.line}: {name} answered "
                    f"{'another request' if self.redact else what}; batch_predict must keep the "
                    "order and copy each id"
                )

    @property
    def _name(self) -> str:
        return type(self.loaded.backend).__name__

    def _halve(self, rows: Sequence[Row], error: BaseException) -> list[Answer]:
        self.halved += 1
        middle = len(rows) // 2
        self.on_halve(
            f"{self.where}, {lines_of(rows)}: out of memory with {len(rows)} rows "
            f"({type(error).__name__}); trying {middle}. Lower batch_size to avoid this"
        )
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self.run(rows[:middle]) + self.run(rows[middle:])

    def _isolate(
        self, rows: Sequence[Row], error: Exception | None, *, known_bad: bool = True
    ) -> list[Answer]:
        """Answers the good rows; about log2(batch) extra calls for each bad one."""
        if not known_bad:
            try:
                return list(self._call(rows))
            except BatchTimeoutError as e:
                return self._after_timeout(rows, e)
            except SheafError:
                raise
            except Exception as e:
                error = e
        if len(rows) == 1:
            if error is None:  # bad only by inference; hear it from the row itself
                return self._isolate(rows, None, known_bad=False)
            return [self._error(rows[0], error)]
        middle = len(rows) // 2
        before = self.error_rows
        left = self._isolate(rows[:middle], None, known_bad=False)
        # A good left half means that the right one is bad: don't try it whole again.
        right = self._isolate(rows[middle:], None, known_bad=self.error_rows == before)
        return left + right

    def _after_timeout(self, rows: Sequence[Row], error: BatchTimeoutError) -> list[Answer]:
        """Goes on after a call that was stopped in this process."""
        if self.on_error == "fail":
            raise error
        self.hangs = self.hangs.after(row.position for row in rows)
        return self._one_by_one(rows)

    def _one_by_one(self, rows: Sequence[Row]) -> list[Answer]:
        """Answers what can be answered of rows of which some hang.

        Splitting would need fewer calls, but each that hangs costs the time limit and, on Ray,
        a worker with its loaded model.
        """
        answers: list[Answer] = []
        in_a_row = 0
        for row in rows:
            error: Exception | None = None
            if row.position in self.hangs.alone:
                error = BatchTimeoutError("took longer than batch_timeout allows")
            elif in_a_row >= MAX_IN_A_ROW:
                raise BatchTimeoutError(
                    f"{self.where}, line {row.line}: {self._name} hung on each of the "
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
                answers.append(self._error(row, error))
        return answers

    def _error(self, row: Row, error: BaseException) -> bytes:
        self.error_rows += 1
        return error_line(row.request, error, redact=self.redact)

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
            place, cause, row = f"line {rows[low].line}", e, rows[low].request
        else:
            place, cause = f"{lines_of(all_rows)} together (each half alone succeeds)", error
            row = [r.request for r in all_rows]
        failure = PredictError(
            f"{self.where}, {place}: {self._name} failed; fix the row or the model, or use "
            f'on_error="record" to go on without it: {repeatable(said_by(cause, redact=self.redact), row)}'
        )
        failure.__cause__ = cause
        return failure


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(error, RuntimeError) and type(error).__name__ != "RuntimeException":
        return False  # the second is ONNX Runtime's
    text = str(error)[:2000].lower()
    return any(words in text for words in _OUT_OF_MEMORY)
