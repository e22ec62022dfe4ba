"""Workers that plain Ray starts: for jobs that are over before Ray Data would have begun.

Ray Data takes four to five CPU seconds to start: its import in the driver and in each worker, and
two actors of its own. The shifts, and what a worker does in one, are the same.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray

from sheaf_dagster.batch.ray.client import WorkerClient
from sheaf_dagster.batch.ray.reservation import placement
from sheaf_dagster.batch.ray.worker import Shift, _BackendActor, run_task, shifts
from sheaf_dagster.batch.ray.workers import Workers
from sheaf_dagster.batch.worker.loading import ModelContext

__all__ = ["run_on_ray_core"]

_SPREAD = {"scheduling_strategy": "SPREAD"}
"""Over the machines, as Ray Data does."""

_LEAVE_SECONDS = 5.5
"""A worker of a job that was called off has left by itself after this long."""


def run_on_ray_core(workers: Workers, stop: threading.Event) -> None:
    """Starts the workers, and returns when the last one has left or ``stop`` is set.

    As Ray Data does it, Ray starts a worker that died again and again: attempts are counted by
    the coordinator.
    """
    if workers.compute == "actors":
        _run_actors(workers, stop)
    else:
        _run_tasks(workers, stop)


def _run_tasks(workers: Workers, stop: threading.Event) -> None:
    task = ray.remote(run_task).options(max_retries=-1, **_SPREAD, **workers.reserved)
    context = ray.put(workers.context)

    def start(shift: Shift) -> Any:
        return task.remote(shift, context, workers.coordinator)

    left = _run_all(workers, shifts(workers.slots, actors=False), start, stop)
    for ref in left:  # some wait for a place that they no longer need
        with suppress(Exception):
            ray.cancel(ref, force=True)


class _PoolActor(_BackendActor):
    """A ``_BackendActor`` that gets its coordinator as bytes.

    Ray takes a handle among the arguments for an object that may get lost, and says at each start
    that the actor could not be started again.
    """

    def __init__(self, context: ModelContext, coordinator: bytes) -> None:
        client: WorkerClient = ray.cloudpickle.loads(coordinator)
        super().__init__(context, client)


def _run_actors(workers: Workers, stop: threading.Event) -> None:
    actor = ray.remote(_PoolActor).options(
        max_restarts=-1,
        max_task_retries=-1,
        **workers.reserved,
        **(placement(workers.pool) or _SPREAD),
    )
    coordinator = ray.cloudpickle.dumps(workers.coordinator)
    pool = [actor.remote(workers.context, coordinator) for _ in range(workers.slots)]
    waiting = deque(pool)

    def start(shift: Shift) -> Any:
        return waiting.popleft().run.remote(shift)

    try:
        _run_all(workers, shifts(workers.slots, actors=True), start, stop)
    finally:
        for one in pool:
            with suppress(Exception):
                ray.kill(one, no_restart=True)


def _run_all(
    workers: Workers, work: list[Shift], start: Callable[[Shift], Any], stop: threading.Event
) -> list[Any]:
    """Has all shifts worked; returns those that are still going on some time after the job is over."""
    waiting = deque(work)
    running: list[Any] = []
    over = workers.coordinator.job_over()
    while (waiting or running) and not stop.is_set():
        while waiting and len(running) < workers.slots:
            running.append(start(waiting.popleft()))
        (done,), _ = ray.wait([over, *running], num_returns=1)
        if done == over:
            break
        running.remove(done)
        ray.get(done)
    if running:
        _, running = ray.wait(running, num_returns=len(running), timeout=_LEAVE_SECONDS)
    return running
