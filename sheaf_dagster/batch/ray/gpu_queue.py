"""One limit of GPUs for all jobs on a cluster: they queue for it in the order in which they came."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sheaf_dagster.batch.ray.capacity import amount
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig

__all__ = ["PLACE_MARK", "gpu_share", "holder_of"]

log = logging.getLogger(__name__)

TELL_EVERY_SECONDS = 10.0

PLACE_MARK = "sheaf_dagster_queue"
"""Start of the names of the placement groups that are places in the queue."""

_LOOK_EVERY_SECONDS = 0.5
_EPSILON = 1e-6


@dataclass(frozen=True, order=True)
class _Place:
    """A job's place in the queue.

    Attributes:
        came: When the job came (seconds since 1970); the order of the queue.
        tag: Tells places of the same moment apart.
        gpus: What the job may reserve.
        holder: The job, in words.
    """

    came: float
    tag: str
    gpus: float
    holder: str

    @property
    def name(self) -> str:
        return f"{PLACE_MARK}|{self.came:.6f}|{self.tag}|{self.gpus:g}|{self.holder}"

    @classmethod
    def read(cls, name: str) -> _Place | None:
        """The place that a placement group's name stands for; None for any other group."""
        mark, _, rest = name.partition("|")
        if mark != PLACE_MARK:
            return None
        came, tag, gpus, holder = rest.split("|", 3)
        return cls(float(came), tag, float(gpus), holder)

    def __str__(self) -> str:
        return f"{self.holder}: {amount('GPU', self.gpus)}"


@contextmanager
def gpu_share(gpus: float, config: ClusterConfig, stop: threading.Event) -> Iterator[None]:
    """A job's share of ``shared_gpu_limit``, from its turn to its end.

    A job's turn has come when it fits the limit together with all the jobs that came before it.
    So none is overtaken, however large it is. A place in the queue is a placement group that
    holds one byte: every job of the cluster sees its name, and Ray removes it when its driver dies.

    There is no limit to the wait, as there is none in Dagster's pools: those before this job are
    at work. The log says who they are.

    Args:
        gpus: What the job may reserve at the same time.
        config: The limit, and what the job is called.
        stop: Set when the job no longer needs it.

    Raises:
        CancelledError: ``stop`` was set before it was the job's turn.
    """
    limit = config.shared_gpu_limit
    if limit is None or gpus <= 0:
        yield
        return
    from ray.util.placement_group import placement_group, remove_placement_group

    # After all that are there already, whatever the clocks of their machines say.
    now = max([time.time(), *(p.came + 1e-3 for p in _places())])
    mine = _Place(round(now, 6), uuid.uuid4().hex[:8], gpus, holder_of(config).replace("|", "/"))
    group = placement_group([{"memory": 1}], name=mine.name)
    try:
        _wait_for_turn(mine, limit, stop)
        yield
    finally:
        with suppress(Exception):  # the cluster may be gone, and the place with it
            remove_placement_group(group)


def holder_of(config: ClusterConfig) -> str:
    """What a job is called in the messages of others."""
    return config.holder or f"{socket.gethostname()}, process {os.getpid()}"


def _wait_for_turn(mine: _Place, limit: float, stop: threading.Event) -> None:
    since = time.monotonic()
    tell_at = since
    seen = False
    while True:
        places = _places()
        before = sorted(p for p in places if (p.came, p.tag) < (mine.came, mine.tag))
        # Of two that come in the same moment, each must have been able to see the other.
        if seen and sum(p.gpus for p in before) + mine.gpus <= limit + _EPSILON:
            break
        if seen and time.monotonic() >= tell_at:
            tell_at = time.monotonic() + TELL_EVERY_SECONDS
            log.info(
                "waiting for GPUs: this job wants %s of the %s that all jobs may hold "
                "(shared_gpu_limit); ahead of it: %s",
                amount("GPU", mine.gpus),
                f"{limit:g}",
                "; ".join(map(str, before)),
            )
        seen = any(p.tag == mine.tag for p in places)
        if stop.wait(_LOOK_EVERY_SECONDS):
            raise CancelledError
    if tell_at > since:
        log.info("it is this job's turn after %.0f s", time.monotonic() - since)


def _places() -> list[_Place]:
    from ray.util.placement_group import placement_group_table

    rows = placement_group_table().values()
    found = (_Place.read(row["name"]) for row in rows if row["state"] != "REMOVED")
    return [place for place in found if place is not None]
