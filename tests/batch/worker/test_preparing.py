"""What a thread prepares at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import wait
from contextlib import ExitStack
from threading import Event
from time import sleep
from types import SimpleNamespace
from typing import Any

from sheaf_dagster import ModelBackend
from sheaf_dagster.batch.worker.overlap import Helpers
from sheaf_dagster.batch.worker.preparing import Preparing

_ROWS = 64


class _Quick(ModelBackend):
    """Prepares a row in next to no time."""

    model_type = "number"

    def load(self) -> None:
        """There is nothing to load."""

    def prepare(self, request: Any) -> Any:
        return request

    def size(self, prepared: Any) -> int:
        return 1

    def infer(self, prepared: Sequence[Any]) -> list[Any]:
        return list(prepared)

    def respond(self, requests: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        return list(outputs)


def _batch(number: int) -> Any:
    rows = [SimpleNamespace(request=i, position=i) for i in range(_ROWS)]
    return SimpleNamespace(failure=None, rows=rows, making=number)


def test_slices_grow_while_the_device_is_still_at_its_first_batch() -> None:
    jobs: Any = SimpleNamespace(
        loaded=SimpleNamespace(backend=_Quick()), is_known_to_hang=lambda _: False
    )
    with Helpers(2) as helpers:
        preparing = Preparing(jobs, helpers)
        counts = []
        for window in preparing.windows(map(_batch, range(12))):
            wait(window.slices)
            counts.append(len(window.slices))
    assert counts[0] == _ROWS, "nothing is known yet: a row at a time"
    assert min(counts) == 2, "one slice for each thread"


class _Stuck(_Quick):
    def __init__(self) -> None:
        self.released = Event()

    def prepare(self, request: Any) -> Any:
        self.released.wait(300)
        return request


def test_rows_do_not_hang_that_the_device_has_waited_for_before_they_were_read() -> None:
    backend = _Stuck()
    jobs: Any = SimpleNamespace(
        loaded=SimpleNamespace(backend=backend), is_known_to_hang=lambda _: False
    )
    batch = _batch(0)
    batch.making = SimpleNamespace(work=SimpleNamespace(batch_timeout=0.3))
    with Helpers(1) as helpers, ExitStack() as stack:
        stack.callback(backend.released.set)
        preparing = Preparing(jobs, helpers)
        preparing.awaited(True)
        sleep(0.4)  # the reader has nothing yet
        (window,) = preparing.windows(iter([batch]))
        assert not preparing.is_done(window)
        assert not preparing.is_hanging(window)
        sleep(0.4)
        assert preparing.is_hanging(window)
