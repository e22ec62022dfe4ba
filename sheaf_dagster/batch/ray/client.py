"""How a job's driver and its workers speak with its coordinator: all remote calls are made here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

import ray

from sheaf_dagster.batch.messages import ChunkReport, FileWork
from sheaf_dagster.batch.ray.coordinator import Coordinator
from sheaf_dagster.batch.ray.records import ChunkWork, NodeDrains, ValidationWork
from sheaf_dagster.batch.ray.roster import Presence
from sheaf_dagster.errors import ClusterError
from sheaf_dagster.storage import Chunk

__all__ = ["DriverClient", "Pending", "PendingFindings", "WorkerClient", "start_coordinator"]

T = TypeVar("T")

_AGAIN_SECONDS = 1.0
"""Until a coordinator whose connection broke is called again; Ray itself says when it is dead."""

_TELL_SECONDS = 2.5
"""A worker that is about to end itself waits this long for the coordinator to hear why."""

_ABORT_SECONDS = 10.0


def start_coordinator(slots: int, backend: str, idle_seconds: float | None = None) -> DriverClient:
    """Starts a job's ``Coordinator`` on this node; it ends with the last that knows of it."""
    here = ray.get_runtime_context().get_node_id()
    actor = (
        ray.remote(Coordinator)
        .options(
            num_cpus=0,
            max_restarts=0,
            # Each worker has a few calls here that wait, and each seat one to the job's end.
            max_concurrency=max(10_000, 20 * slots),
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                here, soft=False
            ),
        )
        .remote(slots, backend, idle_seconds)
    )
    return DriverClient(actor)


class Pending(Generic[T]):
    """The answer to a call, once it is there."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    @property
    def is_there(self) -> bool:
        """Whether ``get`` won't wait."""
        return bool(ray.wait([self._reference], timeout=0)[0])

    def get(self) -> T:
        """The answer.

        Raises:
            ClusterError: The coordinator is gone.
        """
        try:
            answer: T = ray.get(self._reference)
        except ray.exceptions.RayError as e:
            raise ClusterError(
                f"the job's coordinator on the cluster is gone: {e}; run again (finished chunks "
                "are kept)"
            ) from e
        return answer


class PendingFindings(Pending[Any]):
    """What came of chunks that a worker validates, once it is known."""

    def get(self) -> Any:
        """What the worker found; None where it could not, or is gone, or the work was withdrawn."""
        held = super().get()
        if held is None:
            return None
        try:
            return ray.get(held[0])
        except ray.exceptions.RayError:
            return None


class DriverClient:
    """What the driver asks of the coordinator and tells it.

    Each method raises ``ClusterError`` where the coordinator is gone.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def for_workers(self) -> WorkerClient:
        """The workers' end; travels to them."""
        return WorkerClient(self._actor)

    def add(self, work: FileWork, chunks: Sequence[Chunk]) -> None:
        """Adds a validated file's chunks and lets the workers load the model."""
        Pending[None](self._actor.add.remote(work, chunks)).get()

    def close(self) -> None:
        """Says that no more files will come."""
        Pending[None](self._actor.close.remote()).get()

    def cancel(self, file: int) -> None:
        """Calls off what is left of a file."""
        Pending[None](self._actor.cancel.remote(file)).get()

    def all_left(self) -> None:
        """Says that the last worker has left."""
        Pending[None](self._actor.all_left.remote()).get()

    def take_reports(self) -> list[ChunkReport]:
        """Waits for reports that haven't been taken yet; none once all workers have left."""
        return Pending[list[ChunkReport]](self._actor.take_reports.remote()).get()

    def look(self, lost_nodes: set[str], draining: frozenset[str]) -> Pending[Presence]:
        """Tells which nodes are gone since the last look or will be, and asks who is there.

        A model that kills whoever loads it fails its files then.
        """
        return Pending(self._actor.look.remote(lost_nodes, draining))

    def validate(self, work: ValidationWork) -> PendingFindings:
        """Has a worker that has nothing else to do validate some chunks."""
        return PendingFindings(self._actor.validate.remote(work))

    def withdraw(self, numbers: list[int]) -> None:
        """Says that nobody needs these validated any more; doesn't wait."""
        self._actor.withdraw.remote(numbers)

    def abort(self) -> None:
        """Gives up: no more work is handed out, what runs stops after its batch.

        Raises:
            Exception: Whatever Ray says of a coordinator that is gone.
        """
        # Asked, not killed: an actor that is just starting would be restarted, with noise.
        ray.get(self._actor.abort.remote(), timeout=_ABORT_SECONDS)

    def kill(self) -> None:
        """Ends the coordinator; what waits for it ends by itself."""
        ray.kill(self._actor, no_restart=True)


class WorkerClient:
    """What a worker asks of the coordinator and tells it.

    Each method raises Ray's own errors where the coordinator is gone: the job is over then.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def ready(self) -> None:
        """Says that this worker is up."""
        here = ray.get_runtime_context()
        worker = here.get_actor_id() or here.get_worker_id()
        ray.get(self._actor.ready.remote(worker, _this_node()))

    def gate(self) -> bool | ValidationWork:
        """Waits for the first valid file; False where the job ended before that.

        Work is to be done meanwhile, and then it is to be asked again.
        """
        word: bool | ValidationWork = ray.get(self._actor.gate.remote())
        return word

    def validated(self, work: ValidationWork, findings: Any) -> None:
        """Says what came of some work; doesn't wait."""
        # In a list: the coordinator need not have them, they are large.
        self._actor.validated.remote(work.number, [ray.put(findings)])

    def begin_load(self) -> None:
        """Says that this actor begins to load the model."""
        ray.get(self._actor.begin_load.remote(_this_node()))

    def end_load(self) -> None:
        """Says that it has, or that it can't; doesn't wait."""
        self._actor.end_load.remote(_this_node())

    def enter(self, seat: int) -> Sitting:
        """Takes a seat."""
        aborted = self._actor.aborted.remote()
        turn = ray.get(self._actor.enter.remote(seat, _this_node(), [aborted]))
        return Sitting(self._actor, seat, turn, aborted)

    def job_over(self) -> Any:
        """Ray's reference to something that is there, or fails, when the job is over."""
        return self._actor.aborted.remote()


class Sitting:
    """A worker's turn in a seat. Reports go out beside the work until it is left."""

    def __init__(self, actor: Any, seat: int, turn: int, aborted: Any) -> None:
        self._actor = actor
        self._seat = seat
        self._turn = turn
        self._aborted = aborted
        # Whether reports were heard is looked after beside the work, which it would hold up.
        self._telling = ThreadPoolExecutor(1, thread_name_prefix="sheaf-report")

    def take(self) -> ChunkWork | ValidationWork | NodeDrains | None:
        """Waits for work; None where there will be no more."""
        work: ChunkWork | ValidationWork | NodeDrains | None = ray.get(
            self._actor.take.remote(self._seat, self._turn)
        )
        return work

    def report(self, report: ChunkReport) -> None:
        """Tells what came of a chunk; doesn't wait."""

        def tell() -> Any:
            return self._actor.report.remote(self._seat, report)

        self._telling.submit(_surely, tell, tell())

    def hung(self, file: int, index: int, rows: frozenset[int], message: str) -> None:
        """Tells that a batch ran out of time, just before this process ends for it."""
        said = self._actor.hung.remote(self._seat, self._turn, file, index, rows, message)
        ray.get(said, timeout=_TELL_SECONDS)

    def wait_for_abort(self) -> None:
        """Waits until the driver gives up, or the coordinator is gone."""
        with suppress(Exception):
            _surely(self._actor.aborted.remote, self._aborted)

    def leave(self) -> None:
        """Leaves, once all reports have been heard."""
        self._telling.shutdown(wait=True)
        with suppress(ray.exceptions.RayError):  # the job is over
            _surely(lambda: self._actor.leave.remote(self._seat, self._turn))


def _this_node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _surely(call: Callable[[], Any], under_way: Any = None) -> None:
    """Waits for a call that may be made twice, and makes it again where it got lost.

    A broken connection takes calls with it. A report that was lost would leave its chunk open,
    and all others waiting for it, for ever.

    Args:
        call: Makes the call; gives its reference.
        under_way: The reference, where it has been made already.
    """
    while True:
        try:
            ray.get(call() if under_way is None else under_way)
            return
        except ray.exceptions.ActorUnavailableError:
            under_way = None
            time.sleep(_AGAIN_SECONDS)
