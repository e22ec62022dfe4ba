"""What a thread prepares at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import wait
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
