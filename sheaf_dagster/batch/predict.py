"""One batch through a backend: counted, checked, and split where it fails."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.batch.rows import Row, error_line
from sheaf_dagster.batch.spec import OnError
from sheaf_dagster.contracts import row_identity
from sheaf_dagster.errors import PredictError, ResponseMismatchError, SheafError

__all__ = ["Answer", "Predictor"]

Answer = BaseModel | bytes
"""A response, or the finished line of an error response."""


@dataclass
class Predictor:
    """Runs batches and keeps account of what it took.

    Attributes:
        seconds: Time inside ``batch_predict``.
        calls: Calls of ``batch_predict``.
        halved: Batches that ran out of memory and were halved.
        error_rows: Rows answered by an error response.
    """

    backend: ModelBackend
    on_error: OnError
    where: str
    """Names the source in messages."""
    on_halve: Callable[[str], None] = lambda message: None
    seconds: float = 0.0
    calls: int = 0
    halved: int = 0
    error_rows: int = 0

    def run(self, rows: Sequence[Row]) -> list[Answer]:
        """One answer a row, in order.

        Raises:
            PredictError: ``on_error="fail"`` and a row failed; the message has its line.
            ResponseMismatchError: Wrong number, order or type of responses.
        """
        try:
            return list(self._call(rows))
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
            responses = self.backend.batch_predict(requests)
        finally:
            self.seconds += time.perf_counter() - started
            self.calls += 1
        self._check(rows, requests, responses)
        return responses

    def _check(self, rows: Sequence[Row], requests: Sequence[Any], responses: Any) -> None:
        place = f"{self.where}, {_lines(rows)}"
        name = type(self.backend).__name__
        if not isinstance(responses, (list, tuple)):
            raise ResponseMismatchError(
                f"{place}: {name}.batch_predict returned {type(responses).__name__}; it must "
                "return a list with one response for each request"
            )
        if len(responses) != len(requests):
            raise ResponseMismatchError(
                f"{place}: {name}.batch_predict returned {len(responses)} responses for "
                f"{len(requests)} requests; it must return one for each, in the same order"
            )
        for row, request, response in zip(rows, requests, responses, strict=True):
            if not isinstance(response, BaseModel):
                raise ResponseMismatchError(
                    f"{self.where}, line {row.line}: {name} returned "
                    f"{type(response).__name__} instead of a response (a pydantic model)"
                )
            asked, answered = row_identity(request), row_identity(response)
            if None not in (asked, answered) and answered != asked:
                raise ResponseMismatchError(
                    f"{self.where}, line {row.line}: {name} answered request {answered} in "
                    f"place of {asked}; batch_predict must keep the order and copy each id"
                )

    def _halve(self, rows: Sequence[Row], error: BaseException) -> list[Answer]:
        self.halved += 1
        middle = len(rows) // 2
        self.on_halve(
            f"{self.where}, {_lines(rows)}: out of memory with {len(rows)} rows "
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
            except SheafError:
                raise
            except Exception as e:
                error = e
        if len(rows) == 1:
            if error is None:  # bad only by inference; hear it from the row itself
                return self._isolate(rows, None, known_bad=False)
            self.error_rows += 1
            return [error_line(rows[0].request, error)]
        middle = len(rows) // 2
        before = self.error_rows
        left = self._isolate(rows[:middle], None, known_bad=False)
        # A good left half means that the right one is bad: don't try it whole again.
        right = self._isolate(rows[middle:], None, known_bad=self.error_rows == before)
        return left + right

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
            place, cause = f"line {rows[low].line}", e
        else:
            place, cause = f"{_lines(all_rows)} together (each half alone succeeds)", error
        failure = PredictError(
            f"{self.where}, {place}: {type(self.backend).__name__} failed; fix the row or the "
            f'model, or use on_error="record" to go on without it: {type(cause).__name__}: {cause}'
        )
        failure.__cause__ = cause
        return failure


def _lines(rows: Sequence[Row]) -> str:
    first, last = min(r.line for r in rows), max(r.line for r in rows)
    return f"line {first}" if first == last else f"lines {first}–{last}"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
