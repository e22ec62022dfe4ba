"""A job's workers on Ray: handed chunks, watched, stopped; Ray Data or plain Ray starts them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from sheaf_dagster.batch.events import Ended, Reported, Tell
from sheaf_dagster.batch.messages import FileWork
from sheaf_dagster.batch.parallel_validation import validate_in_parallel
from sheaf_dagster.batch.ray.capacity import WorkerPlan
from sheaf_dagster.batch.ray.cluster import (
    ray_session,
    surely_fits_here,
    verify_capacity,
    worker_slots,
)
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.batch.ray.engine_choice import Engine
from sheaf_dagster.batch.ray.gpu_queue import gpu_share
from sheaf_dagster.batch.ray.reservation import reserved_pool
from sheaf_dagster.batch.ray.workers import Workers
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.errors import ClusterError, SheafError
from sheaf_dagster.storage import Chunk, ScannedSource

if TYPE_CHECKING:  # they load Ray, beside which the first files are validated
    from sheaf_dagster.batch.ray.client import DriverClient
    from sheaf_dagster.batch.ray.pool_watch import PoolWatch

__all__ = ["RayWorkforce"]

log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0

_IDLE_SECONDS = 2.0
"""A task that has had nothing to do for so long, at the end of a job, gives its place back."""


class RayWorkforce:
    """Workers that pull chunks from the job's coordinator, which hears their reports.

    They start before there is anything to do, so that they come up while files are scanned and
    validated, and stay warm for every file of the job.

    Args:
        context: The model.
        plan: What they need.
        engine: Who starts them: Ray Data, or Ray itself.
        config: Which Ray, and how much of it.
    """

    files_ahead = 32

    def __init__(
        self, context: ModelContext, plan: WorkerPlan, engine: Engine, config: ClusterConfig
    ) -> None:
        self._context = context
        self._plan = plan
        self._engine = engine
        self._config = config
        self._cleanup = ExitStack()
        self._shared = False
        self._slots = 1
        self._coordinator: DriverClient | None = None
        self._watch: PoolWatch | None = None
        self._warming: list[Any] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def surely_opens(self) -> bool:
        """Whether a Ray that is started here is bound to have room for the job."""
        return surely_fits_here(self._plan, self._config)

    def open(self) -> None:
        """Finds or starts Ray, and starts the coordinator.

        Raises:
            ClusterError: The cluster can't be reached.
            ClusterCapacityError: The job can't fit it.
            SpecError: The limit of all jobs is that of a Ray that only this job uses.
        """
        self._shared = self._cleanup.enter_context(ray_session(self._config))
        verify_capacity(self._plan, self._config)
        self._slots = worker_slots(self._plan, self._config)
        from sheaf_dagster.batch.ray.client import start_coordinator
        from sheaf_dagster.batch.ray.startup import warm_up

        tasks = self._plan.compute == "tasks"
        self._coordinator = start_coordinator(
            self._slots, self._context.spec.backend, idle_seconds=_IDLE_SECONDS if tasks else None
        )
        # Ray gives actors processes of their own, and plain tasks are as early themselves.
        if tasks and self._engine == "ray_data":
            self._warming = warm_up(self._context, self._slots)

    def start(self, tell: Tell) -> None:
        """Has the workers started once there is capacity for them; doesn't wait for it.

        So a file that is invalid fails at once, however long others hold the GPUs.
        """
        ended: list[SheafError] = []
        for name, target, arguments in (
            ("sheaf-workers", self._employ, (ended,)),
            ("sheaf-reports", self._listen, (tell, ended)),
        ):
            thread = threading.Thread(target=target, args=arguments, daemon=True, name=name)
            self._threads.append(thread)
            thread.start()

    def validate(
        self, contract: RowContract, source: ScannedSource, stop: threading.Event
    ) -> Iterator[ChunkFindings]:
        """Validates chunks here, and with workers that wait for their first file."""
        return validate_in_parallel(
            contract,
            [f.text for f in source.files],
            source.chunks,
            lambda: None if self._coordinator is None else (self._coordinator, self._slots),
            stop,
        )

    def submit(self, work: FileWork, chunks: list[Chunk]) -> None:
        """Adds a validated file's chunks."""
        self._opened.add(work, chunks)

    def no_more_files(self) -> None:
        """Says that the last one has been submitted."""
        self._opened.close()

    def cancel(self, file: int) -> None:
        """Calls off the rest of a file that failed."""
        self._opened.cancel(file)

    def look(self) -> bool:
        """Looks after the workers, once a second.

        Raises:
            ClusterError: Ray stopped working.
            ClusterBusyError: No worker came up in time.
        """
        if self._watch is not None:
            self._watch.look()
        return False

    def stop(self) -> None:
        """Stops what is running; parts of finished chunks stay.

        Workers stop after the batch in hand, or end themselves a few seconds later. What still
        waits for a place finds the coordinator gone and ends by itself.
        """
        self._stop.set()
        if self._coordinator is None:
            return
        employ = self._threads[:1]
        try:
            self._coordinator.abort()
            for thread in employ:
                thread.join(timeout=_STOP_SECONDS)
            self._coordinator.kill()
        except Exception as e:
            log.debug("the coordinator was gone: %s", e)
        for thread in self._threads:
            thread.join(timeout=1)

    def close(self) -> None:
        """Gives back what was reserved, and stops a Ray that was started for the job."""
        self._cleanup.close()

    @property
    def _opened(self) -> DriverClient:
        assert self._coordinator is not None, "open() comes first"
        return self._coordinator

    # -- threads ---------------------------------------------------------------------------

    def _employ(self, ended: list[SheafError]) -> None:
        """Has workers started until the last one has left."""
        name = "Ray Data" if self._engine == "ray_data" else "Ray"
        again = "check the cluster and run again (finished chunks are kept)"
        error: SheafError
        try:
            workers = self._workers()
            if self._engine == "ray_data":
                from sheaf_dagster.batch.ray.data_workers import run_on_ray_data

                run_on_ray_data(workers, self._stop)
            else:
                from sheaf_dagster.batch.ray.core_workers import run_on_ray_core

                run_on_ray_core(workers, self._stop)
            error = ClusterError(f"{name} ended before all chunks were done; {again}")
        except SheafError as e:
            error = e
        except Exception as e:
            error = ClusterError(f"{name} stopped: {type(e).__name__}: {e}; {again}")
            error.__cause__ = e
        ended.append(error)
        with suppress(ClusterError):  # whoever listens hears it too
            self._opened.all_left()

    def _workers(self) -> Workers:
        """Those to start, once there is capacity for them.

        Raises:
            ClusterBusyError: Others held it for too long.
            CancelledError: The job is over.
        """
        from sheaf_dagster.batch.ray.pool_watch import PoolWatch

        pool = None
        if self._shared:
            gpus = self._plan.demand.get("GPU", 0.0) * self._slots
            self._cleanup.enter_context(gpu_share(gpus, self._config, self._stop))
            pool = self._cleanup.enter_context(
                reserved_pool(self._plan, self._config, self._engine, self._stop)
            )
        coordinator = self._opened
        self._watch = PoolWatch(coordinator, self._plan, self._slots, self._config)
        return Workers(
            self._context,
            self._plan.compute,
            self._config,
            self._slots,
            coordinator.for_workers(),
            pool,
        )

    def _listen(self, tell: Tell, ended: list[SheafError]) -> None:
        """Tells of reports as they come, and of the end after the last."""
        try:
            while reports := self._opened.take_reports():
                for report in reports:
                    tell(Reported(report))
            if ended:
                tell(Ended(ended[0]))
        except Exception as e:
            # Others have failed for the same reason; where all chunks are in it is none.
            tell(Ended(e))
