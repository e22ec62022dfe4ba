"""What a job starts on Ray first, so that it is up when it is needed.

Ray keeps one idle process for each CPU; any other takes a second of CPU time to start. Ray Data
takes as long to submit its first task, and spends idle processes on small actors of its own.
So a job's coordinator and its workers' processes are asked for before Ray Data is imported.
"""

from __future__ import annotations

from typing import Any

import ray

from sheaf_dagster.batch.ray.capacity import demand_of
from sheaf_dagster.batch.worker.loading import ModelContext

__all__ = ["warm_up"]

_MOST = 16
"""Processes that are warmed up at most: about those of one machine."""


def warm_up(context: ModelContext, workers: int) -> list[Any]:
    """Has idle worker processes import a job's modules; doesn't wait for them.

    Nothing is reserved, so that this never stands in the way of the pool that it is for, and no
    model is loaded: that waits until the rows are valid.

    Returns:
        References to keep until the job's own workers are up.
    """
    cpus = demand_of(context.spec.resources).get("CPU", 0.0) or 1.0
    # Tasks without a demand stay here, and a cluster's head may have no CPU to give.
    here = ray.get_runtime_context().get_node_id()
    own = sum(n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["NodeID"] == here)
    free = min(ray.available_resources().get("CPU", 0.0), own)
    task = ray.remote(_import_all).options(num_cpus=0, max_retries=0)
    return [task.remote(context) for _ in range(min(workers, int(free // cpus), _MOST))]


def _import_all(context: ModelContext) -> None:
    # That the context has arrived means that the backend's module is imported.
    import sheaf_dagster.batch.ray.worker  # noqa: F401
