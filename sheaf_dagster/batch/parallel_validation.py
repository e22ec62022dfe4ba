"""Validating a source: the driver from the front, workers that have no work yet from the back."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING

from sheaf_dagster.batch.ray.records import ValidationWork
from sheaf_dagster.batch.rows.chunk_validation import validate_chunks
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.violation import MAX_VIOLATIONS_SHOWN
from sheaf_dagster.storage import Chunk, Location

if TYPE_CHECKING:
    from sheaf_dagster.batch.ray.client import DriverClient, PendingFindings

__all__ = ["validate_in_parallel"]

_WORTH_SECONDS = 0.5
"""Validation that the driver will have done alone in less than this is not offered."""

_MEASURE_SECONDS = 0.1

_GROUP_BYTES = 16 * 2**20
"""About what one worker validates at a time: an eighth of a second's work."""

_IN_MEMORY = 2**20
_OF_EACH_ROW = ("keys", "digests", "hashes")


def validate_in_parallel(
    contract: RowContract,
    texts: Sequence[Location],
    chunks: Sequence[Chunk],
    helpers: Callable[[], tuple[DriverClient, int] | None],
    stop: threading.Event,
) -> Iterator[ChunkFindings]:
    """Validates all chunks; yields the findings in order.

    Chunks are offered to workers that wait for their first file. What they have not brought back
    when the driver is through with the others, it validates itself: nothing depends on a worker
    that is slow, dies, or doesn't come up.

    Args:
        contract: What rows must match.
        texts: Where the source's files can be read.
        chunks: All chunks.
        helpers: The job's coordinator and the number of its workers, once it is there.
        stop: Ends it early.

    Raises:
        ClusterError: Ray failed while it validated.
        InterruptedError: ``stop`` was set.
    """
    sizes = [c.end - c.start for c in chunks]
    found = _Findings()
    front, back = 0, len(chunks)
    left, done, started = sum(sizes), 0, time.perf_counter()
    offered: _Offers | None = None
    try:
        while len(found.by_chunk) < len(chunks):
            if stop.is_set():
                raise InterruptedError("the job was stopped")
            spent = time.perf_counter() - started
            measured = done > 0 and spent > _MEASURE_SECONDS
            worth = measured and spent / done * left > _WORTH_SECONDS
            if worth and offered is None and (helper := helpers()) is not None:
                offered = _Offers(*helper, contract, texts)
            while worth and offered is not None and offered.has_room and front < back:
                group = _group_from_back(sizes, front, back)
                offered.add(group, [chunks[i] for i in group])
                back = group[0]
            if offered is not None:
                found.add(offered.taken())
            if front < back:
                mine, front = front, front + 1
            else:
                mine = next((i for i in range(back, len(chunks)) if i not in found.by_chunk), -1)
            if mine >= 0:
                (mine_found,) = validate_chunks(contract, texts, [chunks[mine]])
                found.add({mine: mine_found})
                done += sizes[mine]
                left -= sizes[mine]
    finally:
        if offered is not None:
            offered.call_off()
    yield from found.in_order()


class _Findings:
    """Findings by chunk, in any order; of their violations those that can still be shown.

    What they have of each row is on the disk.
    """

    def __init__(self) -> None:
        self.by_chunk: dict[int, ChunkFindings] = {}
        self._listing: dict[int, ChunkFindings] = {}
        self._file = SpooledTemporaryFile[bytes](_IN_MEMORY)
        self._places: dict[int, int] = {}
        self._sizes: dict[int, list[int]] = {}

    def add(self, findings: Mapping[int, ChunkFindings]) -> None:
        """Takes in findings; lets go of violations that have enough others before them.

        A file that is wrong from beginning to end has a hundred in each chunk.
        """
        self.by_chunk.update(findings)
        for i, found in findings.items():
            self._places[i] = self._file.tell()
            self._sizes[i] = [self._file.write(getattr(found, name)) for name in _OF_EACH_ROW]
            found.keys = found.digests = found.hashes = b""
        self._listing.update({i: c for i, c in findings.items() if c.violations})
        if sum(len(c.violations) for c in self._listing.values()) <= 2 * MAX_VIOLATIONS_SHOWN:
            return
        left = MAX_VIOLATIONS_SHOWN
        for i, one in sorted(self._listing.items()):
            del one.violations[left:]
            left -= len(one.violations)
            if not one.violations:
                del self._listing[i]

    def in_order(self) -> Iterator[ChunkFindings]:
        """All of them."""
        with self._file:
            for i, found in sorted(self.by_chunk.items()):
                self._file.seek(self._places[i])
                for name, size in zip(_OF_EACH_ROW, self._sizes[i], strict=True):
                    setattr(found, name, self._file.read(size))
                yield found


def _group_from_back(sizes: Sequence[int], front: int, back: int) -> range:
    """The last chunks that are still open: about ``_GROUP_BYTES`` and no more than a share."""
    start, total = back - 1, sizes[back - 1]
    share = max(1, (back - front) // 4)
    while start > front and total + sizes[start - 1] <= _GROUP_BYTES and back - start < share:
        start -= 1
        total += sizes[start]
    return range(start, back)


class _Offers:
    """Groups of chunks that lie with the coordinator or with a worker."""

    _ids = itertools.count()

    def __init__(
        self,
        coordinator: DriverClient,
        workers: int,
        contract: RowContract,
        texts: Sequence[Location],
    ) -> None:
        import ray

        self._coordinator = coordinator
        self._most = 2 * workers
        self._shared = ray.put((contract, list(texts)))
        self._running: dict[int, tuple[PendingFindings, range]] = {}

    @property
    def has_room(self) -> bool:
        return len(self._running) < self._most

    def add(self, group: range, chunks: list[Chunk]) -> None:
        number = next(self._ids)
        # The reference is inside a list, so that the coordinator need not know the contract.
        work = ValidationWork(number, [self._shared, chunks])
        self._running[number] = self._coordinator.validate(work), group

    def taken(self) -> dict[int, ChunkFindings]:
        """What has come back since the last look."""
        found: dict[int, ChunkFindings] = {}
        for number in [n for n, (answer, _) in self._running.items() if answer.is_there]:
            answer, group = self._running.pop(number)
            findings = answer.get()
            if findings is not None:  # None: the worker could not, the driver will see why
                found.update(zip(group, findings, strict=True))
        return found

    def call_off(self) -> None:
        self._coordinator.withdraw(list(self._running))
