"""The chunks of a run, which several threads take, and may give back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.storage import Chunk, store_at

__all__ = ["Todo", "Work"]

Work = tuple[FileWork, Chunk]

_AT_ONCE = 8
"""So many chunks are taken at once, and not all of a file: others may go on with the rest."""


class Todo:
    """Chunks with their files, a few at a time.

    The source may keep a thread waiting until chunks that others hold are done. Meanwhile what was
    given back can be taken.

    Args:
        source: Where they come from; the next are asked for when needed, by one thread at a time.
    """

    def __init__(self, source: Iterable[Sequence[Work]]) -> None:
        self._source = iter(source)
        self._front: deque[Sequence[Work]] = deque()
        self._changed = threading.Condition()
        self._asks = False
        """Whether a thread is with the source."""
        self._ended = False

    @property
    def is_done(self) -> bool:
        """Whether none are left."""
        with self._changed:
            return self._ended and not self._front

    def take(self, most: int = _AT_ONCE) -> Sequence[Work] | None:
        """The next, so many at most; None if there are no more.

        Raises:
            Exception: The source did.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._front or self._ended or not self._asks)
                if self._front:
                    return self._cut(self._front.popleft(), most)
                if self._ended:
                    return None
                self._asks = True
            given: Sequence[Work] | None = None
            try:
                given = next(self._source, None)
            finally:
                with self._changed:
                    self._asks = False
                    self._ended = given is None
                    if given:
                        self._front.append(given)
                    self._changed.notify_all()

    def _cut(self, few: Sequence[Work], most: int) -> Sequence[Work]:
        if not _is_far(*few[0]):
            most = 1  # nothing is gained by reading several at once
        if len(few) > most:
            self._front.appendleft(few[most:])
        return few[:most]

    def peek(self) -> Sequence[Work]:
        """The next, which stay."""
        few = self.take() or ()
        self.put_back(few)
        return few

    def put_back(self, few: Sequence[Work]) -> None:
        """Has some come next, in the order of their files and places."""
        if few:
            with self._changed:
                self._front.appendleft(sorted(few, key=lambda one: (one[0].id, one[1].index)))
                self._changed.notify_all()

    def until(self, enough: Callable[[], bool]) -> Iterator[Sequence[Work]]:
        """The chunks, as long as there are some and it is not enough."""
        while not enough() and (few := self.take()) is not None:
            yield few


def _is_far(work: FileWork, chunk: Chunk) -> bool:
    return store_at(work.texts[chunk.file]).far
