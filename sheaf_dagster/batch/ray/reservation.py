"""A pool of actors gets its capacity whole or not at all, in turn, and says whom it waits for."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import uuid
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sheaf_dagster.batch.ray.capacity import WorkerPlan, amounts
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.batch.ray.engine_choice import Engine
from sheaf_dagster.batch.ray.gpu_queue import PLACE_MARK, holder_of
from sheaf_dagster.errors import ClusterBusyError

__all__ = ["describe_capacity", "placement", "reserved_pool"]

log = logging.getLogger(__name__)

TELL_EVERY_SECONDS = 10.0

_MARK = "sheaf_dagster"
_WAITING = ("PENDING", "PREPARED")


@dataclass(frozen=True)
class _Group:
    """A placement group of any job of the cluster, as Ray's table shows it."""

    name: str
    state: str
    total: Mapping[str, float]

    @property
    def ticket(self) -> float | None:
        """When its job came; None for groups that aren't ours."""
        mark, _, rest = self.name.partition("|")
        return float(rest.split("|")[0]) if mark == _MARK else None

    @property
    def holder(self) -> str:
        """Who it belongs to, in words."""
        return self.name.split("|")[2] if self.ticket is not None else self.name or "unnamed group"


@contextmanager
def reserved_pool(
    plan: WorkerPlan, config: ClusterConfig, engine: Engine, stop: threading.Event
) -> Iterator[Any]:
    """The capacity of a whole pool of actors, as a Ray placement group; None where none is needed.

    Two jobs that got half of their pools each would wait for each other for ever; here a job
    holds all that it needs or nothing. Jobs take turns in the order in which they came: a small
    one does not slip past a large one that waits for the same GPUs. Ray takes the capacity back
    at the end, and when the driver dies.

    Raises:
        ClusterBusyError: ``wait_for_capacity_s`` passed; the message says who holds what.
        CancelledError: ``stop`` was set, since the job is over.
    """
    pooled = plan.compute == "actors" and bool(plan.demand)
    if not pooled or (engine == "ray_data" and not _pools_can_be_placed()):
        yield None
        return
    from ray.util.placement_group import remove_placement_group

    place = _Place(plan.demand, plan.workers, config, stop)
    try:
        while True:
            group = place.take()
            if not place.must_yield():
                break
            remove_placement_group(group)
            place.let_pass()
        yield group
    finally:
        place.give_back()


def placement(group: Any) -> dict[str, Any]:
    """What puts the actors of a Ray Data operator into a reserved pool."""
    if group is None:
        return {}
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    # Ray Data warns that it will take no such argument some day; see _pools_can_be_placed.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    return {
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            group, placement_group_capture_child_tasks=False
        )
    }


def _pools_can_be_placed() -> bool:
    """Whether this Ray Data lets an operator's actors be placed (announced to end with 2.64).

    Without it a pool comes up actor by actor, and the watch over it still bounds the wait.
    """
    import ray.data

    parameters = inspect.signature(ray.data.Dataset.map_batches).parameters.values()
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


class _Place:
    """One job's place in the queue for capacity."""

    def __init__(
        self,
        demand: Mapping[str, float],
        workers: int,
        config: ClusterConfig,
        stop: threading.Event,
    ) -> None:
        self._demand = demand
        self._workers = workers
        self._stop = stop
        self._patience = config.wait_for_capacity_s
        holder = holder_of(config).replace("|", "/")
        self._ticket = f"{_MARK}|{time.time():.6f}|{holder}"
        self._since = time.monotonic()
        self._tell_at = self._since + TELL_EVERY_SECONDS
        self._group: Any = None

    def take(self) -> Any:
        """Asks Ray for all of it and waits until it is there."""
        from ray.util.placement_group import placement_group

        bundles = [dict(self._demand) for _ in range(self._workers)]
        # The name is seen by all jobs of the cluster: it is the ticket in the queue.
        self._group = placement_group(bundles, "PACK", name=f"{self._ticket}|{uuid.uuid4().hex}")
        while not self._group.wait(1):
            self._wait()
        return self._group

    def must_yield(self) -> bool:
        """Whether an older job waits for what this one has just been given."""
        return bool(self._older_waiting())

    def let_pass(self) -> None:
        """Waits for the older jobs that this one was about to overtake."""
        told = False
        while older := self._older_waiting():
            if not told:
                names = "; ".join(f"{g.holder}: {', '.join(amounts(g.total))}" for g in older)
                log.info("waiting for capacity: jobs that came first have priority: %s", names)
                told = True
            self._wait()
            time.sleep(0.5)

    def give_back(self) -> None:
        """Returns the capacity."""
        import ray
        from ray.util.placement_group import remove_placement_group

        if self._group is not None and ray.is_initialized():
            try:
                remove_placement_group(self._group)
            except Exception as e:
                log.debug("the reservation was gone: %s", e)

    def _older_waiting(self) -> list[_Group]:
        import ray

        mine = float(self._ticket.split("|")[1])
        older = [
            g for g in _groups() if g.ticket is not None and g.ticket < mine and g.state in _WAITING
        ]
        if not older:
            return []
        free = ray.available_resources()
        return [g for g in older if self._is_in_the_way_of(g, free)]

    def _is_in_the_way_of(self, other: _Group, free: Mapping[str, float]) -> bool:
        """CPUs and memory are in the way only where they are short; devices are always."""
        return any(
            other.total.get(name, 0.0) > (free.get(name, 0.0) if name in ("CPU", "memory") else 0.0)
            for name in self._demand
        )

    def _wait(self) -> None:
        if self._stop.is_set():
            raise CancelledError
        now = time.monotonic()
        waited = now - self._since
        if now < self._tell_at and waited < self._patience:
            return
        self._tell_at = now + TELL_EVERY_SECONDS
        wanted = ", ".join(amounts({k: v * self._workers for k, v in self._demand.items()}))
        text = (
            f"0 of {self._workers} actors up after {waited:.0f} s; wanted at once: {wanted}; "
            + describe_capacity(besides=self._ticket)
        )
        if waited >= self._patience:
            raise ClusterBusyError(
                f"no capacity within {self._patience:g} s (wait_for_capacity_s): {text}; run again "
                "later, wait longer, or ask for less"
            )
        log.info("waiting for capacity: %s", text)


def describe_capacity(*, besides: str = "") -> str:
    """``"free: 1 GPU, 3 CPUs; held by: asset a (run 1b2c3d4e): 3 GPUs; waiting: …"``.

    Args:
        besides: Start of the name of a group to leave out: the caller's own.
    """
    import ray

    shown = ("CPU", "GPU", "memory")
    total = {k: v for k, v in ray.cluster_resources().items() if _is_capacity(k)}
    free = {k: v for k, v in ray.available_resources().items() if k in total}
    groups = [g for g in _groups() if not (besides and g.name.startswith(besides))]
    held = [g for g in groups if g.state not in _WAITING]
    waiting = [g for g in groups if g.state in _WAITING]
    rest = dict(total)
    for name in rest:
        rest[name] -= free.get(name, 0.0) + sum(g.total.get(name, 0.0) for g in held)
    rest = {k: v for k, v in rest.items() if v > 1e-3 and k != "memory"}
    names = [k for k in total if k in shown[:2] or k not in shown]
    parts = ["free: " + ", ".join(amounts({k: free.get(k, 0.0) for k in names}))]
    holders = [f"{g.holder}: {', '.join(amounts(g.total))}" for g in held]
    if rest:
        holders.append(f"other tasks and actors: {', '.join(amounts(rest))}")
    if holders:
        parts.append("held by: " + "; ".join(holders))
    if waiting:
        parts.append(
            "also waiting: "
            + "; ".join(f"{g.holder}: {', '.join(amounts(g.total))}" for g in waiting)
        )
    return "; ".join(parts)


def _is_capacity(name: str) -> bool:
    """Not Ray's marks of nodes, devices, stores and groups."""
    return not (
        name.startswith(("node:", "bundle", "accelerator_type:", "object_store_memory"))
        or "_group_" in name
    )


def _groups() -> list[_Group]:
    """The placement groups of the cluster that hold something or wait for it."""
    from ray.util.placement_group import placement_group_table

    found = []
    for row in placement_group_table().values():
        if row["state"] == "REMOVED" or row["name"].startswith(PLACE_MARK):
            continue
        total: dict[str, float] = defaultdict(float)
        for bundle in row["bundles"].values():
            for name, value in bundle.items():
                total[name] += value
        found.append(_Group(row["name"], row["state"], dict(total)))
    return found
