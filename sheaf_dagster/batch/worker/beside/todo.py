"""The chunks of a run, taken by one thread after another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.worker.beside.process import Work
from sheaf_dagster.storage import Chunk, store_at

__all__ = ["Todo"]


_AT_ONCE = 8
"""So many chunks are taken at once, and not all of a file: others may go on with the rest."""


class Todo:
    """Chunks with their files, a few at a time.

    Args:
        todo: Where they come from; the next are asked for when needed.
    """

    def __init__(self, todo: Iterable[Sequence[Work]]) -> None:
        self._source = iter(todo)
        self._front: deque[Sequence[Work]] = deque()
        self._lock = threading.Lock()
        self._ended = False

    @property
    def is_done(self) -> bool:
        """Whether none are left, as far as is known."""
        return self._ended and not self._front

    def take(self, most: int = _AT_ONCE) -> Sequence[Work] | None:
        """The next, so many at most; None if there are no more."""
        with self._lock:
            if self._front:
                few = self._front.popleft()
            elif self._ended or (given := next(self._source, None)) is None:
                self._ended = True
                return None
            else:
                few = given
            if few and not _is_far(*few[0]):
                most = 1  # nothing is gained by reading several at once
            if len(few) > most:
                self._front.appendleft(few[most:])
            return few[:most]

    def peek(self) -> Sequence[Work]:
        """The next, which stay."""
        few = self.take()
        if few is not None:
            self.put_back(few)
        return few or ()

    def put_back(self, few: Sequence[Work]) -> None:
        """Has some come next; in the order of their files and places."""
        if few:
            self._front.appendleft(sorted(few, key=lambda one: (one[0].id, one[1].index)))

    def until(self, enough: Callable[[], bool]) -> Iterator[Sequence[Work]]:
        """The chunks, as long as there are some and it is not enough."""
        while not enough() and (few := self.take()) is not None:
            yield few


def _is_far(work: FileWork, chunk: Chunk) -> bool:
    return store_at(work.texts[chunk.file]).far
