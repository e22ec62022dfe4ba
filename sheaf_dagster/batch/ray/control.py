"""The job's one coordinator on the cluster: what is to do, who does it, what came of it.

It is a Ray actor that uses no CPU. Workers, whoever started them, pull chunks from it and hand
their reports to it, so it knows what a worker held when it died: attempts are counted here (Ray
itself starts whatever died again, for ever), and no report is lost or heard twice because a call
was repeated.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any, NamedTuple

from sheaf_dagster.batch.messages import ChunkReport, ErrorMessage, FileJob, Hangs
from sheaf_dagster.errors import BatchTimeoutError, WorkerCrashError
from sheaf_dagster.storage import Chunk

__all__ = ["MAX_ATTEMPTS", "Check", "Grab", "JobControl", "Muster", "grab_size"]

MAX_ATTEMPTS = 3
"""Times that a chunk may be tried again after its worker died."""

MAX_LOSSES = 20
"""Times that a chunk may be tried again after its worker's node was lost. A machine that fails or
is taken away is none of the chunk's doing; but one that brings machines down must not go on so."""

_GRAB_SECONDS = 0.25
"""About how much work a worker takes at a time: far more than the millisecond that asking
costs, and little enough that all workers end together. Two chunks at least, so that one can
be fetched from a store while the other is used."""

Grab = tuple[list[tuple[int, Chunk]], dict[int, FileJob]]
"""Chunks with the ids of their files, and those of the files that the worker has not seen."""


class Muster(NamedTuple):
    """Who is there, and whether there is anything to do for them."""

    up: int
    """Workers that are up, or have been heard of."""
    at_work: int
    """Tickets that a worker is at: tasks that have a place."""
    has_work: bool


class Check(NamedTuple):
    """A group of chunks to validate; only the driver and the workers look into it."""

    number: int
    group: Any


_Key = tuple[int, int]


def grab_size(pending: int, slots: int, chunk_seconds: float | None) -> int:
    """How many of the pending chunks a worker takes: a share at most, and a short while's work."""
    share = ceil(pending / (2 * slots))
    wanted = max(2, int(_GRAB_SECONDS / chunk_seconds)) if chunk_seconds else 1
    return max(1, min(wanted, share))


class JobControl:
    """State of one job; every method is a remote call.

    Args:
        slots: Workers that the job has at most.
        backend: What it runs, for messages.
        idle_seconds: After so long a worker leaves that waits, when no more files will come, for
            what others hold. Its place may be the one that a worker which died needs to come
            back: Ray gives what the dead one left to whoever has waited for longest. None for a
            pool, where each worker comes back to a place of its own.
    """

    def __init__(self, slots: int, backend: str, idle_seconds: float | None = None) -> None:
        self._idle_seconds = idle_seconds
        self._slots = slots
        self._backend = backend
        self._jobs: dict[int, FileJob] = {}
        self._pending: deque[tuple[int, Chunk]] = deque()
        # Chunks whose worker died. They run one at a time, so that the one to blame is known.
        self._suspects: deque[tuple[int, Chunk]] = deque()
        self._suspected: set[_Key] = set()
        self._open: dict[int, dict[_Key, Chunk]] = defaultdict(dict)
        self._sent: dict[int, set[int]] = defaultdict(set)
        # How often a ticket has been entered: what its earlier, dead workers still ask for or
        # say counts no more.
        self._turns: dict[int, int] = defaultdict(int)
        self._ending: set[int] = set()
        self._at_work: set[int] = set()
        self._watches: set[asyncio.Task[None]] = set()
        # The nodes on which a chunk's workers died; those of a node that was lost count apart.
        self._deaths: dict[_Key, list[str]] = defaultdict(list)
        self._losses: Counter[_Key] = Counter()
        self._reports: list[dict[str, Any]] = []
        self._cancelled: set[int] = set()
        self._workers: dict[str, str] = {}
        self._lost_nodes: set[str] = set()
        self._node_of: dict[int, str] = {}
        self._chunk_seconds: float | None = None
        # Loads that began on a node and have not ended: those under way, and those that a death
        # cut short.
        self._loading: Counter[str] = Counter()
        self._broken: ErrorMessage | None = None
        self._checks: dict[int, asyncio.Future[Any]] = {}
        self._unchecked: deque[Check] = deque()
        self._closed = False
        self._abandoned = False
        self._gate = asyncio.Event()
        self._aborted = asyncio.Event()
        self._changed = asyncio.Condition()
        self._reported = asyncio.Event()

    # -- called by the driver --------------------------------------------------------------

    async def add(self, job: FileJob, chunks: list[Chunk]) -> None:
        """Adds a validated file's work and lets the workers load the model."""
        self._jobs[job.id] = job
        if self._broken is not None:
            self._fail(job.id, self._broken)
            return
        self._pending.extend((job.id, chunk) for chunk in chunks)
        self._gate.set()
        await self._notify()

    async def close(self) -> None:
        """No more work will come."""
        self._closed = True
        self._gate.set()
        await self._notify()

    async def cancel(self, job: int) -> None:
        """Calls off what is left of a file."""
        self._call_off(job)
        await self._notify()

    async def abort(self) -> None:
        """The driver gives up: no more work is handed out, what runs stops after its batch."""
        for job in list(self._jobs):
            self._call_off(job)
        self._jobs.clear()
        self._aborted.set()
        await self.close()

    async def check(self, number: int, group: Any) -> Any:
        """Has a worker that waits for work validate a group of chunks.

        Returns:
            Its findings; None where it could not or was called off.
        """
        self._checks[number] = asyncio.get_running_loop().create_future()
        self._unchecked.append(Check(number, group))
        await self._notify()
        return await self._checks[number]

    async def call_off_checks(self, numbers: list[int]) -> None:
        """Nobody needs these any more."""
        self._unchecked = deque(c for c in self._unchecked if c.number not in numbers)
        for number in numbers:
            await self.checked(number, None)

    async def take(self) -> list[dict[str, Any]]:
        """Reports that have come in since the last call; waits until there is one.

        Empty once there are no workers any more who could report.
        """
        if not self._reports and self._abandoned:
            return []
        await self._reported.wait()
        self._reported.clear()
        reports, self._reports = self._reports, []
        return reports

    async def abandoned(self) -> None:
        """The last worker has left: what is not reported by now never will be."""
        self._abandoned = True
        self._reported.set()

    async def workers(self) -> Muster:
        """Who is there, and whether there is work.

        The driver asks after it has told which nodes are gone, so this is also the moment to see
        whether the model kills its workers.
        """
        if self._loading.total() > self._slots + MAX_ATTEMPTS and self._broken is None:
            await self._break()
        up = sum(node not in self._lost_nodes for node in self._workers.values())
        has_work = bool(self._pending or self._suspects or self._any_open())
        return Muster(up, len(self._at_work), has_work)

    async def lost(self, nodes: set[str]) -> None:
        """Nodes are gone; hands out again what their workers held.

        Ray lets a lost actor or task wait until it has a new place: for ever, where no other
        node has room, because those who have it wait here for what the lost one held.
        """
        self._lost_nodes |= nodes
        for node in nodes:
            del self._loading[node]  # the model is not to blame
        for key, died in self._deaths.items():  # heard of as deaths before the node was missed
            self._deaths[key] = [node for node in died if node not in nodes]
            self._losses[key] += len(died) - len(self._deaths[key])
        for ticket in [t for t, node in self._node_of.items() if node in nodes]:
            self._turns[ticket] += 1
            self._at_work.discard(ticket)
            self._hand_in(ticket)
        await self._notify()

    # -- called by the workers -------------------------------------------------------------

    async def ready(self, worker: str, node: str) -> None:
        """A worker is up, its model not loaded yet."""
        self._workers[worker] = node

    async def gate(self) -> bool | Check:
        """Waits until the first file is valid; False where the job ended before that.

        A ``Check`` is to be done meanwhile, and then asked again.
        """
        async with self._changed:
            while not self._gate.is_set():
                if self._unchecked:
                    return self._unchecked.popleft()
                await self._changed.wait()
        return bool(self._jobs)

    async def checked(self, number: int, findings: Any) -> None:
        """A worker has done a ``Check``."""
        future = self._checks.pop(number, None)
        if future is not None and not future.done():
            future.set_result(findings)

    async def aborted(self) -> None:
        """Waits until the driver gives up."""
        await self._aborted.wait()

    async def begin_load(self, node: str) -> None:
        """An actor begins to load the model.

        Ray starts an actor whose process dies in ``load()`` again and again; counting them is
        what ends it.
        """
        if node not in self._lost_nodes:
            self._loading[node] += 1

    async def end_load(self, node: str) -> None:
        """An actor has loaded the model, or knows why it can't."""
        if self._loading[node] > 0:
            self._loading[node] -= 1

    async def enter(self, ticket: int, node: str, life: Sequence[Any] = ()) -> int:
        """A worker begins a ticket; not the first one to do so if that one died.

        Args:
            ticket: The ticket.
            node: Where the worker is.
            life: A reference to a call of ``aborted`` that the worker has made. It has an answer
                when the job ends, and an error as soon as the worker's process is gone.

        Returns:
            Its turn, by which ``next`` knows it.
        """
        self._turns[ticket] += 1
        self._at_work.add(ticket)
        for reference in life:
            watch = asyncio.create_task(self._outlive(ticket, self._turns[ticket], reference))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)
        self._ending.discard(ticket)
        self._sent.pop(ticket, None)
        self._hand_in(ticket)
        self._node_of[ticket] = node
        await self._notify()  # also what the dead worker waits for in next()
        return self._turns[ticket]

    async def leave(self, ticket: int, turn: int) -> None:
        """A worker gives its place back: its time is over, or nothing is left to do."""
        if turn == self._turns[ticket]:
            self._at_work.discard(ticket)

    async def next(self, ticket: int, turn: int) -> Grab | Check | None:
        """The next chunks for a worker; waits until there are some; None after the last.

        A worker that would have nothing to do gets a ``Check`` of a later file where there is one.

        A worker that has died may have left a call here. What that was given would be lost.
        """
        idle = False
        async with self._changed:
            while True:
                if turn != self._turns[ticket]:
                    return None
                held = self._open[ticket]
                # Whoever holds a suspect holds nothing else.
                if ticket in self._ending or not self._suspected.isdisjoint(held):
                    pass
                elif self._suspects and not held:
                    return self._hand_out(ticket, [self._suspects.popleft()])
                elif self._pending:
                    n = grab_size(len(self._pending), self._slots, self._chunk_seconds)
                    return self._hand_out(ticket, [self._pending.popleft() for _ in range(n)])
                elif self._closed and not self._suspects and not self._any_open():
                    return None  # not before: what another worker holds may come back
                elif self._unchecked and not held:
                    return self._unchecked.popleft()
                elif idle and self._closed and not held:
                    return None
                idle = await self._nothing_changes()

    async def report(self, ticket: int, report: dict[str, Any]) -> None:
        """A worker is done with a chunk, well or not."""
        key = (report["job"], report["chunk"])
        if self._open[ticket].pop(key, None) is None:
            return  # called off meanwhile, or from a worker given up for dead
        failed = report["failure"] is not None
        if failed:
            self._call_off(report["job"])
        seconds = report["ended"] - report["started"]
        old = self._chunk_seconds
        self._chunk_seconds = seconds if old is None else 0.7 * old + 0.3 * seconds
        self._keep(report)
        last = self._closed and not self._any_open()
        if failed or last or self._suspects or key in self._suspected:
            self._suspected.discard(key)
            await self._notify()

    async def hung(
        self, ticket: int, turn: int, job: int, index: int, rows: frozenset[int], message: str
    ) -> None:
        """A batch ran out of time; its worker ends itself as soon as it has said so.

        What else the worker held is not to blame. The chunk fails, or is tried again by another
        worker, which then knows of the rows that hung.
        """
        if turn != self._turns[ticket]:
            return  # heard after its successor began, whose work this must not take away
        held = self._open.pop(ticket, {})
        self._ending.add(ticket)
        self._at_work.discard(ticket)
        chunk = held.pop((job, index), None)
        for (other, i), innocent in held.items():
            queue = self._suspects if (other, i) in self._suspected else self._pending
            queue.appendleft((other, innocent))
        if chunk is not None:
            file = self._jobs[job]
            if file.on_error == "fail":
                self._fail(job, ErrorMessage.of(BatchTimeoutError(message), ""), chunk)
            else:
                hangs = file.hangs.get(index, Hangs()).after(rows)
                self._jobs[job] = replace(file, hangs={**file.hangs, index: hangs})
                for sent in self._sent.values():
                    sent.discard(job)
                self._suspects.append((job, chunk))
                self._suspected.add((job, index))
        await self._notify()

    # -- inside ----------------------------------------------------------------------------

    def _hand_out(self, ticket: int, chunks: list[tuple[int, Chunk]]) -> Grab:
        self._open[ticket].update({(job, c.index): c for job, c in chunks})
        new = {job for job, _ in chunks} - self._sent[ticket]
        self._sent[ticket] |= new
        return chunks, {job: self._jobs[job] for job in new}

    async def _outlive(self, ticket: int, turn: int, life: Any) -> None:
        """Sees a worker die: Ray starts it again when there is a place, which others may take."""
        try:
            await life
        except Exception:
            await self.leave(ticket, turn)

    async def _break(self) -> None:
        """The model kills whoever loads it: every file fails."""
        error = WorkerCrashError(
            f"backend {self._backend!r} killed {MAX_ATTEMPTS + 1} actors while they loaded the "
            "model (segmentation fault, exit, or killed for memory); look at the actors' log, "
            "and give the model more memory_gb or fewer actors"
        )
        self._broken = ErrorMessage.of(error, "")
        for job in self._jobs.keys() - self._cancelled:
            self._fail(job, self._broken)
        await self._notify()

    async def _nothing_changes(self) -> bool:
        """Waits for a change, or as long as a worker may idle; whether that passed without one."""
        try:
            await asyncio.wait_for(self._changed.wait(), self._idle_seconds)
        except asyncio.TimeoutError:
            return True
        return False

    def _any_open(self) -> bool:
        return any(self._open.values())

    def _hand_in(self, ticket: int) -> None:
        """Takes back what a worker held that died."""
        lost = self._open.pop(ticket, {})
        node = self._node_of.get(ticket, "")
        for key, chunk in lost.items():
            if node in self._lost_nodes:
                self._losses[key] += 1
            else:
                self._deaths[key].append(node)
            if len(lost) == 1 and self._is_given_up(key):
                self._fail(key[0], self._crash(key, chunk), chunk)
            else:
                self._suspects.append((key[0], chunk))
                self._suspected.add(key)

    def _is_given_up(self, key: _Key) -> bool:
        return len(self._deaths[key]) > MAX_ATTEMPTS or self._losses[key] > MAX_LOSSES

    def _keep(self, report: dict[str, Any]) -> None:
        self._reports.append(report)
        self._reported.set()

    def _call_off(self, job: int) -> None:
        self._cancelled.add(job)
        self._pending = deque(p for p in self._pending if p[0] != job)
        self._suspects = deque(p for p in self._suspects if p[0] != job)
        # Workers pass over what they hold of a file that failed, without a report.
        for held in self._open.values():
            for key in [k for k in held if k[0] == job]:
                del held[key]

    def _fail(self, job: int, failure: ErrorMessage, chunk: Chunk | None = None) -> None:
        self._call_off(job)
        index, row = (chunk.index, chunk.first_row) if chunk else (0, 0)
        self._keep(ChunkReport(job, index, row, "", failure=failure).to_dict())

    def _crash(self, key: _Key, chunk: Chunk) -> ErrorMessage:
        where = self._jobs[key[0]].names[chunk.file]
        deaths, losses = len(self._deaths[key]), self._losses[key]
        what = f"{where}, the {chunk.rows} rows from line {chunk.first_line}:"
        if deaths > MAX_ATTEMPTS:
            text = (
                f"{what} their worker process died {deaths} times (segmentation fault, exit, or "
                f"killed for memory) in backend {self._backend!r}; look at these rows and at the "
                "worker's log, lower batch_size, or give the model more memory_gb"
            )
        else:
            text = (
                f"{what} the node of their worker was lost {losses} times in backend "
                f"{self._backend!r}; look at why nodes go (preempted, out of memory), give the "
                "model more memory_gb, or lower batch_size so that a chunk takes less time"
            )
        return ErrorMessage.of(WorkerCrashError(text), where)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
