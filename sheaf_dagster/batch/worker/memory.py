"""Memory: whether there is none left, what rows take, and when it is looked through or given back."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import FrameType
from typing import Any

__all__ = [
    "bytes_of",
    "free_what_it_holds",
    "is_out_of_memory",
    "keep_freed_memory",
    "rare_collections",
    "return_cached_memory",
]

_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, JAX
    "can't allocate memory",  # torch on the CPU
    "failed to allocate memory",  # ONNX Runtime
    "cublas_status_alloc_failed",
)
_LOOKED_AT = 64

_GOES_ON = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR

_OBJECTS_BETWEEN_COLLECTIONS = 10_000

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``, as its ``malloc.h`` numbers them."""

_FREED_BYTES = 256 * 2**20
_MOST_BYTES_FROM_HEAP = 32 * 2**20
"""glibc takes no more than this."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of a device, was too small."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(error, RuntimeError) and type(error).__name__ != "RuntimeException":
        return False  # the second is ONNX Runtime's
    text = str(error)[:2000].lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def free_what_it_holds(error: BaseException) -> None:
    """Empties the frames that an error, and those behind it, came through.

    They hold what a model had made until then. While the error is handled, none of that memory
    would be free: a batch that has run out of memory would leave none for its halves.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            for frame, _ in traceback.walk_tb(one.__traceback__):
                if _has_ended(frame):
                    with suppress(RuntimeError):  # it runs
                        frame.clear()
            waiting += [one.__cause__, one.__context__]


def _has_ended(frame: FrameType) -> bool:
    """Whether no coroutine or generator stands there: before Python 3.13 clearing would end it.

    It may have caught an error that it shares with others. Its frame refers to its code, as far as
    Python's collector can see, only once it has ended.
    """
    code = frame.f_code
    return not code.co_flags & _GOES_ON or any(one is code for one in gc.get_referents(frame))


def return_cached_memory() -> None:
    """Has torch give the memory of a GPU back that it holds and doesn't use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def bytes_of(value: Any, depth: int = 4) -> int:
    """About what a value takes in memory; of a long list the first elements are looked at."""
    size = getattr(value, "nbytes", None)  # arrays, tensors
    if isinstance(size, int):
        return size
    if hasattr(value, "tobytes") and hasattr(value, "size"):  # a picture of Pillow's
        width, height = value.size
        return int(width * height * len(value.getbands()))
    own = sys.getsizeof(value, 64)
    if depth and isinstance(value, dict):
        return own + _of_all(list(value.values()), depth)
    if depth and isinstance(value, (list, tuple)):
        return own + _of_all(value, depth)
    if depth and hasattr(value, "__dict__"):
        return own + _of_all(list(vars(value).values()), depth)
    return own


def _of_all(values: Any, depth: int) -> int:
    looked_at = values[:_LOOKED_AT]
    found = sum(bytes_of(v, depth - 1) for v in looked_at)
    return found * len(values) // max(len(looked_at), 1)


class _Collections:
    """Python's threshold, which all jobs of a process share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs = 0
        self._usual = gc.get_threshold()

    def make_rare(self) -> None:
        with self._lock:
            if not self._jobs:
                self._usual = gc.get_threshold()
            self._jobs += 1
            if 0 < self._usual[0] < _OBJECTS_BETWEEN_COLLECTIONS:  # 0: there are none at all
                gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *self._usual[1:])

    def make_usual(self) -> None:
        with self._lock:
            self._jobs -= 1
            if not self._jobs:
                gc.set_threshold(*self._usual)


_collections = _Collections()


@contextmanager
def rare_collections() -> Iterator[None]:
    """Has Python look for cyclic garbage once in 10,000 new objects; before, it was once in 700.

    A batch of 64 rows is about that many: each look would find the whole batch in use.
    """
    _collections.make_rare()
    try:
        yield
    finally:
        _collections.make_usual()


@cache
def keep_freed_memory() -> None:
    """Has glibc keep up to 256 MB of freed memory of each thread; elsewhere does nothing.

    By default it gives a thread's memory back to the system after each batch, and asks for it
    again at the next. That takes 4 % of the time of Chronos-Bolt, and of a worker whose model
    costs nothing; of which threads it does so is chance.
    """
    mallopt = None if sys.platform != "linux" else getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_TRIM_THRESHOLD, _FREED_BYTES)
        mallopt(_MMAP_THRESHOLD, _MOST_BYTES_FROM_HEAP)
