"""Validating a large source on all cores: the driver from the front, Ray tasks from the back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sheaf_dagster.batch.file_task import check_chunks
from sheaf_dagster.batch.rows import ChunkCheck, RowContract
from sheaf_dagster.errors import ClusterError
from sheaf_dagster.storage import Chunk, Location

__all__ = ["check_in_parallel"]

_DRIVER_SECONDS = 6.0
"""Validation that would take the driver alone longer than this is spread over the cluster:
a Ray task that validates costs one to three seconds to start (benchmarks/throughput.py)."""

_MEASURE_SECONDS = 0.3

_GROUP_BYTES = 64 * 2**20
"""About what one Ray task checks: half a second's work."""


def check_in_parallel(
    contract: RowContract,
    texts: Sequence[Location],
    chunks: Sequence[Chunk],
    ray_is_up: threading.Event,
    stop: threading.Event,
) -> Iterator[ChunkCheck]:
    """Checks all chunks; yields the findings in order.

    The tasks reserve nothing, so that no pool of actors can starve them.

    Raises:
        ClusterError: Ray failed while it validated.
        InterruptedError: ``stop`` was set.
    """
    sizes = [c.end - c.start for c in chunks]
    found: dict[int, ChunkCheck] = {}
    front, back = 0, len(chunks)
    left, done, started = sum(sizes), 0, time.perf_counter()
    remote: _RemoteChecks | None = None
    try:
        while front < back:
            if stop.is_set():
                raise InterruptedError("the job was stopped")
            spent = time.perf_counter() - started
            measured = remote is None and ray_is_up.is_set() and spent > _MEASURE_SECONDS
            if measured and spent / done * left > _DRIVER_SECONDS:
                remote = _RemoteChecks(contract, texts)
            while remote is not None and remote.has_room and front < back:
                group = _group_from_back(sizes, front, back)
                remote.submit(group, [chunks[i] for i in group])
                back = group[0]
            if front < back:
                (found[front],) = check_chunks(contract, texts, [chunks[front]])
                done += sizes[front]
                left -= sizes[front]
                front += 1
            if remote is not None:
                found.update(remote.finished(wait=False))
        if remote is not None:
            while remote.busy:
                if stop.is_set():
                    raise InterruptedError("the job was stopped")
                found.update(remote.finished(wait=True))
    finally:
        if remote is not None:
            remote.cancel()
    for i in range(len(chunks)):
        yield found[i]


def _group_from_back(sizes: Sequence[int], front: int, back: int) -> range:
    """The last chunks that are still open: about ``_GROUP_BYTES`` and no more than a share."""
    start, total = back - 1, sizes[back - 1]
    share = max(1, (back - front) // 4)
    while start > front and total + sizes[start - 1] <= _GROUP_BYTES and back - start < share:
        start -= 1
        total += sizes[start]
    return range(start, back)


class _RemoteChecks:
    """Groups of chunks that Ray tasks are checking."""

    def __init__(self, contract: RowContract, texts: Sequence[Location]) -> None:
        import ray

        self._ray = ray
        self._slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._task = ray.remote(_check_group).options(num_cpus=0, scheduling_strategy="SPREAD")
        self._shared = ray.put((contract, list(texts)))
        self._running: dict[Any, range] = {}

    @property
    def has_room(self) -> bool:
        return len(self._running) < self._slots

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def submit(self, group: range, chunks: list[Chunk]) -> None:
        self._running[self._task.remote(self._shared, chunks)] = group

    def finished(self, *, wait: bool) -> dict[int, ChunkCheck]:
        ray = self._ray
        refs = list(self._running)
        ready, _ = ray.wait(refs, num_returns=1, timeout=1.0 if wait else 0) if refs else ([], [])
        found: dict[int, ChunkCheck] = {}
        for ref in ready:
            group = self._running.pop(ref)
            try:
                found.update(zip(group, ray.get(ref), strict=True))
            except ray.exceptions.RayTaskError as e:
                raise e.cause if isinstance(e.cause, Exception) else ClusterError(str(e)) from e
            except ray.exceptions.RayError as e:
                raise ClusterError(f"validation on the cluster failed: {e}; run again") from e
        return found

    def cancel(self) -> None:
        for ref in self._running:
            self._ray.cancel(ref, force=True)


def _check_group(
    shared: tuple[RowContract, list[Location]], group: list[Chunk]
) -> list[ChunkCheck]:
    contract, texts = shared
    return list(check_chunks(contract, texts, group))
