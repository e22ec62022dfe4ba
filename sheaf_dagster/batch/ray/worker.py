"""What runs on Ray: workers that take a ticket and pull chunks until there are no more."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import ray

from sheaf_dagster.batch.checking import check_group
from sheaf_dagster.batch.messages import ChunkReport, ErrorMessage, FileJob, worker_name
from sheaf_dagster.batch.ray.control import Check
from sheaf_dagster.batch.rows.requests import Row
from sheaf_dagster.batch.worker.hanging import TimeLimit, WorkerLimit, took_too_long
from sheaf_dagster.batch.worker.loading import (
    LoadedBackend,
    ModelContext,
    cached_backend,
    load_backend,
)
from sheaf_dagster.batch.worker.pipeline import run_chunks
from sheaf_dagster.storage import Chunk

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["IDX_FIELD", "_BackendActor", "run_ticket", "run_worker_task", "tickets"]

IDX_FIELD = "_sheaf_row_idx"
"""Column that carries the position of a finished chunk's first row through Ray Data."""

_LEAVE_SECONDS = 5.0
"""A worker of a job that was called off ends itself where its batch takes longer than this."""

_TELL_SECONDS = 2.5
"""A worker that is about to end itself waits this long for the coordinator to hear why."""

_AGAIN_SECONDS = 1.0
"""Until a coordinator whose connection broke is called again; Ray itself says when it is dead."""

_TASK_SECONDS = 30.0
_GENERATIONS = 6


def tickets(slots: int, *, actors: bool) -> list[dict[str, float]]:
    """What is scheduled: leave to work for the job, with how long it holds.

    An actor has one ticket and holds it to the end of the job. A task gives its place back
    after a while, so that a cluster shared with others stays elastic: half a minute at first,
    then ever longer, the last ones without end.
    """
    generations = 1 if actors else _GENERATIONS
    last = generations - 1
    return [
        {
            "ticket": generation * slots + i,
            "seconds": -1.0 if generation == last else _TASK_SECONDS * 2.0**generation,
        }
        for generation in range(generations)
        for i in range(slots)
    ]


def run_ticket(ticket: dict[str, Any], context: ModelContext, control: Any) -> None:
    """A stateless task, with the model that this process has loaded or now loads.

    It returns nothing: the coordinator has heard what came of each chunk.
    """
    _run_ticket(ticket, context, control)


def run_worker_task(table: pa.Table, context: ModelContext, control: Any) -> Iterator[pa.Table]:
    """``run_ticket`` as Ray Data calls it."""
    for ticket in table.to_pylist():
        yield _descriptors(_run_ticket(ticket, context, control))


def _run_ticket(ticket: dict[str, Any], context: ModelContext, control: Any) -> list[ChunkReport]:
    _say_ready(control)
    return _work(ticket, context, control, lambda: cached_backend(context))


class _BackendActor:
    """One warm worker of a fixed pool; loads its model once, when the first file is valid."""

    def __init__(self, context: ModelContext, control: Any) -> None:
        self._context = context
        self._control = control
        self._loaded: LoadedBackend | None = None
        self._error: Exception | None = None
        # Whatever is raised here, Ray starts the actor again and again, for ever.
        try:
            node = _say_ready(control)
            if _pass_gate(control):
                ray.get(control.begin_load.remote(node))
                self._load()
                control.end_load.remote(node)
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

    def run(self, ticket: dict[str, Any]) -> None:
        """As ``run_ticket``, with the actor's own model."""
        self._run(ticket)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """``run`` as Ray Data calls it."""
        for ticket in table.to_pylist():
            yield _descriptors(self._run(ticket))

    def _run(self, ticket: dict[str, Any]) -> list[ChunkReport]:
        return _work(ticket, self._context, self._control, self._backend)


def _say_ready(control: Any) -> str:
    """Says that this worker is up; returns the id of its node."""
    here = ray.get_runtime_context()
    worker, node = here.get_actor_id() or here.get_worker_id(), here.get_node_id()
    ray.get(control.ready.remote(worker, node))
    return str(node)


def _pass_gate(control: Any) -> bool:
    """Waits for the first valid file, and helps to validate it; False where none will come."""
    while isinstance(word := ray.get(control.gate.remote()), Check):
        control.checked.remote(word.number, check_group(word.group))
    return bool(word)


class _Pulled:
    """The chunks of a ticket, asked for as they are needed."""

    def __init__(self, control: Any, ticket: dict[str, Any], turn: int) -> None:
        self._control = control
        self._ticket = ticket["ticket"]
        self._turn = turn
        self._seconds = ticket["seconds"]
        self._jobs: dict[int, FileJob] = {}
        self.aborted = threading.Event()
        self.done = threading.Event()

    def watch(self, aborted: Any) -> None:
        """Learns, from a thread, that the driver gives up; ends the process if that has to be.

        Args:
            aborted: Reference to a call of the coordinator's that says so.
        """

        def wait() -> None:
            with suppress(Exception):
                _heard(self._control.aborted.remote, aborted)
            self.aborted.set()
            if not self.done.wait(_LEAVE_SECONDS):
                os._exit(1)

        threading.Thread(target=wait, daemon=True, name="sheaf-abort").start()

    def limit_for(self, loaded: LoadedBackend, job: FileJob, chunk: Chunk) -> TimeLimit:
        """Bounds the calls for a chunk by the life of this process."""
        seconds = job.batch_timeout
        if seconds is None:
            return lambda rows, call: call()
        backend = type(loaded.backend).__name__

        def report(rows: Sequence[Row]) -> None:
            message = took_too_long(job.names[chunk.file], rows, backend, seconds)
            positions = frozenset(row.position for row in rows)
            said = self._control.hung.remote(
                self._ticket, self._turn, job.id, chunk.index, positions, message
            )
            ray.get(said, timeout=_TELL_SECONDS)

        return WorkerLimit(seconds, report)

    def __iter__(self) -> Iterator[list[tuple[FileJob, Chunk]]]:
        started = time.monotonic()
        while (grab := ray.get(self._control.next.remote(self._ticket, self._turn))) is not None:
            if isinstance(grab, Check):
                self._control.checked.remote(grab.number, check_group(grab.group))
                continue
            chunks, jobs = grab
            self._jobs.update(jobs)
            yield [(self._jobs[job], chunk) for job, chunk in chunks]
            if 0 <= self._seconds < time.monotonic() - started:
                return


def _work(
    ticket: dict[str, Any],
    context: ModelContext,
    control: Any,
    backend: Callable[[], LoadedBackend],
) -> list[ChunkReport]:
    """Runs chunks until there are no more; returns what became of them."""
    node = ray.get_runtime_context().get_node_id()
    aborted = control.aborted.remote()
    turn = ray.get(control.enter.remote(ticket["ticket"], node, [aborted]))
    done: list[ChunkReport] = []
    if _pass_gate(control):
        work = _Pulled(control, ticket, turn)
        work.watch(aborted)
        try:
            # Whether they were heard is looked after beside the work, which it would hold up.
            with ThreadPoolExecutor(1, thread_name_prefix="sheaf-report") as heard:
                for report in _reports(work, context, backend):
                    tell = partial(control.report.remote, ticket["ticket"], report.to_dict())
                    heard.submit(_heard, tell, tell())
                    done.append(report)
        finally:
            work.done.set()
    with suppress(ray.exceptions.RayError):  # the job is over
        _heard(partial(control.leave.remote, ticket["ticket"], turn))
    return done


def _heard(call: Callable[[], Any], under_way: Any = None) -> None:
    """Waits for a call that may be made twice, and makes it again where it got lost.

    A broken connection takes calls with it. A report that was lost would leave its chunk open,
    and all others waiting for it, for ever.

    Args:
        call: Makes the call; gives its reference.
        under_way: The reference, where it has been made already.
    """
    while True:
        try:
            ray.get(call() if under_way is None else under_way)
            return
        except ray.exceptions.ActorUnavailableError:
            under_way = None
            time.sleep(_AGAIN_SECONDS)


def _reports(
    work: _Pulled, context: ModelContext, backend: Callable[[], LoadedBackend]
) -> Iterator[ChunkReport]:
    pulled = iter(work)
    first = next(pulled, None)
    if first is None:
        return
    grabs = chain([first], pulled)
    try:
        loaded = backend()
    except Exception as e:
        # Every file learns why, and the next one gets the next try.
        for job, chunk in chain.from_iterable(grabs):
            yield ChunkReport(
                job.id,
                chunk.index,
                chunk.first_row,
                worker_name(),
                failure=ErrorMessage.of(e, job.names[chunk.file]),
            )
    else:
        yield from run_chunks(context, loaded, grabs, work.aborted.is_set, work.limit_for)


def _descriptors(reports: list[ChunkReport]) -> pa.Table:
    """The chunks in order of their rows, as a table."""
    import pyarrow as pa

    reports = sorted(reports, key=lambda r: (r.job, r.first_row))
    return pa.table(
        {
            IDX_FIELD: pa.array([r.first_row for r in reports], pa.int64()),
            "file": pa.array([r.job for r in reports], pa.int64()),
            "chunk": pa.array([r.chunk for r in reports], pa.int64()),
            "rows": pa.array([r.part.rows if r.part else 0 for r in reports], pa.int64()),
        }
    )
