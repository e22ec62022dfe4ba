"""What runs on Ray: workers that take a seat and pull chunks until there are no more."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import ray

from sheaf_dagster.batch.messages import ChunkReport, ErrorMessage, FileWork, worker_name
from sheaf_dagster.batch.ray.client import Sitting, WorkerClient
from sheaf_dagster.batch.ray.records import ChunkWork, NodeDrains, ValidationWork
from sheaf_dagster.batch.rows.chunk_validation import validate_group
from sheaf_dagster.batch.rows.row import Row
from sheaf_dagster.batch.worker.hanging import TimeLimit, WorkerLimit, took_too_long
from sheaf_dagster.batch.worker.loading import (
    LoadedBackend,
    ModelContext,
    cached_backend,
    load_backend,
)
from sheaf_dagster.batch.worker.memory import keep_freed_memory
from sheaf_dagster.batch.worker.pipeline import run_chunks
from sheaf_dagster.storage import Chunk

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Shift", "_BackendActor", "run_task", "run_task_of_ray_data", "shifts"]

_LEAVE_SECONDS = 5.0
"""A worker of a job that was called off ends itself where its batch takes longer than this."""

_TASK_SECONDS = 30.0
_GENERATIONS = 6


@dataclass(frozen=True)
class Shift:
    """A worker's time at a job's chunks, which Ray schedules.

    Attributes:
        seat: The seat that it works in.
        seconds: How long it may keep that; negative: to the end of the job.
    """

    seat: int
    seconds: float


def shifts(slots: int, *, actors: bool) -> list[Shift]:
    """All shifts of a job, in the order in which they begin.

    An actor has one and keeps it to the end of the job. A task gives its place back after a
    while, so that a cluster shared with others stays elastic: half a minute at first, then ever
    longer, the last ones without end.
    """
    generations = 1 if actors else _GENERATIONS
    last = generations - 1
    return [
        Shift(
            seat=generation * slots + i,
            seconds=-1.0 if generation == last else _TASK_SECONDS * 2.0**generation,
        )
        for generation in range(generations)
        for i in range(slots)
    ]


def run_task(shift: Shift, context: ModelContext, coordinator: WorkerClient) -> None:
    """A stateless task, with the model that this process has loaded or now loads.

    It returns nothing: the coordinator has heard what came of each chunk.
    """
    keep_freed_memory()
    coordinator.ready()
    _work(shift, context, coordinator, lambda: cached_backend(context))


def run_task_of_ray_data(
    table: pa.Table, context: ModelContext, coordinator: WorkerClient
) -> Iterator[pa.Table]:
    """``run_task`` as Ray Data calls it."""
    for shift in table.to_pylist():
        run_task(Shift(**shift), context, coordinator)
        yield table.slice(0, 0)


class _BackendActor:
    """One warm worker of a fixed pool; loads its model once, when the first file is valid."""

    def __init__(self, context: ModelContext, coordinator: WorkerClient) -> None:
        self._context = context
        self._coordinator = coordinator
        self._loaded: LoadedBackend | None = None
        self._error: Exception | None = None
        # Whatever is raised here, Ray starts the actor again and again, for ever.
        try:
            keep_freed_memory()
            coordinator.ready()
            if _pass_gate(coordinator):
                coordinator.begin_load()
                self._load()
                coordinator.end_load()
        except ray.exceptions.RayError as e:  # the job is over
            self._error = e

    def _load(self) -> None:
        try:
            self._loaded = load_backend(self._context)
        except Exception as e:
            self._error = e

    def _backend(self) -> LoadedBackend:
        if self._error is not None:
            raise self._error
        assert self._loaded is not None
        return self._loaded

    def run(self, shift: Shift) -> None:
        """As ``run_task``, with the actor's own model."""
        _work(shift, self._context, self._coordinator, self._backend)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """``run`` as Ray Data calls it."""
        for shift in table.to_pylist():
            self.run(Shift(**shift))
            yield table.slice(0, 0)


def _pass_gate(coordinator: WorkerClient) -> bool:
    """Waits for the first valid file, and helps to validate it; False where none will come."""
    while isinstance(word := coordinator.gate(), ValidationWork):
        coordinator.validated(word, validate_group(word.chunks))
    return word


class _Pulled:
    """The chunks of a seat, asked for as they are needed."""

    def __init__(self, coordinator: WorkerClient, sitting: Sitting, seconds: float) -> None:
        self._coordinator = coordinator
        self._sitting = sitting
        self._seconds = seconds
        self.aborted = threading.Event()
        self.done = threading.Event()
        self.node_drains = False

    def watch(self) -> None:
        """Learns, from a thread, that the driver gives up; ends the process if that has to be."""

        def wait() -> None:
            self._sitting.wait_for_abort()
            self.aborted.set()
            if not self.done.wait(_LEAVE_SECONDS):
                os._exit(1)

        threading.Thread(target=wait, daemon=True, name="sheaf-abort").start()

    def limit_for(self, loaded: LoadedBackend, work: FileWork, chunk: Chunk) -> TimeLimit:
        """Bounds the calls for a chunk by the life of this process."""
        seconds = work.batch_timeout
        if seconds is None:
            return lambda rows, call: call()
        backend = type(loaded.backend).__name__

        def report(rows: Sequence[Row]) -> None:
            message = took_too_long(work.names[chunk.file], rows, backend, seconds)
            positions = frozenset(row.position for row in rows)
            self._sitting.hung(work.id, chunk.index, positions, message)

        return WorkerLimit(seconds, report)

    def __iter__(self) -> Iterator[ChunkWork]:
        started = time.monotonic()
        while (work := self._sitting.take()) is not None:
            if isinstance(work, NodeDrains):
                self.node_drains = True
                return
            if isinstance(work, ValidationWork):
                self._coordinator.validated(work, validate_group(work.chunks))
                continue
            yield work
            if 0 <= self._seconds < time.monotonic() - started:
                return


def _work(
    shift: Shift,
    context: ModelContext,
    coordinator: WorkerClient,
    backend: Callable[[], LoadedBackend],
) -> None:
    """Runs chunks until there are no more."""
    sitting = coordinator.enter(shift.seat)
    pulled = _Pulled(coordinator, sitting, shift.seconds)
    try:
        if _pass_gate(coordinator):
            pulled.watch()
            try:
                for report in _reports(pulled, context, backend):
                    sitting.report(report)
            finally:
                pulled.done.set()
    finally:
        sitting.leave()
    if pulled.node_drains:
        # Ray starts on another node again whatever ends without having returned.
        os._exit(1)


def _reports(
    pulled: _Pulled, context: ModelContext, backend: Callable[[], LoadedBackend]
) -> Iterator[ChunkReport]:
    taken = iter(pulled)
    first = next(taken, None)
    if first is None:
        return
    handed = chain([first], taken)
    try:
        loaded = backend()
    except Exception as e:
        # Every file learns why, and the next one gets the next try.
        for work, chunk in chain.from_iterable(handed):
            yield ChunkReport(
                work.id,
                chunk.index,
                chunk.first_row,
                worker_name(),
                failure=ErrorMessage.of(e, work.names[chunk.file]),
            )
    else:
        yield from run_chunks(context, loaded, handed, pulled.aborted.is_set, pulled.limit_for)
