"""The chunks of a run, which several threads take, and may give back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

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
        self._error: BaseException | None = None
        """What the source raised."""
        self._lent = 0
        """How often some are with a thread that may yet put them back."""

    @property
    def is_done(self) -> bool:
        """Whether none are left."""
        with self._changed:
            return self._ended and not (self._front or self._lent or self._error)

    def take(self, most: int = _AT_ONCE) -> Sequence[Work] | None:
        """The next, so many at most; None if there are no more.

        Raises:
            BaseException: What the source raised, to whichever thread had asked it.
        """
        with self._changed:
            return self._take(most)

    @contextmanager
    def lent(self, most: int) -> Iterator[Sequence[Work] | None]:
        """The same, to a thread that may put them back before the block ends."""
        with self._changed:
            few = self._take(most)
            self._lent += 1
        try:
            yield few
        finally:
            with self._changed:
                self._lent -= 1
                self._changed.notify_all()

    def _take(self, most: int) -> Sequence[Work] | None:
        while True:
            self._changed.wait_for(self._is_known)
            if self._front:
                return self._cut(self._front.popleft(), most)
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._ask()

    def _is_known(self) -> bool:
        """Whether something can be said, or done, about the next."""
        return bool(self._front or self._error) or not (self._lent if self._ended else self._asks)

    def _ask(self) -> None:
        """Asks the source; others may take and put back meanwhile."""
        self._asks = True
        given, error = None, None
        self._changed.release()
        try:
            given = next(self._source, None)
        except BaseException as e:
            error = e
        finally:
            self._changed.acquire()
        self._asks, self._ended, self._error = False, given is None, error
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
