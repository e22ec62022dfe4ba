"""The size of batches, where it is found while the job runs (``"auto"``), in rows or padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Literal

__all__ = ["AUTO_LAYOUT_ROWS", "BatchSizer", "BudgetSizer", "spans"]

AUTO_LAYOUT_ROWS = 512
"""What chunks hold whole multiples of when the batch size is found while the job runs.

Sizes are powers of two, so that below it none leaves a smaller rest in every chunk.
"""

_START_ROWS = 8
_TRIES = 3
_GAIN = 1.05
"""Twice the rows must be this much faster to count as better: less is noise, and costs memory."""

_MISSES = 2
"""Sizes in a row that were no better, after which larger ones aren't tried."""


class BatchSizer:
    """Grows the batch to the best rows per second within memory, then holds it.

    Each size is tried with three batches, of which the middle one counts: the first of a size may
    compile or tune something. One sizer belongs to one loaded model. It only adds up what it is
    told: it measures nothing itself, and reads no clock.
    """

    def __init__(self, start: int = _START_ROWS) -> None:
        self.size = start
        """Rows of the next batch."""
        self.settled = False
        """Whether the size is final (but for batches that run out of memory later)."""
        self._best = (0.0, 1)
        self._seconds: list[float] = []
        self._misses = 0
        self._room = 0

    def make_room(self, rows: int) -> None:
        """Says how many rows there are to be had at once: no batch can be larger."""
        self._room = max(self._room, rows)

    def observe(self, rows: int, seconds: float) -> None:
        """Takes in what one batch took; batches of another size than is being tried don't count."""
        if self.settled or rows != self.size:
            return
        self._seconds.append(seconds)
        if len(self._seconds) < _TRIES:
            return
        rate = rows / max(median(self._seconds), 1e-9)
        self._seconds = []
        if rate > self._best[0] * _GAIN:
            self._best, self._misses = (rate, rows), 0
        else:
            self._misses += 1
        if self._misses >= _MISSES or 2 * rows > self._room:
            self._settle(self._best[1])
        else:
            self.size = 2 * rows

    def out_of_memory(self, rows: int) -> None:
        """A batch of so many rows didn't fit: holds the best size below it."""
        if rows > self.size:
            return  # cut before the size was lowered
        self._settle(min(self._best[1], max(1, rows // 2)) if self._best[0] else max(1, rows // 2))

    def _settle(self, size: int) -> None:
        self.size, self.settled = size, True


class BudgetSizer:
    """The padded size that a batch may have: as asked or as found, but less where that didn't fit."""

    def __init__(self) -> None:
        self.used: int | None = None
        """What the last batch was cut by; None before one was."""
        self._found: BatchSizer | None = None
        self._ceiling: int | None = None

    def make_room(self, largest: int, rows: int) -> None:
        """Says of the next rows how large they are at most, and how many there are at once."""
        if self._found is None:
            self._found = BatchSizer(_START_ROWS * largest)
        self._found.make_room(rows * largest)

    def of(self, asked: int | Literal["auto"]) -> int:
        """The padded size of the next batch."""
        if asked == "auto":
            assert self._found is not None, "make_room comes first"
            asked = self._found.size
        self.used = asked if self._ceiling is None else min(asked, self._ceiling)
        return self.used

    def observe(self, padded: int, seconds: float) -> None:
        """Takes in what one batch took; one that the window's end has cut short doesn't count."""
        if self._found is not None and 4 * padded > 3 * self._found.size:
            self._found.observe(self._found.size, seconds * self._found.size / padded)

    @property
    def ceiling(self) -> int | None:
        """What no batch may be larger than, where one didn't fit."""
        return self._ceiling

    def hold(self, ceiling: int) -> None:
        """Has no batch be larger from now on."""
        self._ceiling = ceiling if self._ceiling is None else min(self._ceiling, ceiling)

    def out_of_memory(self, padded: int) -> None:
        """A batch of that size didn't fit: from now on none is larger than half of it."""
        self.hold(max(1, padded // 2))
        if self._found is not None:
            self._found.out_of_memory(min(padded, self._found.size))


def spans(count: int, size: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """Cuts ``count`` rows into batches; the size of each is asked for as it is cut."""
    start = 0
    while start < count:
        stop = min(count, start + size())
        yield start, stop
        start = stop
