"""Jobs in this process, without Ray: small files, debugging, tests of a backend."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from sheaf_dagster.batch.events import Reported, Tell, Waiting, WorkFailed
from sheaf_dagster.batch.messages import ChunkReport, FileWork
from sheaf_dagster.batch.ray.capacity import amounts, demand_of
from sheaf_dagster.batch.rows.chunk_validation import validate_chunks
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.row import Row
from sheaf_dagster.batch.worker.hanging import TimeLimit, took_too_long
from sheaf_dagster.batch.worker.loading import LoadedBackend, ModelContext
from sheaf_dagster.batch.worker.local_model import LocalModel, local_model
from sheaf_dagster.batch.worker.model_thread import CallTooLongError
from sheaf_dagster.batch.worker.pipeline import run_chunks
from sheaf_dagster.errors import BatchTimeoutError
from sheaf_dagster.storage import Chunk, ScannedSource

__all__ = ["LocalWorkforce"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class LocalWorkforce:
    """The driver's own thread, in which one file is run after the other.

    Nothing is reserved and no limit of the cluster applies: a process is as large as it was
    started.
    """

    files_ahead = 1
    surely_opens = True

    def __init__(self, context: ModelContext) -> None:
        self._context = context
        self._tell: Tell = lambda event: None
        self._waiting: queue.SimpleQueue[tuple[FileWork, list[Chunk]]] = queue.SimpleQueue()
        self._running: tuple[int, Generator[ChunkReport, None, None]] | None = None

    def open(self) -> None:
        """Says what isn't reserved."""
        demand = demand_of(self._context.spec.resources)
        demand.pop("CPU", None)  # one by default, and the process has it
        if demand:
            log.warning(
                "model %r asks for %s, but compute='local' reserves nothing and applies no limit: "
                "the model runs with whatever this process has. To reserve it, use "
                "compute='tasks' or 'actors'",
                self._context.spec.name,
                ", ".join(amounts(demand)),
            )

    def start(self, tell: Tell) -> None:
        """Nobody needs to be waited for."""
        self._tell = tell

    def validate(
        self, contract: RowContract, source: ScannedSource, stop: threading.Event
    ) -> Iterator[ChunkFindings]:
        """Validates one chunk after the other."""
        for found in validate_chunks(contract, [f.text for f in source.files], source.chunks):
            if stop.is_set():
                raise InterruptedError("the job was stopped")
            yield found

    def submit(self, work: FileWork, chunks: list[Chunk]) -> None:
        """Has a file's chunks run when the driver looks next."""
        self._waiting.put((work, chunks))
        self._tell(Waiting())

    def no_more_files(self) -> None:
        """Nobody waits for more."""

    def cancel(self, file: int) -> None:
        """Leaves the rest of a file that failed."""
        if self._running is not None and self._running[0] == file:
            self.stop()

    def look(self) -> bool:
        """Runs on until a chunk is done."""
        if self._running is None:
            try:
                work, chunks = self._waiting.get_nowait()
            except queue.Empty:
                return False
            self._running = work.id, self._run(work, chunks)
        file, reports = self._running
        try:
            self._tell(Reported(next(reports)))
        except StopIteration:
            self._running = None
        except Exception as e:
            self._running = None
            self._tell(WorkFailed(file, e))
        return True

    def stop(self) -> None:
        """Leaves the file that is being run."""
        if self._running is not None:
            self._running[1].close()
            self._running = None

    def close(self) -> None:
        """Nothing was taken."""

    def _run(self, work: FileWork, chunks: list[Chunk]) -> Generator[ChunkReport, None, None]:
        with local_model(self._context) as model:

            def limit_for(loaded: LoadedBackend, work: FileWork, chunk: Chunk) -> TimeLimit:
                return _LocalLimit(model, type(loaded.backend).__name__, work, chunk)

            todo = [[(work, chunk) for chunk in chunks]]
            cpus = max(_available_cpus(), self._context.spec.resources.num_cpus)
            in_model_thread = model.call if work.batch_timeout is None else None
            yield from run_chunks(
                self._context,
                model.load(),
                todo,
                limit_for=limit_for,
                in_model_thread=in_model_thread,
                cpus=cpus,
            )


def _available_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


class _LocalLimit:
    """Makes the calls for a chunk from the model's own thread, within ``batch_timeout``."""

    def __init__(self, model: LocalModel, backend: str, work: FileWork, chunk: Chunk) -> None:
        self._model = model
        self._backend = backend
        self._seconds = work.batch_timeout
        self._where = work.names[chunk.file]

    def __call__(self, rows: Sequence[Row], call: Callable[[], T]) -> T:
        """The call's value.

        Raises:
            BatchTimeoutError: It took too long.
        """
        try:
            return self._model.call(call, self._seconds)
        except CallTooLongError:
            assert self._seconds is not None
            raise BatchTimeoutError(
                took_too_long(self._where, rows, self._backend, self._seconds)
            ) from None
