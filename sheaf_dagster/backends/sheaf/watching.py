"""What a backend of sheaf-serve does out of sight, and leaves behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sheaf_dagster.backends.sheaf.deviations import note

__all__ = ["temporary_files_removed", "watch"]


def watch(name: str, backend: Any) -> None:
    """Has a loaded backend note rows that it answers without something that the model needs.

    GraphCast leaves the sun's radiation out where that can't be computed, whatever the reason.

    Args:
        name: Its name there.
        backend: It, loaded.
    """
    if name != "graphcast":
        return
    build, run = backend._build_forcings, backend._run
    empty: list[bool] = []

    def build_forcings(*inputs: Any) -> Any:
        forcings = build(*inputs)
        empty.append(not len(forcings.data_vars))
        return forcings

    def answer(request: Any) -> Any:
        empty.clear()
        response = run(request)
        return note(response, "fell_back") if any(empty) else response

    backend._build_forcings, backend._run = build_forcings, answer


@contextmanager
def temporary_files_removed(backend: Any) -> Iterator[None]:
    """Removes the files into which a backend of sound unpacks its rows, and which it leaves.

    Args:
        backend: Any backend; those that unpack nothing are left alone.
    """
    module: Any = sys.modules.get(type(backend).__module__)
    unpack = getattr(module, "decode_audio", None)
    if unpack is None:
        yield
        return
    left: list[str] = []

    def unpacked(data: bytes) -> Any:
        found = unpack(data)
        if isinstance(found, str):
            left.append(found)
        return found

    module.decode_audio = unpacked
    try:
        yield
    finally:
        module.decode_audio = unpack
        for path in left:
            with suppress(OSError):
                os.unlink(path)
