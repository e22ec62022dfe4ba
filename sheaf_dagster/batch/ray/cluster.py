"""The Ray that a job runs on: found or started, silenced, and checked for capacity."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sheaf_dagster.batch.ray.capacity import WorkerPlan, places, shortage
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig, refuse_ray_client, verify_limits
from sheaf_dagster.batch.ray.inside import LOGGER_OF_TOKENS, cluster_behind, cpus_counted
from sheaf_dagster.batch.ray.reaching import require_answer
from sheaf_dagster.errors import ClusterCapacityError, ClusterError, SheafError, SpecError

__all__ = [
    "alive_nodes",
    "ray_session",
    "surely_fits_here",
    "verify_capacity",
    "worker_slots",
]

log = logging.getLogger(__name__)

_START_TRIES = 3
"""On a busy machine a node may not be up in the time that Ray gives it, which can't be set."""


@contextmanager
def ray_session(config: ClusterConfig | None = None) -> Iterator[bool]:
    """The Ray of this process, or the one that ``config`` names; stopped only if started here.

    Each job opens one. Opened around several jobs, or around several Dagster runs of one process,
    it lets them share one Ray instead of starting one each::

        with ray_session():
            for spec in specs:
                runner.run(spec)

    Args:
        config: The cluster; without one, Ray is started on this machine, unless ``RAY_ADDRESS`` is set.

    Yields:
        Whether others may use the same cluster at the same time.

    Raises:
        ClusterError: The cluster can't be reached within ``connect_timeout_s``.
        SpecError: A local Ray can't use its temporary folder, or ``shared_gpu_limit`` is given
            for it.
    """
    import ray

    config = config or ClusterConfig()
    if ray.is_initialized():
        if ray.util.client.ray.is_connected():
            refuse_ray_client("ray://…")
        yield True
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {
        "logging_level": "ERROR",
        "log_to_driver": False,
        "configure_logging": False,
    }
    if config.address is None and not os.environ.get("RAY_ADDRESS"):
        # Without an address Ray would join whatever cluster this machine was last part of.
        options |= {"address": "local", "include_dashboard": False}
    else:
        if config.address is None:
            refuse_ray_client(os.environ["RAY_ADDRESS"])
        options["address"] = config.address
    private = options["address"] == "local"
    if private and config.shared_gpu_limit is not None:
        raise SpecError(
            "shared_gpu_limit counts the GPUs of all jobs on one cluster, but this job would start "
            'its own Ray, which no other job can see; start one for the machine ("ray start '
            '--head") and give address="auto", or leave shared_gpu_limit out'
        )
    where = config.address or os.environ.get("RAY_ADDRESS") or "this machine"
    cluster = None if private else cluster_behind(where)
    if cluster is not None:
        named = cluster if where == "auto" else where
        require_answer(cluster, config.connect_timeout_s, named)
    if private:
        _start(options)
    else:
        _connect(options, where)
    try:
        yield not private
    finally:
        ray.shutdown()


def _not_started(error: Exception) -> SheafError:
    """Why a Ray of our own isn't there; where its folder is the reason, that stays so."""
    if "AF_UNIX path length" in str(error):
        return SpecError(
            f"the path of the temporary folder is too long for Ray's sockets: {error}; set TMPDIR, "
            "or RAY_TMPDIR for Ray alone, to a short path such as /tmp"
        )
    if isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError)):
        return SpecError(
            f"Ray can't use its temporary folder: {error}; set TMPDIR, or RAY_TMPDIR for Ray alone, "
            "to a folder that can be written"
        )
    return ClusterError(f"Ray can't be started on this machine: {error}")


def _connect(options: dict[str, Any], where: str) -> None:
    import ray

    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as e:
        raise ClusterError(
            f"Ray at {where} can't be reached: {e}; check the address, that the cluster is up, and "
            "that its Ray and Python versions match the driver's"
        ) from e


def _start(options: dict[str, Any]) -> None:
    """Starts a Ray for this job; a few times where it doesn't come up in the 30 s that it has."""
    import ray

    for left in reversed(range(_START_TRIES)):
        try:
            with _no_note_on_tokens():
                ray.init(**options)
            return
        except Exception as e:  # of a node that didn't come up Ray says so with no class of its own
            ray.shutdown()
            error = _not_started(e)
            if not left or not error.retryable:
                raise error from e
            log.warning("%s; trying again", error)


@contextmanager
def _no_note_on_tokens() -> Iterator[None]:
    """Keeps back Ray's note that a new cluster asks for a token, which it does all the same.

    Whoever starts a cluster for others must know; ours is private and ends with the job.
    """
    logger = logging.getLogger(LOGGER_OF_TOKENS)

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Token authentication is enabled")

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _limits(config: ClusterConfig) -> dict[str, float]:
    gpus = [v for v in (config.gpu_limit, config.shared_gpu_limit) if v is not None]
    limits = {"GPU": min(gpus, default=None), "CPU": config.cpu_limit}
    return {k: v for k, v in limits.items() if v is not None}


def verify_capacity(plan: WorkerPlan, config: ClusterConfig) -> None:
    """Refuses a job that can't fit the limits or the live cluster.

    A cluster that grows on demand is trusted up to the limits; what it can't bring up in
    ``wait_for_capacity_s`` is refused then.

    Raises:
        ClusterCapacityError: With the sum spelled out.
    """
    verify_limits(plan, config)
    if plan.compute == "local" or config.autoscaling:
        return
    problem = shortage(plan.demand, plan.workers, alive_nodes(), plan.compute)
    if problem is not None:
        raise ClusterCapacityError(problem)


def alive_nodes() -> list[dict[str, float]]:
    """Total resources of each node of the cluster that is up."""
    import ray

    return [n["Resources"] for n in ray.nodes() if n["Alive"]]


def surely_fits_here(plan: WorkerPlan, config: ClusterConfig) -> bool:
    """Whether a local Ray, still to be started, is bound to have room for the job.

    Only then may work begin before Ray is up; any other job is checked against the cluster
    first, before a row is read.
    """
    import ray

    elsewhere = config.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized() or elsewhere or os.environ.get("RAY_OVERRIDE_RESOURCES"):
        return False
    besides_cpus = plan.demand.keys() - {"CPU"}
    return not besides_cpus and plan.demand.get("CPU", 0.0) * plan.workers <= cpus_counted()


def worker_slots(plan: WorkerPlan, config: ClusterConfig) -> int:
    """How many workers can run at once."""
    if plan.compute == "actors":
        return plan.workers
    demand = plan.demand or {"CPU": 1.0}
    limits = {k: v for k, v in _limits(config).items() if k in demand}
    allowed = min((int((v + 1e-6) // demand[k]) for k, v in limits.items()), default=None)
    room = sum(places(demand, node) for node in alive_nodes())
    if allowed is None:
        return max(1, room)
    return max(1, allowed if config.autoscaling else min(room, allowed))
