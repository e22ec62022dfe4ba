"""Jobs for a shared Ray, and waiting for what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import sheaf_dagster as sd


def pool(num_actors: int, **fields) -> sd.BatchSpec:
    """A job of a pool of actors."""
    return sd.BatchSpec(
        **{"source": "a", "sink": "b", "compute": "actors", "num_actors": num_actors, **fields}
    )


def tasks(source: str, tmp_path) -> sd.BatchSpec:
    """A job of tasks."""
    return sd.BatchSpec(source=source, sink=str(tmp_path / "tasks.jsonl"))


def wait_until(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Waits for a condition, and fails where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"gave up waiting for {what}"
        time.sleep(0.05)
