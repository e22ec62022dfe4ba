"""The engine on Ray Data: one dataset of chunk descriptors for a whole job."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

import orjson
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from sheaf_dagster.batch.cluster_config import ClusterConfig
from sheaf_dagster.batch.control import JobControl
from sheaf_dagster.batch.loading import ModelContext
from sheaf_dagster.batch.ray_worker import BundleFeed, _BackendActor, run_bundle_task
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.worker import ChunkReport, FileJob
from sheaf_dagster.errors import ClusterError
from sheaf_dagster.storage import Chunk

__all__ = ["RayEngine"]

log = logging.getLogger(__name__)

_MIN_BUNDLE_SECONDS = {"tasks": 1.0, "actors": 0.1}
"""Shortest useful bundle: Ray Data leaves 0.12 s between two tasks of a worker, 0.01 s between
two calls of an actor (benchmarks/throughput.py)."""

_WARM_WORKERS = 64


class RayEngine:
    """Feeds validated files to Ray Data and returns reports of chunks.

    The dataset starts before there is anything to do, so that workers come up while files are
    scanned and validated; its pool stays warm for every file of the job.
    """

    def __init__(
        self, context: ModelContext, spec: BatchSpec, config: ClusterConfig, slots: int
    ) -> None:
        self._context = context
        self._spec = spec
        self._config = config
        self._slots = slots
        self._reports: queue.Queue[ChunkReport | BaseException | None] = queue.Queue()
        self._stop = threading.Event()
        here = ray.get_runtime_context().get_node_id()
        self._control: Any = (
            ray.remote(JobControl)
            .options(
                num_cpus=0,
                max_restarts=0,
                max_concurrency=1000,
                scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                    here, soft=True
                ),
            )
            .remote(slots, _MIN_BUNDLE_SECONDS[spec.compute], config.autoscaling)
        )
        if spec.compute == "tasks":
            self._warm_workers()
        self._thread = threading.Thread(target=self._pump, daemon=True, name="sheaf-ray-data")
        self._thread.start()

    def _warm_workers(self) -> None:
        """Lets task workers start and import while the file is still scanned and validated.

        A task of Ray Data takes over an idle worker; without this it waits one to two seconds
        for a process of its own (benchmarks/throughput.py).
        """
        resources = self._context.spec.resources
        warm = ray.remote(_import_worker).options(
            num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_retries=0
        )
        for _ in range(min(self._slots, _WARM_WORKERS)):
            warm.remote()

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
        """
        found: list[ChunkReport] = []
        try:
            item = self._reports.get(timeout=timeout)
            while True:
                if isinstance(item, BaseException):
                    raise item
                if item is not None:
                    found.append(item)
                item = self._reports.get_nowait()
        except queue.Empty:
            return found

    def shutdown(self) -> None:
        """Stops what is running; part files of finished chunks stay."""
        self._stop.set()
        try:
            ray.kill(self._control, no_restart=True)
        except Exception as e:
            log.debug("control actor was gone: %s", e)
        self._thread.join(timeout=30)

    def _call(self, ref: Any) -> None:
        try:
            ray.get(ref)
        except ray.exceptions.RayError as e:
            raise ClusterError(f"the job's coordinator on the cluster is gone: {e}") from e

    def _pump(self) -> None:
        try:
            dataset = self._dataset()
            for batch in dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for text in batch.column("reports").to_pylist():
                    for report in orjson.loads(text):
                        self._reports.put(ChunkReport.from_dict(report))
                if self._stop.is_set():
                    return
            self._reports.put(None)
        except Exception as e:
            if not self._stop.is_set():
                error = ClusterError(
                    f"Ray Data stopped: {type(e).__name__}: {e}; check the cluster and run again "
                    "(finished chunks are kept)"
                )
                error.__cause__ = e
                self._reports.put(error)

    def _dataset(self) -> Any:
        resources = self._context.spec.resources
        kwargs: dict[str, Any] = {
            "batch_size": 1,  # bundles; a GPU operator must name one
            "batch_format": "pyarrow",
            "num_cpus": resources.num_cpus,
        }
        if resources.num_gpus:
            kwargs["num_gpus"] = resources.num_gpus
        if resources.memory_gb:
            kwargs["memory"] = resources.memory_gb * 2**30
        if resources.custom:
            kwargs["resources"] = resources.custom
        with _quiet_context():
            feed = ray.data.read_datasource(
                BundleFeed(self._control),
                override_num_blocks=1,
                compute=TaskPoolStrategy(size=1),
                num_cpus=0,
            )
            arguments = {"context": self._context, "control": self._control}
            if self._spec.compute == "actors":
                return feed.map_batches(
                    _BackendActor,
                    fn_constructor_kwargs=arguments,
                    compute=ActorPoolStrategy(size=self._slots),
                    **kwargs,
                )
            limited = self._config.cpu_limit is not None or self._config.gpu_limit is not None
            return feed.map_batches(
                run_bundle_task,
                fn_kwargs=arguments,
                compute=TaskPoolStrategy(size=self._slots if limited else None),
                **kwargs,
            )


class _quiet_context:
    """Ray Data's settings for our datasets; the process's own are put back.

    A dataset copies the current context when it is made.
    """

    def __enter__(self) -> None:
        self._saved = DataContext.get_current()
        context = self._saved.copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Each table that a worker yields is a block of its own and arrives at once.
        context.target_max_block_size = 1
        context.execution_options.preserve_order = False
        # Waiting for capacity is ours to bound and to report.
        context.execution_no_progress_timeout_s = -1
        DataContext._set_current(context)
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        DataContext._set_current(self._saved)


def _import_worker() -> None:
    import sheaf_dagster.batch.ray_worker  # noqa: F401
