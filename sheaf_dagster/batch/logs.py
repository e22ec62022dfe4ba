"""What is logged while a job runs: ours told to whoever watches the job, Ray Data's kept back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["logger_at", "logs_told_to"]

_LOGGER = "sheaf_dagster"

_lock = threading.Lock()
_held: dict[str, tuple[int, int]] = {}
"""By logger: how many hold its level, and what it was before the first of them."""


@contextmanager
def logger_at(name: str, level: int) -> Iterator[None]:
    """Holds a logger of this process at a level.

    Of several that hold it at the same time, such as jobs in threads, the last one to leave puts
    back what was there before the first, unless somebody else has changed it meanwhile.
    """
    logger = logging.getLogger(name)
    with _lock:
        holders, before = _held.get(name, (0, logger.level))
        _held[name] = holders + 1, before
        logger.setLevel(level)
    try:
        yield
    finally:
        with _lock:
            holders, before = _held.pop(name)
            if holders > 1:
                _held[name] = holders - 1, before
            elif logger.level == level:
                logger.setLevel(before)


@contextmanager
def logs_told_to(say: Callable[[int, str], None]) -> Iterator[None]:
    """Has ``say`` told each message of this library from INFO on, with its level.

    Waiting for capacity, halved batches and lost nodes are said through Python's logging, which
    few set up to show INFO.
    """
    logger = logging.getLogger(_LOGGER)
    handler = _Teller(say)
    with logger_at(_LOGGER, min(logging.INFO, logger.getEffectiveLevel())):
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class _Teller(logging.Handler):
    def __init__(self, say: Callable[[int, str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._say(record.levelno, record.getMessage())
        except Exception:
            self.handleError(record)
