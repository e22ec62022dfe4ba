"""Ranges of several files, the next ones asked for before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from sheaf_dagster.storage.location import Location
from sheaf_dagster.storage.stores import Store, store_at

__all__ = ["read_ranges"]

_RANGES_AHEAD = 3
_AHEAD_BYTES = 32 * 2**20
"""Bytes that ranges under way may have beside the one that is used."""


def read_ranges(
    wanted: Sequence[tuple[Location, int, int]],
) -> Iterator[Callable[[], bytes]]:
    """For each range, in order, a call that gives its bytes or raises why they can't be read.

    Ranges of remote files are asked for a few ahead of the one that is used.

    Args:
        wanted: Location, start and end (exclusive).
    """
    stores = [(store_at(location), start, end) for location, start, end in wanted]
    if len(stores) < 2 or not any(store.far for store, _, _ in stores):
        for store, start, end in stores:
            yield partial(store.read_range, start, end)
        return
    pool = ThreadPoolExecutor(_RANGES_AHEAD, thread_name_prefix="sheaf-ahead")
    under_way: deque[tuple[Future[bytes], int]] = deque()
    asked = 0
    try:
        for _ in stores:
            while asked < len(stores) and _room(under_way, stores[asked]):
                store, start, end = stores[asked]
                under_way.append((pool.submit(store.read_range, start, end), end - start))
                asked += 1
            future, _ = under_way.popleft()
            yield future.result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _room(under_way: deque[tuple[Future[bytes], int]], range: tuple[Store, int, int]) -> bool:
    held = sum(size for _, size in under_way)
    few = len(under_way) <= _RANGES_AHEAD
    return not under_way or (few and held + range[2] - range[1] <= _AHEAD_BYTES)
