"""Watches a job's workers from the driver: says what it waits for, gives up, sees nodes vanish."""

from __future__ import annotations

import logging
import time

from sheaf_dagster.batch.ray.capacity import WorkerPlan, amounts
from sheaf_dagster.batch.ray.client import DriverClient, Pending
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.batch.ray.inside import draining_nodes
from sheaf_dagster.batch.ray.reservation import TELL_EVERY_SECONDS, describe_capacity
from sheaf_dagster.batch.ray.roster import Presence
from sheaf_dagster.errors import ClusterBusyError

__all__ = ["PoolWatch"]

log = logging.getLogger(__name__)

_LOOK_EVERY_SECONDS = 1.0

_START_SECONDS = 120.0
"""A worker whose place is free may take this long to come up: its runtime environment, imports."""

_CHANGE_SECONDS = 60.0
"""A job of tasks that has had a worker may be without one for so long, between two leaves or
after a death: whether its place is taken by others or by the next worker, whose process starts and
imports the model's libraries, can't be told apart."""


class PoolWatch:
    """What a job's coordinator and Ray know of its workers.

    Ray itself waits for capacity without a word and without an end.

    Args:
        coordinator: The job's.
        plan: Of what kind they are, and what each reserves.
        wanted: Workers that are to come up.
        config: How long to wait while none of them has a place.
    """

    def __init__(
        self,
        coordinator: DriverClient,
        plan: WorkerPlan,
        wanted: int,
        config: ClusterConfig,
    ) -> None:
        self._coordinator = coordinator
        self._demand = plan.demand
        self._actors = plan.compute == "actors"
        self._wanted = wanted
        self._patience = config.wait_for_capacity_s
        now = time.monotonic()
        self._look_at = now + _LOOK_EVERY_SECONDS
        self._tell_at = now + TELL_EVERY_SECONDS
        self._none_since: float | None = None
        self._had_one = False
        # The place that is no longer free may be the one of our own worker, which is starting.
        self._had_room = self._has_room()
        self._asked: Pending[Presence] | None = None
        self._lost: set[str] = set()
        self._draining: frozenset[str] = frozenset()
        self._nodes: set[str] = self._alive()

    def look(self) -> None:
        """Does its round once a second; never waits for an answer.

        Raises:
            ClusterBusyError: There is work and no worker, for longer than ``wait_for_capacity_s``:
                at the start of a job, or when others took the place that one of its tasks had.
            ClusterError: The coordinator is gone.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_SECONDS
        self._see_nodes()
        if self._asked is None:
            self._asked = self._coordinator.look(self._lost, self._draining)
            self._lost = set()
        if not self._asked.is_there:
            return
        there, self._asked = self._asked.get(), None
        up = there.up if self._actors else there.at_work
        self._had_one |= there.up > 0
        if up or not there.has_work:
            self._none_since = None
        elif self._none_since is None:
            self._none_since = now
        if up and not self._actors:
            self._tell_at = now + TELL_EVERY_SECONDS
        if there.has_work and (up == 0 or (self._actors and up < self._wanted)):
            self._tell(now, up)

    def _tell(self, now: float, up: int) -> None:
        waited = now - self._none_since if self._none_since is not None else 0.0
        patience = self._patience
        if self._actors or self._has_room() or (self._had_room and not self._had_one):
            patience = max(patience, _START_SECONDS)
        elif self._had_one:
            patience = max(patience, _CHANGE_SECONDS)
        if now < self._tell_at and waited < patience:
            return
        self._tell_at = now + TELL_EVERY_SECONDS
        text = f"{self._state(up)}; {describe_capacity()}"
        if waited >= patience:
            none = "no worker had a place for" if self._had_one else "no worker came up within"
            limit = "wait_for_capacity_s"
            if patience > self._patience:
                limit += f"={self._patience:g}, but a worker may take so long to start"
            raise ClusterBusyError(
                f"{none} {patience:g} s ({limit}): {text}; run again later (finished chunks are "
                "kept), wait longer, or check the cluster"
            )
        log.info("waiting for capacity: %s", text)

    def _state(self, up: int) -> str:
        if self._actors:
            return f"{up} of {self._wanted} actors up"
        if not self._had_one:
            return "no task could start yet"
        wanted = ", ".join(amounts(self._demand))
        return f"no task has a place any more{f'; wanted: {wanted}' if wanted else ''}"

    def _has_room(self) -> bool:
        import ray

        free = ray.available_resources()
        return all(free.get(name, 0.0) >= each for name, each in self._demand.items())

    def _see_nodes(self) -> None:
        alive = self._alive()
        draining = frozenset(draining_nodes() & alive)
        if draining - self._draining:
            log.warning(
                "%d node(s) of the cluster will be taken away soon; their workers finish the "
                "chunks that they hold and leave",
                len(draining),
            )
        self._draining = draining
        lost = self._nodes - alive
        self._nodes = alive
        if lost:
            self._lost |= lost
            log.warning(
                "%d node(s) of the cluster are gone, %d are left; other workers run their "
                "unfinished chunks",
                len(lost),
                len(alive),
            )

    @staticmethod
    def _alive() -> set[str]:
        import ray

        return {n["NodeID"] for n in ray.nodes() if n["Alive"]}
