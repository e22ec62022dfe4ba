"""How many threads may do something at once."""

from __future__ import annotations

import threading
from types import TracebackType

from sheaf_dagster.backends.common.libraries import own_cpus

__all__ = ["Gate"]


class Gate:
    """A context that so many threads may be in at once. A copy in another process has its own.

    Args:
        most: How many; None: as many as the process has CPUs.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._free = threading.BoundedSemaphore(most or own_cpus())

    def __reduce__(self) -> tuple[type[Gate], tuple[int | None]]:
        return Gate, (self._most,)

    def __enter__(self) -> None:
        self._free.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._free.release()
