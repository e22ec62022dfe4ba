"""A chunk in the making: from answers to a part, and to the report of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import BaseModel
from zlib_ng.zlib_ng import crc32

from sheaf_dagster.batch.kept import KEPT, LOST, UNFILLED, Lines, lines_of, write_lines
from sheaf_dagster.batch.messages import (
    ChunkReport,
    ErrorMessage,
    FileWork,
    said_by,
    worker_name,
)
from sheaf_dagster.batch.rows.answer_columns import AnswerColumns
from sheaf_dagster.batch.rows.answered import answers_for
from sheaf_dagster.batch.rows.answers import error_line
from sheaf_dagster.batch.rows.in_columns import ColumnRows
from sheaf_dagster.batch.rows.inside import extra_of
from sheaf_dagster.batch.rows.keep import own_fields, without_fields
from sheaf_dagster.batch.rows.read_back import counted
from sheaf_dagster.batch.rows.repeatable import repeatable
from sheaf_dagster.batch.rows.row import Row, named_lines
from sheaf_dagster.batch.worker.gpus import GpuFigures
from sheaf_dagster.batch.worker.loading import LoadedBackend
from sheaf_dagster.batch.worker.predict import Answer, ErrorLine
from sheaf_dagster.batch.worker.tally import Tally
from sheaf_dagster.contracts import deviations_of
from sheaf_dagster.contracts.tokens import tokens_of
from sheaf_dagster.errors import PredictError, SourceChangedError
from sheaf_dagster.storage import Chunk, Part

__all__ = ["Batch", "ChunkInMaking", "Finish"]

_WORTH_SECONDS = 1.0
"""What took less time to answer isn't waited for until it is on the disk, which takes milliseconds of
each: the system writes it within half a minute by itself."""

Finish = Callable[[], "ChunkReport | None"]
"""What is left to do for some rows, in the thread that writes."""


@dataclass
class Batch:
    """Rows that are given to the model together, or what kept them from being read."""

    making: ChunkInMaking
    rows: Sequence[Row]
    failure: Exception | None = None


class ChunkInMaking:
    """Collects a chunk's answers; makes its part once there is one for each row.

    It is made by the thread that reads. After that the thread that writes has it alone: the
    others hand on what they have found out.
    """

    def __init__(self, work: FileWork, chunk: Chunk) -> None:
        self.work = work
        self.chunk = chunk
        self._answers = answers_for(work.store.format, chunk.rows, work.keep)
        self._left = chunk.rows
        self._in_order = work.bucket_by is None and work.window is None
        self._tally = Tally()
        self._non_finite = 0
        self._counts: Counter[str] = Counter()
        """By the first letter of a kind of deviation or of tokens."""
        self._started = time.time()
        self._failed = False
        self._is_answer = np.ones(chunk.rows, dtype=bool)
        """Which lines are answers, no error rows and no gaps."""

    @property
    def where(self) -> str:
        """The source, for messages."""
        return self.work.names[self.chunk.file]

    def require_validated(self, data: bytes) -> None:
        """Refuses bytes that aren't those that were validated.

        Raises:
            SourceChangedError: They have changed since.
        """
        if self.chunk.crc >= 0 and crc32(data) != self.chunk.crc:
            raise SourceChangedError(
                f"{self.where} changed after it was validated (from line "
                f"{self.chunk.first_line}); run again once its writer has finished"
            )

    def keep(
        self,
        at: Sequence[int],
        answers: Sequence[bytes],
        response: type[BaseModel],
        fields: Sequence[bytes] | None = None,
    ) -> None:
        """Puts kept answers in the places of their rows; in the thread that reads.

        Args:
            at: Positions of the rows in the chunk.
            answers: Theirs.
            response: The contract of these.
            fields: What the rows themselves have to be in their answers, where any have.
        """
        if not answers:
            return
        lines = answers
        if fields is not None:
            own = zip(answers, fields, strict=True)
            lines = [without_fields(line, self.work.keep, has) for line, has in own]
        self._answers.add(at, lines, fields)
        self._left -= len(answers)
        counts, non_finite = counted(answers, response)
        self._counts.update(counts)
        self._counts[KEPT] += len(answers)
        self._non_finite += non_finite

    def repeat(self, row: Row) -> None:
        """Leaves a gap for the answer of an equal row; see ``reuse.repeated``."""
        self._is_answer[row.position - self.chunk.first_row] = False
        self._left -= 1
        self._counts[UNFILLED] += 1

    def count_lost(self, rows: int) -> None:
        """Counts rows that are run because their answer isn't where it is said to be."""
        self._counts[LOST] += rows

    def reject(self, row: Row, error: Exception) -> None:
        """Puts the error row of an invalid row in its place; in the thread that reads."""
        line = ErrorLine(error_line(row.request, error, redact=self.work.redact))
        self._answers.add([row.position - self.chunk.first_row], [line], self.fields_of([row]))
        self._is_answer[row.position - self.chunk.first_row] = False
        self._left -= 1
        self._tally.error_rows += 1

    @property
    def complete(self) -> bool:
        """Whether each row has its line."""
        return not self._left

    def written(self, model: str) -> tuple[Part, Lines | None]:
        """Writes the part of all answers.

        Args:
            model: Tag of the weights.

        Returns:
            The part, and what an index needs to know of its lines, if there is to be one.
        """
        content, lines = self._answers.content(), None
        if self.work.indexed:
            lines = lines_of(self.work.store.format.answers(content), self._is_answer)
        part = self.work.store.write(
            self.chunk.index,
            content,
            rows=self.chunk.rows,
            error_rows=self._tally.error_rows,
            non_finite=self._non_finite,
            model=model,
            counts=self._counts,
            lasting=time.time() - self._started >= _WORTH_SECONDS,
        )
        return part, lines

    def add(
        self, loaded: LoadedBackend, rows: Sequence[Row], answers: Sequence[Answer], tally: Tally
    ) -> ChunkReport | None:
        """Takes in some rows' answers; after the last ones writes the part and reports it."""
        if self._failed:
            return None
        self._tally.add(tally)
        try:
            self._serialise(rows, answers, type(loaded.backend).__name__)
            self._left -= len(rows)
            if self._left:
                return None
            part, lines = self.written(loaded.tag)
            if lines is not None:
                write_lines(self.work.store.folder, self.chunk.index, lines)
        except Exception as e:
            return self.fail(loaded, e)
        del self._answers
        return self._report(loaded, part=part)

    def fail(self, loaded: LoadedBackend, error: BaseException) -> ChunkReport | None:
        """The report of a chunk that failed, once."""
        if self._failed:
            return None
        self._failed = True
        self.__dict__.pop("_answers", None)
        failure = ErrorMessage.of(error, self.where, redact=self.work.redact)
        return self._report(loaded, failure=failure)

    def _report(self, loaded: LoadedBackend, **outcome: Any) -> ChunkReport:
        tally = self._tally
        seen = loaded.gpus.take() if loaded.gpus else GpuFigures()
        return ChunkReport(
            file=self.work.id,
            chunk=self.chunk.index,
            first_row=self.chunk.first_row,
            worker=worker_name(),
            predict_seconds=tally.seconds,
            flight_seconds=tally.flight_seconds,
            size=tally.size,
            padded=tally.padded,
            halved=tally.halved,
            batch_size=self.work.batch_size or loaded.sizer.size,
            batch_budget=loaded.budgets.used,
            gpu_samples=seen.samples,
            gpu_utilisation=seen.utilisation,
            gpu_memory_bytes=seen.memory_bytes,
            started=max(self._started, loaded.ready_at),
            ended=time.time(),
            load_seconds=loaded.load_seconds,
            model_digest=loaded.digest,
            shape=loaded.shape,
            **outcome,
        )

    def _serialise(self, rows: Sequence[Row], answers: Sequence[Answer], backend: str) -> None:
        at = self._places_of(rows)
        if self.work.keep:
            self._require_free(rows, answers)
        try:
            self._non_finite += self._answers.add(at, answers, self.fields_of(rows))
        except Exception:
            self._one_by_one(at, rows, answers, backend)  # not the fault of all of them
        else:
            self._count(answers)
        if self._tally.error_rows and not isinstance(answers, AnswerColumns):
            self._is_answer[
                [n for n, a in zip(at, answers, strict=True) if isinstance(a, ErrorLine)]
            ] = False

    def _places_of(self, rows: Sequence[Row]) -> Sequence[int]:
        """Positions of rows in the chunk."""
        if isinstance(rows, ColumnRows):
            first = rows.first_position - self.chunk.first_row
            return range(first, first + len(rows))
        first, last = (row.position - self.chunk.first_row for row in (rows[0], rows[-1]))
        if self._in_order and last - first + 1 == len(rows):
            return range(first, last + 1)
        return [row.position - self.chunk.first_row for row in rows]

    def fields_of(self, rows: Sequence[Row]) -> list[bytes] | None:
        """The fields of rows that are to be in their answers, where any are."""
        if not self.work.keep:
            return None
        return rows.fields if isinstance(rows, ColumnRows) else [row.fields for row in rows]

    def _require_free(self, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
        """Refuses answers that have brought fields of such a name."""
        if isinstance(answers, AnswerColumns):
            return  # nothing but fields
        for row, answer in zip(rows, answers, strict=True):
            if not isinstance(answer, ErrorLine) and extra_of(answer):
                where = f"{self.where}, {named_lines(self.where, [row])}"
                own_fields(where, answer, self.work.keep)

    def _count(self, answers: Sequence[Answer]) -> None:
        if isinstance(answers, AnswerColumns) and not _counts_beside_metadata(answers.response):
            for metadata in answers.fields.get("metadata", ()):
                if metadata:
                    noted = deviations_of({"metadata": metadata})
                    self._counts.update(kind[0] for kind in noted)
            return
        responses = [a for a in answers if not isinstance(a, ErrorLine)]
        if not any(map(_counts_beside_metadata, {type(r) for r in responses})):
            # The common case: asking each of many small rows takes as long as answering it.
            responses = [r for r in responses if r.__dict__.get("metadata")]
        for response in responses:
            self._counts.update(kind[0] for kind in deviations_of(response))
            for kind, tokens in tokens_of(response).items():
                self._counts[kind[0]] += tokens

    def _one_by_one(
        self, at: Sequence[int], rows: Sequence[Row], answers: Sequence[Answer], backend: str
    ) -> None:
        """Takes in answers of which some can't be written: half a surrogate, an unknown type."""
        for position, row, answer in zip(at, rows, answers, strict=True):
            try:
                self._non_finite += self._answers.add([position], [answer], self.fields_of([row]))
            except Exception as e:
                if self.work.on_error == "fail":
                    said = repeatable(said_by(e, redact=self.work.redact), row.request)
                    raise PredictError(
                        f"{self.where}, {named_lines(self.where, [row])}: the answer of {backend} can't be written "
                        f"as {self.work.store.format.written_as}; fix the model, or use "
                        'on_error="record" to go on without it: '
                        f"{said}"
                    ) from e
                self._tally.error_rows += 1
                line = ErrorLine(error_line(row.request, e, redact=self.work.redact))
                self._answers.add([position], [line], self.fields_of([row]))
                self._is_answer[position] = False
            else:
                self._count([answer])


@lru_cache(maxsize=32)
def _counts_beside_metadata(response: type[BaseModel]) -> bool:
    """Whether responses may have something to count elsewhere than in a field ``metadata``."""
    own = ("token_usage", "_deviations", "metadata")  # fields are no attributes of their class
    return response.model_config.get("extra") == "allow" or any(hasattr(response, n) for n in own)
