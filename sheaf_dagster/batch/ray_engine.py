"""The engine on Ray Data: one dataset of chunk descriptors for a whole job."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import warnings
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from sheaf_dagster.batch.capacity import demand_of
from sheaf_dagster.batch.cluster_config import ClusterConfig
from sheaf_dagster.batch.loading import ModelContext
from sheaf_dagster.batch.pool_watch import PoolWatch
from sheaf_dagster.batch.ray_worker import _BackendActor, run_worker_task, tickets
from sheaf_dagster.batch.reservation import placement
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.worker import ChunkReport, FileJob
from sheaf_dagster.errors import ClusterError
from sheaf_dagster.storage import Chunk

__all__ = ["RayEngine"]

log = logging.getLogger(__name__)

_LATE_SECONDS = 10.0
_STOP_SECONDS = 5.0


class RayEngine:
    """Has Ray Data start workers, hands them chunks, and returns their reports.

    The dataset starts before there is anything to do, so that workers come up while files are
    scanned and validated; its pool stays warm for every file of the job.
    """

    def __init__(
        self,
        context: ModelContext,
        spec: BatchSpec,
        config: ClusterConfig,
        slots: int,
        control: Any,
        pool: Any = None,
    ) -> None:
        self._pool = pool
        self._context = context
        self._spec = spec
        self._config = config
        self._slots = slots
        self._taking: Any = None
        self._error: BaseException | None = None
        self._ended_at: float | None = None
        self._stop = threading.Event()
        self._control = control
        self._watch = PoolWatch(self._control, spec.compute, demand_of(context.spec), slots, config)
        self._thread = threading.Thread(target=self._run, daemon=True, name="sheaf-ray-data")
        self._thread.start()

    def submit(self, job: FileJob, chunks: list[Chunk]) -> None:
        """Adds a validated file's chunks."""
        self._call(self._control.add.remote(job, chunks))

    def finish_submitting(self) -> None:
        """Says that no more files will come."""
        self._call(self._control.close.remote())

    def cancel(self, job: int) -> None:
        """Calls off the rest of a file that failed."""
        self._call(self._control.cancel.remote(job))

    def poll(self, timeout: float) -> list[ChunkReport]:
        """Reports that have come in; waits up to ``timeout`` seconds for one.

        Raises:
            ClusterError: Ray stopped working.
            ClusterBusyError: No worker came up in time.
        """
        self._watch.look()
        if self._taking is None:
            self._taking = self._control.take.remote()
        ready, _ = ray.wait([self._taking], timeout=timeout)
        if not ready:
            self._check_alive()
            return []
        reports = self._call(self._taking)
        self._taking = None
        return [ChunkReport.from_dict(r) for r in reports]

    def _check_alive(self) -> None:
        if self._error is not None:
            raise self._error
        # The last reports may still be on their way when the workers are through.
        if self._ended_at is not None and time.monotonic() - self._ended_at > _LATE_SECONDS:
            raise ClusterError(
                "Ray Data ended before all chunks were done; check the cluster and run again "
                "(finished chunks are kept)"
            )

    def shutdown(self) -> None:
        """Stops what is running; part files of finished chunks stay.

        Workers stop after the batch in hand, or end themselves a few seconds later. What still
        waits for a place finds the coordinator gone and ends by itself.
        """
        self._stop.set()
        try:
            # Asked, not killed: an actor that is just starting would be restarted, with noise.
            ray.get(self._control.abort.remote(), timeout=10)
            self._thread.join(timeout=_STOP_SECONDS)
            ray.kill(self._control, no_restart=True)
        except Exception as e:
            log.debug("control actor was gone: %s", e)
        self._thread.join(timeout=1)

    def _call(self, ref: Any) -> Any:
        try:
            return ray.get(ref)
        except ray.exceptions.RayError as e:
            raise ClusterError(f"the job's coordinator on the cluster is gone: {e}") from e

    def _run(self) -> None:
        try:
            # Not iter_batches: it leaves a thread behind for each dataset that isn't read to its end.
            for _ in self._dataset().iter_internal_ref_bundles():
                if self._stop.is_set():
                    return
        except Exception as e:
            self._error = ClusterError(
                f"Ray Data stopped: {type(e).__name__}: {e}; check the cluster and run again "
                "(finished chunks are kept)"
            )
            self._error.__cause__ = e
        finally:
            self._ended_at = time.monotonic()

    def _dataset(self) -> Any:
        resources = self._context.spec.resources
        kwargs: dict[str, Any] = {
            "batch_size": 1,  # tickets; a GPU operator must name one
            "batch_format": "pyarrow",
            "num_cpus": resources.num_cpus,
        }
        if resources.num_gpus:
            kwargs["num_gpus"] = resources.num_gpus
        if resources.memory_gb:
            kwargs["memory"] = int(resources.memory_gb * 2**30)
        if resources.custom:
            kwargs["resources"] = resources.custom
        with _quiet_context():
            actors = self._spec.compute == "actors"
            work = tickets(self._slots, actors=actors)
            # One block each. (from_arrow would need a free CPU to look at them.)
            feed = ray.data.from_items(work, override_num_blocks=len(work))
            arguments = {"context": self._context, "control": self._control}
            if actors:
                return feed.map_batches(
                    _BackendActor,
                    fn_constructor_kwargs=arguments,
                    # A second ticket would wait behind the first while another actor has none.
                    compute=ActorPoolStrategy(size=self._slots, max_tasks_in_flight_per_actor=1),
                    **kwargs,
                    **placement(self._pool),
                )
            limited = self._config.cpu_limit is not None or self._config.gpu_limit is not None
            grows = self._config.autoscaling and not limited
            return feed.map_batches(
                run_worker_task,
                fn_kwargs=arguments,
                compute=TaskPoolStrategy(size=None if grows else self._slots),
                **_reserved_by_ray(kwargs),
            )


def _reserved_by_ray(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``map_batches`` by which Ray itself, not Ray Data, waits for a task's place.

    Ray Data takes a cluster for one without resources until its coordinator has come up and
    been asked twice: for three seconds it would submit one task and no more
    (benchmarks/throughput.py).
    """
    if "ray_remote_args_fn" not in inspect.signature(ray.data.Dataset.map_batches).parameters:
        return arguments  # announced to end with Ray 2.64
    warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")
    named = ("num_cpus", "num_gpus", "memory", "resources")
    reserved = {name: arguments[name] for name in named if name in arguments}
    rest = {name: value for name, value in arguments.items() if name not in named}
    return {**rest, "num_cpus": 0, "ray_remote_args_fn": lambda: dict(reserved)}


class _quiet_context:
    """Ray Data's settings for our datasets; the process's own are put back.

    A dataset copies the current context when it is made.
    """

    def __enter__(self) -> None:
        self._saved = DataContext.get_current()
        context = self._saved.copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = False
        # Waiting for capacity is ours to bound and to report.
        context.execution_no_progress_timeout_s = -1
        DataContext._set_current(context)
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        DataContext._set_current(self._saved)
