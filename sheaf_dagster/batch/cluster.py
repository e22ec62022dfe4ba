"""The Ray that a job runs on: found or started, silenced, and checked for capacity."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sheaf_dagster.batch.cluster_config import ClusterConfig, check_limits, spell_demand
from sheaf_dagster.batch.spec import BatchSpec, ModelSpec
from sheaf_dagster.errors import ClusterCapacityError, ClusterError

__all__ = ["check_capacity", "ray_session", "worker_slots"]

log = logging.getLogger(__name__)


@contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """The Ray of this process, or the one that ``config`` names; stopped only if started here.

    Raises:
        ClusterError: The cluster can't be reached.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {
        "logging_level": "ERROR",
        "log_to_driver": False,
        "configure_logging": False,
    }
    if config.address is None and not os.environ.get("RAY_ADDRESS"):
        # "local": never one that happens to run on this machine.
        options |= {"address": "local", "include_dashboard": False}
    else:
        options["address"] = config.address
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as e:
        raise ClusterError(
            f"Ray at {config.address or os.environ.get('RAY_ADDRESS') or 'this machine'} can't be "
            f"reached: {e}; check the address, that the cluster is up, and that its Ray and Python "
            "versions are the driver's"
        ) from e
    try:
        yield
    finally:
        ray.shutdown()


def _demand(model: ModelSpec) -> dict[str, float]:
    """What one worker reserves, in Ray's names."""
    r = model.resources
    demand = {"CPU": r.num_cpus, "GPU": r.num_gpus, **r.custom}
    if r.memory_gb:
        demand["memory"] = r.memory_gb * 2**30
    return {k: v for k, v in demand.items() if v > 0}


def _limits(config: ClusterConfig) -> dict[str, float]:
    limits = {"GPU": config.gpu_limit, "CPU": config.cpu_limit}
    return {k: v for k, v in limits.items() if v is not None}


def check_capacity(model: ModelSpec, spec: BatchSpec, config: ClusterConfig) -> None:
    """Refuses a job that can't fit the limits or the live cluster.

    Raises:
        ClusterCapacityError: With the sum spelled out.
    """
    check_limits(model, spec, config)
    if spec.compute == "local":
        return
    import ray

    actors = (spec.num_actors or 1) if spec.compute == "actors" else 1
    deadline = time.monotonic() + (config.wait_for_capacity_s if config.autoscaling else 0)
    while True:
        alive = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        problem = _shortage(_demand(model), actors, alive, spec.compute)
        if problem is None or (config.autoscaling and _limits(config)):
            return
        if time.monotonic() >= deadline:
            raise ClusterCapacityError(problem)
        log.info("waiting for the cluster to grow: %s", problem)
        time.sleep(min(5.0, max(0.1, deadline - time.monotonic())))


def _shortage(
    demand: dict[str, float], workers: int, nodes: list[dict[str, float]], compute: str
) -> str | None:
    """What is missing for that many workers on these nodes; None where they fit.

    A worker must fit one node: two GPUs on two machines are no place for a worker of two.
    """
    places = (
        sum(int(min((node.get(k, 0.0) + 1e-6) // v for k, v in demand.items())) for node in nodes)
        if demand
        else workers
    )
    if places >= workers:
        return None
    for name, each in sorted(demand.items(), key=lambda kv: kv[0] != "GPU"):
        total = sum(node.get(name, 0.0) for node in nodes)
        if each * workers > total + 1e-6:
            return (
                f"{spell_demand(workers, each, name, compute)}, but the Ray cluster has "
                f"{total:g} in {len(nodes)} node(s); lower num_actors or the model's resources, "
                "or use a larger cluster"
            )
    wanted = ", ".join(f"{v:g} {k}" for k, v in demand.items())
    return (
        f"{workers} worker(s) of {wanted} each don't fit the cluster's {len(nodes)} node(s), "
        f"which have room for {places}; a worker must fit one node. Lower num_actors or the "
        "model's resources"
    )


def worker_slots(model: ModelSpec, spec: BatchSpec, config: ClusterConfig) -> int:
    """How many workers can run at once."""
    if spec.compute == "actors":
        return spec.num_actors or 1
    import ray

    demand = _demand(model) or {"CPU": 1.0}
    total = {**ray.cluster_resources()}
    for name, limit in _limits(config).items():
        total[name] = limit if config.autoscaling else min(total.get(name, 0.0), limit)
    return max(1, int(min((total.get(k, 0.0) + 1e-6) // v for k, v in demand.items())))
