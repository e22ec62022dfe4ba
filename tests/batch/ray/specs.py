"""Jobs for a shared Ray."""

from __future__ import annotations

import sheaf_dagster as sd


def pool(num_actors: int, **fields) -> sd.BatchSpec:
    """A job of a pool of actors."""
    return sd.BatchSpec(
        **{"source": "a", "sink": "b", "compute": "actors", "num_actors": num_actors, **fields}
    )


def tasks(source: str, tmp_path) -> sd.BatchSpec:
    """A job of tasks."""
    return sd.BatchSpec(source=source, sink=str(tmp_path / "tasks.jsonl"))
