"""Workers that Ray Data starts: one dataset of shifts for a whole job."""

from __future__ import annotations

import inspect
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from sheaf_dagster.batch.logs import logger_at
from sheaf_dagster.batch.ray.reservation import placement
from sheaf_dagster.batch.ray.worker import _BackendActor, run_task_of_ray_data, shifts
from sheaf_dagster.batch.ray.workers import Workers

__all__ = ["run_on_ray_data"]

_one_at_a_time = threading.Lock()


def run_on_ray_data(workers: Workers, stop: threading.Event) -> None:
    """Starts the workers, and returns when the last one has left or ``stop`` is set."""
    with logger_at("ray.data", logging.ERROR):
        # Not iter_batches: it leaves a thread behind for each dataset that isn't read to its end.
        for _ in _dataset(workers).iter_internal_ref_bundles():
            if stop.is_set():
                return


def _dataset(workers: Workers) -> Any:
    kwargs: dict[str, Any] = {
        "batch_size": 1,  # shifts; a GPU operator must name one
        "batch_format": "pyarrow",
        **workers.reserved,
    }
    with _quiet_context():
        actors = workers.compute == "actors"
        work = [asdict(shift) for shift in shifts(workers.slots, actors=actors)]
        # One block each. (from_arrow would need a free CPU to look at them.)
        feed = ray.data.from_items(work, override_num_blocks=len(work))
        arguments = {"context": workers.context, "coordinator": workers.coordinator}
        if actors:
            return feed.map_batches(
                _BackendActor,
                fn_constructor_kwargs=arguments,
                # A second shift would wait behind the first while another actor has none.
                compute=ActorPoolStrategy(size=workers.slots, max_tasks_in_flight_per_actor=1),
                **kwargs,
                **placement(workers.pool),
            )
        config = workers.config
        limits = (config.cpu_limit, config.gpu_limit, config.shared_gpu_limit)
        limited = any(limit is not None for limit in limits)
        grows = config.autoscaling and not limited
        return feed.map_batches(
            run_task_of_ray_data,
            fn_kwargs=arguments,
            compute=TaskPoolStrategy(size=None if grows else workers.slots),
            **_reserved_by_ray(kwargs),
        )


def _reserved_by_ray(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``map_batches`` by which Ray itself, not Ray Data, waits for a task's place.

    Ray Data takes a cluster for one without resources until its coordinator has come up and
    been asked twice: for three seconds it would submit one task and no more
    (``make bench``).
    """
    if "ray_remote_args_fn" not in inspect.signature(ray.data.Dataset.map_batches).parameters:
        return arguments  # announced to end with Ray 2.64
    warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")
    named = ("num_cpus", "num_gpus", "memory", "resources")
    reserved = {name: arguments[name] for name in named if name in arguments}
    rest = {name: value for name, value in arguments.items() if name not in named}
    return {**rest, "num_cpus": 0, "ray_remote_args_fn": lambda: dict(reserved)}


@contextmanager
def _quiet_context() -> Iterator[None]:
    """Ray Data's settings for our datasets; the process's own are put back.

    A dataset copies the current context when it is made. There is one in a process: jobs in
    threads make their datasets one after the other.
    """
    with _one_at_a_time:
        saved = DataContext.get_current()
        context = saved.copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = False
        # Waiting for capacity is ours to bound and to report.
        context.execution_no_progress_timeout_s = -1
        with DataContext.current(context):
            yield
