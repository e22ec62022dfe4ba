"""Who of a job's workers is up, on which node, and who dies while loading the model."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from sheaf_dagster.batch.ray.records import MAX_ATTEMPTS
from sheaf_dagster.errors import WorkerCrashError

__all__ = ["Presence", "Roster"]


class Presence(NamedTuple):
    """Who is there, and whether there is anything to do for them."""

    up: int
    """Workers that are up, or have been heard of."""
    at_work: int
    """Seats that a worker is in: tasks that have a place."""
    has_work: bool


class Roster:
    """The workers of one job.

    Args:
        slots: Workers that the job has at most.
        backend: What they run, for messages.
    """

    def __init__(self, slots: int, backend: str) -> None:
        self._slots = slots
        self._backend = backend
        self._node_of: dict[str, str] = {}
        self._lost_nodes: set[str] = set()
        # Loads that began on a node and have not ended: those under way, and those that a death
        # cut short.
        self._loading: Counter[str] = Counter()

    def ready(self, worker: str, node: str) -> None:
        """A worker is up, its model not loaded yet."""
        self._node_of[worker] = node

    @property
    def up(self) -> int:
        """Workers that are up, or have been heard of."""
        return len(self._node_of)

    def begin_load(self, node: str) -> None:
        """An actor begins to load the model."""
        if node not in self._lost_nodes:
            self._loading[node] += 1

    def end_load(self, node: str) -> None:
        """An actor has loaded the model, or knows why it can't."""
        if self._loading[node] > 0:
            self._loading[node] -= 1

    def nodes_lost(self, nodes: set[str]) -> None:
        """Nodes are gone, with the workers on them; the model is not to blame."""
        self._lost_nodes |= nodes
        for node in nodes:
            del self._loading[node]
        self._node_of = {w: n for w, n in self._node_of.items() if n not in nodes}

    def killed_by_their_model(self) -> WorkerCrashError | None:
        """Why no more actors should load the model; None while all may be well.

        Ray starts an actor whose process dies in ``load()`` again and again; counting is what
        ends it. To be asked once it is known which nodes are gone.
        """
        if self._loading.total() <= self._slots + MAX_ATTEMPTS:
            return None
        return WorkerCrashError(
            f"backend {self._backend!r} killed {MAX_ATTEMPTS + 1} actors while they loaded the "
            "model (segmentation fault, exit, or killed for memory); look at the actors' log, "
            "and give the model more memory_gb or fewer actors"
        )
