"""Memory: whether an error says that there is none left, and what prepared rows take."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["bytes_of", "is_out_of_memory"]

_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, JAX
    "can't allocate memory",  # torch on the CPU
    "failed to allocate memory",  # ONNX Runtime
    "cublas_status_alloc_failed",
)
_LOOKED_AT = 64


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of a device, was too small."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(error, RuntimeError) and type(error).__name__ != "RuntimeException":
        return False  # the second is ONNX Runtime's
    text = str(error)[:2000].lower()
    return any(words in text for words in _OUT_OF_MEMORY)


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
