"""The files that a worker has chunks of: which have failed, and how their rows are asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from sheaf_dagster.batch.messages import ChunkReport, FileWork
from sheaf_dagster.batch.worker.hanging import TimeLimit
from sheaf_dagster.batch.worker.loading import LoadedBackend
from sheaf_dagster.batch.worker.making import Batch, ChunkInMaking, Finish
from sheaf_dagster.batch.worker.predict import Predictor, Stage
from sheaf_dagster.storage import Chunk

__all__ = ["Files", "LimitFor"]

log = logging.getLogger(__name__)

LimitFor = Callable[[LoadedBackend, FileWork, Chunk], TimeLimit]
"""Makes what makes the backend's calls for a chunk: within ``batch_timeout``, where there is one,
and from the thread that they must come from."""


class Files:
    """What the thread that has the device knows of the files; the others only ask.

    Args:
        loaded: The backend.
        limit_for: Makes what makes the backend's calls; by default they are made where they stand.
    """

    def __init__(self, loaded: LoadedBackend, limit_for: LimitFor | None) -> None:
        self.loaded = loaded
        self._limit_for = limit_for
        self._failed: set[int] = set()
        self._told: set[int] = set()

    def has_failed(self, work: FileWork) -> bool:
        """Whether one of a file's chunks has failed: the others are passed over."""
        return work.id in self._failed

    def failing(self, making: ChunkInMaking, error: BaseException) -> Finish:
        """Notes that a chunk failed; returns what is left to do for it."""
        self._failed.add(making.work.id)
        return partial(making.fail, self.loaded, error)

    def heard(self, reports: Iterable[ChunkReport | None]) -> Iterator[ChunkReport]:
        """The reports to pass on: of a file that has failed, only that it has."""
        for report in reports:
            if report is None or report.file in self._told:
                continue
            if report.failure is not None:
                self._failed.add(report.file)
                self._told.add(report.file)
            elif report.file in self._failed:
                continue
            yield report

    def predictor(self, making: ChunkInMaking, stage: Stage | None = None) -> Predictor:
        """What asks rows of a chunk, as its job says."""
        work = making.work
        predictor = Predictor(
            self.loaded, work.on_error, making.where, log.warning, redact=work.redact, stage=stage
        )
        if self._limit_for is not None:
            predictor.limit = self._limit_for(self.loaded, work, making.chunk)
            predictor.hangs = work.hangs.get(making.chunk.index, predictor.hangs)
        return predictor

    def is_known_to_hang(self, batch: Batch) -> bool:
        """Whether some of these rows have run out of time together before."""
        hangs = batch.making.work.hangs.get(batch.making.chunk.index)
        return hangs is not None and not hangs.together.isdisjoint(
            row.position for row in batch.rows
        )

    def in_one_call(self, batch: Batch) -> Finish | None:
        """Has the model answer a batch; returns what is left to do, if its file hasn't failed."""
        making, loaded = batch.making, self.loaded
        if self.has_failed(making.work):
            return None
        if batch.failure is not None:
            return self.failing(making, batch.failure)
        predictor = self.predictor(making)
        try:
            answers = predictor.run(batch.rows)
        except Exception as e:
            return self.failing(making, e)
        if predictor.halved:
            loaded.sizer.out_of_memory(len(batch.rows))
        elif predictor.calls == 1:
            loaded.sizer.observe(len(batch.rows), predictor.seconds)
        loaded.batch_seconds.append(predictor.seconds / max(predictor.calls, 1))
        return partial(making.add, loaded, batch.rows, answers, predictor.tally)
