"""Arithmetic of what a job's workers reserve and what a cluster has; imports no ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sheaf_dagster.batch.model_spec import ResourceConfig
from sheaf_dagster.batch.spec import BatchOptions, Compute

__all__ = ["WorkerPlan", "amounts", "demand_of", "places", "shortage", "spell_demand"]

Resources = Mapping[str, float]

_EPSILON = 1e-6
"""Ray counts resources in ten-thousandths; sums of fractions stay well inside this."""


@dataclass(frozen=True)
class WorkerPlan:
    """What a job's workers need at the same time.

    Attributes:
        compute: Where they run.
        workers: How many must fit: the whole pool of actors, or one task.
        demand: What each reserves, in Ray's names; bytes for ``memory``.
    """

    compute: Compute
    workers: int
    demand: Mapping[str, float]

    @classmethod
    def of(cls, resources: ResourceConfig, options: BatchOptions) -> WorkerPlan:
        """The plan of a model that reserves so much, in jobs that run so."""
        workers = (options.num_actors or 1) if options.compute == "actors" else 1
        return cls(options.compute, workers, demand_of(resources))


def demand_of(resources: ResourceConfig) -> dict[str, float]:
    """What one worker reserves, in Ray's names; bytes for ``memory``."""
    demand = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.custom}
    if resources.memory_gb:
        demand["memory"] = float(int(resources.memory_gb * 2**30))
    return {name: value for name, value in demand.items() if value > 0}


def places(demand: Resources, node: Resources) -> int:
    """How many workers of that demand one node has room for.

    Fractions of a GPU share one device, never two: 0.4 fits twice on each, not five times
    on two of them.
    """
    return min(
        int(node.get(name, 0.0) + _EPSILON) * int((1 + _EPSILON) // each)
        if name == "GPU" and each < 1
        else int((node.get(name, 0.0) + _EPSILON) // each)
        for name, each in demand.items()
    )


def shortage(
    demand: Resources, workers: int, nodes: Iterable[Resources], compute: str
) -> str | None:
    """What is missing for that many workers on these nodes; None where they fit.

    A worker must fit one node: two GPUs on two machines are no place for a worker of two.
    """
    nodes = list(nodes)
    room = sum(places(demand, node) for node in nodes) if demand else workers
    if room >= workers:
        return None
    for name, each in sorted(demand.items(), key=lambda kv: kv[0] != "GPU"):
        total = sum(node.get(name, 0.0) for node in nodes)
        if each * workers > total + _EPSILON:
            return (
                f"{spell_demand(workers, each, name, compute)}, but the Ray cluster has "
                f"{amount(name, total)} in {len(nodes)} node(s); lower num_actors or the model's "
                "resources, or use a larger cluster"
            )
    wanted = ", ".join(amounts(demand))
    return (
        f"{workers} worker(s) of {wanted} each don't fit the cluster's {len(nodes)} node(s), "
        f"which have room for {room}; a worker must fit one node, and fractions of a GPU one "
        "device. Lower num_actors or the model's resources"
    )


def spell_demand(count: int, each: float, unit: str, compute: str) -> str:
    """``"3 actors × 1 GPU = 3 GPUs"``."""
    what = {"actors": "actor", "tasks": "task"}[compute] + ("" if count == 1 else "s")
    return f"{count} {what} × {amount(unit, each, plural=False)} = {amount(unit, count * each)}"


def amount(name: str, value: float, *, plural: bool = True) -> str:
    """One resource in words: ``"2 GPUs"``, ``"1.5 GiB memory"``, ``"3 tpu_slice"``."""
    if name == "memory":
        return f"{value / 2**30:.4g} GiB memory"
    many = plural and name in ("CPU", "GPU") and value != 1
    return f"{value:g} {name}{'s' if many else ''}"


def amounts(resources: Resources) -> list[str]:
    """Each resource in words, GPUs first."""
    order = {"GPU": 0, "CPU": 1, "memory": 2}
    named = sorted(resources.items(), key=lambda kv: (order.get(kv[0], 3), kv[0]))
    return [amount(name, value) for name, value in named]
