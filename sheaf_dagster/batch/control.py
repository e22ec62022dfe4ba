"""The job's one coordinator on the cluster: what is to do, who tried it, what was called off.

It is a Ray actor that uses no CPU. Workers ask it before they start, which is how attempts are
counted (Ray Data itself retries a chunk that kills its worker for ever), and the feed reads
from it what to send through Ray Data.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass
from math import ceil

from sheaf_dagster.batch.worker import FileJob
from sheaf_dagster.storage import Chunk

__all__ = ["Bundle", "JobControl", "bundle_size"]

MAX_ATTEMPTS = 3
"""Times that a chunk may kill its worker before the job gives up on it."""


@dataclass(frozen=True)
class Bundle:
    """Chunks that go through Ray Data as one task."""

    id: int
    chunks: tuple[tuple[int, Chunk], ...]
    """(job id, chunk) pairs."""


def bundle_size(pending: int, slots: int, chunk_seconds: float | None, min_seconds: float) -> int:
    """How many of the pending chunks go into the next task (guided self-scheduling).

    Large bundles first, since a task has a fixed cost (0.1 s between two tasks of Ray Data),
    small ones last, so that all workers finish together; but none shorter than
    ``min_seconds``, as far as each worker still gets its share.
    """
    guided = ceil(pending / (3 * slots))
    share = ceil(pending / slots)
    least = ceil(min_seconds / chunk_seconds) if chunk_seconds else 1
    return max(1, min(max(guided, least), share))


class JobControl:
    """State of one job; every method is a remote call."""

    def __init__(self, slots: int, min_bundle_seconds: float, unbounded: bool) -> None:
        self._slots = slots
        self._min_seconds = min_bundle_seconds
        self._unbounded = unbounded
        self._jobs: dict[int, FileJob] = {}
        self._pending: deque[tuple[int, Chunk]] = deque()
        self._bundles: list[Bundle] = []
        self._left: set[int] = set()
        self._entered: dict[int, int] = defaultdict(int)
        self._attempts: dict[tuple[int, int], int] = defaultdict(int)
        self._cancelled: set[int] = set()
        self._closed = False
        self._changed = asyncio.Condition()
        self._gate = asyncio.Event()
        self._chunk_seconds: float | None = None
        self._workers: set[str] = set()

    async def add(self, job: FileJob, chunks: list[Chunk]) -> None:
        """Adds a validated file's work and lets the workers load the model."""
        self._jobs[job.id] = job
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
        self._cancelled.add(job)
        self._pending = deque(p for p in self._pending if p[0] != job)
        await self._notify()

    async def next_bundle(self, index: int) -> Bundle | None:
        """The ``index``-th bundle, None after the last; waits until there is one.

        Asked twice for the same index (a restarted feed), it answers the same.
        """
        async with self._changed:
            while index >= len(self._bundles):
                busy = len(self._bundles) - len(self._left)
                if self._pending and (self._unbounded or busy < 2 * self._slots):
                    n = bundle_size(
                        len(self._pending), self._slots, self._chunk_seconds, self._min_seconds
                    )
                    chunks = tuple(self._pending.popleft() for _ in range(n))
                    self._bundles.append(Bundle(len(self._bundles), chunks))
                elif self._closed and not self._pending:
                    return None
                else:
                    await self._changed.wait()
            return self._bundles[index]

    async def enter(self, bundle: int) -> tuple[int, dict[int, FileJob], set[int]]:
        """A worker starts a bundle: which attempt this is, its files, and those called off."""
        self._entered[bundle] += 1
        ids = {job for job, _ in self._bundles[bundle].chunks}
        return (
            self._entered[bundle],
            {i: self._jobs[i] for i in ids},
            self._cancelled & ids,
        )

    async def begin(self, job: int, chunk: int) -> int:
        """A worker starts a chunk of a bundle that was tried before: which attempt this is."""
        self._attempts[job, chunk] += 1
        return self._attempts[job, chunk]

    async def leave(self, bundle: int, seconds: float) -> None:
        """A worker finished a bundle."""
        self._left.add(bundle)
        each = seconds / max(len(self._bundles[bundle].chunks), 1)
        old = self._chunk_seconds
        self._chunk_seconds = each if old is None else 0.5 * old + 0.5 * each
        await self._notify()

    async def ready(self, worker: str) -> None:
        """An actor is up, its model not loaded yet."""
        self._workers.add(worker)

    async def workers(self) -> int:
        """How many actors have come up so far."""
        return len(self._workers)

    async def gate(self) -> bool:
        """Waits until the first file is valid; False where the job ended before that."""
        await self._gate.wait()
        return bool(self._jobs)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
