"""A job's workers on Ray: handed chunks, watched, stopped; Ray Data or plain Ray starts them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from sheaf_dagster.batch.messages import ChunkReport, FileJob
from sheaf_dagster.batch.ray.capacity import demand_of
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.batch.ray.pool_watch import PoolWatch
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.errors import ClusterError
from sheaf_dagster.storage import Chunk

__all__ = ["RayEngine", "Workers"]

log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Workers:
    """The workers that a job is to have.

    Attributes:
        context: Their model.
        spec: How they run it.
        config: The cluster and its limits.
        slots: How many there are at most.
        control: The job's coordinator.
        pool: The placement group of a pool of actors, where there is one.
    """

    context: ModelContext
    spec: BatchSpec
    config: ClusterConfig
    slots: int
    control: Any
    pool: Any = None

    @property
    def reserved(self) -> dict[str, Any]:
        """What each of them reserves, in the words of Ray's options."""
        resources = self.context.spec.resources
        options: dict[str, Any] = {"num_cpus": resources.num_cpus}
        if resources.num_gpus:
            options["num_gpus"] = resources.num_gpus
        if resources.memory_gb:
            options["memory"] = int(resources.memory_gb * 2**30)
        if resources.custom:
            options["resources"] = resources.custom
        return options


class RayEngine:
    """Has workers started, hands them chunks, and returns their reports.

    They start before there is anything to do, so that they come up while files are scanned and
    validated, and stay warm for every file of the job.

    Args:
        workers: What to start.
        run: Starts them, and returns when the last one has left or the event is set.
        name: What starts them, for messages.
    """

    def __init__(
        self, workers: Workers, run: Callable[[Workers, threading.Event], None], name: str
    ) -> None:
        self._name = name
        self._workers = workers
        self._run_workers = run
        self._control = workers.control
        self._taking: Any = None
        self.over: ClusterError | None = None
        """Set once the last worker has left and all its reports have been taken: what then is
        open stays open, and this is why."""
        self._ended: ClusterError | None = None
        self._said_so = False
        self._stop = threading.Event()
        self._watch = PoolWatch(
            workers.control,
            workers.spec.compute,
            demand_of(workers.context.spec),
            workers.slots,
            workers.config,
        )
        self._thread = threading.Thread(target=self._run, daemon=True, name="sheaf-workers")
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
        if self.over is not None:
            self._stop.wait(timeout)
            return []
        self._watch.look()
        if self._taking is None:
            self._taking = self._control.take.remote()
        ready, _ = ray.wait([self._taking], timeout=timeout)
        if not ready:
            if self._ended is not None and not self._said_so:
                self._said_so = True
                self._call(self._control.abandoned.remote())
            return []
        reports = self._call(self._taking)
        self._taking = None
        if not reports:
            self.over = self._ended
        return [ChunkReport.from_dict(r) for r in reports]

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
        ended = ClusterError(
            f"{self._name} ended before all chunks were done; check the cluster and run again "
            "(finished chunks are kept)"
        )
        try:
            self._run_workers(self._workers, self._stop)
        except Exception as e:
            ended = ClusterError(
                f"{self._name} stopped: {type(e).__name__}: {e}; check the cluster and run again "
                "(finished chunks are kept)"
            )
            ended.__cause__ = e
        finally:
            self._ended = ended
