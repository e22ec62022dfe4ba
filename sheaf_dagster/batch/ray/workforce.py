"""A job's workers on Ray: handed chunks, watched, stopped; Ray Data or plain Ray starts them."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sheaf_dagster.batch.messages import ChunkReport, FileJob
from sheaf_dagster.batch.ray.capacity import demand_of
from sheaf_dagster.batch.ray.client import DriverClient, WorkerClient
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
        coordinator: The job's, as they speak with it.
        pool: The placement group of a pool of actors, where there is one.
    """

    context: ModelContext
    spec: BatchSpec
    config: ClusterConfig
    slots: int
    coordinator: WorkerClient
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
        coordinator: The job's.
        run: Starts the workers, and returns when the last one has left or the event is set.
        name: What starts them, for messages.
    """

    def __init__(
        self,
        workers: Workers,
        coordinator: DriverClient,
        run: Callable[[Workers, threading.Event], None],
        name: str,
    ) -> None:
        self._name = name
        self._workers = workers
        self._run_workers = run
        self._coordinator = coordinator
        self.over: ClusterError | None = None
        """Set once the last worker has left and all its reports have been taken: what then is
        open stays open, and this is why."""
        self._reports: queue.SimpleQueue[list[ChunkReport] | ClusterError] = queue.SimpleQueue()
        self._ended: ClusterError | None = None
        self._stop = threading.Event()
        self._watch = PoolWatch(
            coordinator,
            workers.spec.compute,
            demand_of(workers.context.spec),
            workers.slots,
            workers.config,
        )
        self._thread = threading.Thread(target=self._run, daemon=True, name="sheaf-workers")
        self._listener = threading.Thread(target=self._listen, daemon=True, name="sheaf-reports")
        self._thread.start()
        self._listener.start()

    def submit(self, job: FileJob, chunks: list[Chunk]) -> None:
        """Adds a validated file's chunks."""
        self._coordinator.add(job, chunks)

    def finish_submitting(self) -> None:
        """Says that no more files will come."""
        self._coordinator.close()

    def cancel(self, file: int) -> None:
        """Calls off the rest of a file that failed."""
        self._coordinator.cancel(file)

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
        try:
            reports = self._reports.get(timeout=timeout)
        except queue.Empty:
            return []
        if isinstance(reports, ClusterError):
            raise reports
        if not reports:
            self.over = self._ended
        return reports

    def shutdown(self) -> None:
        """Stops what is running; part files of finished chunks stay.

        Workers stop after the batch in hand, or end themselves a few seconds later. What still
        waits for a place finds the coordinator gone and ends by itself.
        """
        self._stop.set()
        try:
            self._coordinator.abort()
            self._thread.join(timeout=_STOP_SECONDS)
            self._coordinator.kill()
        except Exception as e:
            log.debug("the coordinator was gone: %s", e)
        self._thread.join(timeout=1)
        self._listener.join(timeout=1)

    def _listen(self) -> None:
        try:
            while reports := self._coordinator.take_reports():
                self._reports.put(reports)
            self._reports.put([])
        except ClusterError as e:
            self._reports.put(e)

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
        self._ended = ended
        with suppress(ClusterError):  # whoever listens hears it too
            self._coordinator.all_left()
