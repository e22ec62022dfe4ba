"""Optional libraries: found at load, or named by the extra that brings them."""

from __future__ import annotations

import importlib
import os
from typing import Any

from sheaf_dagster.errors import MissingDependencyError, SpecError

__all__ = ["DTYPES", "check_dtype", "own_cpus", "pick_device", "require", "use_own_threads"]

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Precisions that backends over torch can be asked for; ``auto`` is that of the saved weights."""


def require(backend: str, extra: str, *modules: str) -> list[Any]:
    """Imports what a backend needs.

    Args:
        backend: The backend's name, for the message.
        extra: Extra of sheaf_dagster that installs the modules.
        modules: Names of the modules.

    Raises:
        MissingDependencyError: One can't be imported.
    """
    found = []
    for name in modules:
        try:
            found.append(importlib.import_module(name))
        except ImportError as e:
            raise MissingDependencyError(
                f"backend {backend!r} needs a package: pip install 'sheaf_dagster[{extra}]' ({e})"
            ) from e
    return found


def check_dtype(dtype: str) -> str:
    """The precision, if it is a known one.

    Raises:
        SpecError: It isn't.
    """
    if dtype not in DTYPES:
        raise SpecError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype


def pick_device(torch: Any, device: str) -> str:
    """What ``"auto"`` comes to on this machine: ``cuda``, ``mps`` or ``cpu``."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def own_cpus() -> int:
    """CPUs that are this worker's: those that Ray reserved for it, or all of the process."""
    if "OMP_NUM_THREADS" in os.environ:
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_own_threads(torch: Any) -> None:
    """Holds torch to the CPUs that Ray reserved for this worker."""
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
