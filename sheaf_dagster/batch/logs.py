"""What the library logs while a job runs, told to whoever watches the job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["logs_told_to"]

_LOGGER = "sheaf_dagster"


@contextmanager
def logs_told_to(say: Callable[[int, str], None]) -> Iterator[None]:
    """Has ``say`` told each message of this library from INFO on, with its level.

    Waiting for capacity, halved batches and lost nodes are said through Python's logging, which
    few set up to show INFO.
    """
    logger = logging.getLogger(_LOGGER)
    handler = _Teller(say)
    before = logger.level
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Teller(logging.Handler):
    def __init__(self, say: Callable[[int, str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._say(record.levelno, record.getMessage())
        except Exception:
            self.handleError(record)
