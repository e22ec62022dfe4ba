"""The workers that a job on Ray is to have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.batch.spec import Compute
from sheaf_dagster.batch.worker.loading import ModelContext

if TYPE_CHECKING:
    from sheaf_dagster.batch.ray.client import WorkerClient

__all__ = ["Workers"]


@dataclass(frozen=True)
class Workers:
    """All that it takes to start them.

    Attributes:
        context: Their model.
        compute: Whether they are tasks or actors.
        config: The cluster and its limits.
        slots: How many there are at most.
        coordinator: The job's, as they speak with it.
        pool: The placement group of a pool of actors, where there is one.
    """

    context: ModelContext
    compute: Compute
    config: ClusterConfig
    slots: int
    coordinator: WorkerClient
    pool: Any = None

    @property
    def reserved(self) -> dict[str, Any]:
        """What each of them reserves, in the words of Ray's options."""
        resources = self.context.spec.resources
        options: dict[str, Any] = {"num_cpus": resources.num_cpus}
        if resources.num_gpus:
            options["num_gpus"] = resources.num_gpus
        if resources.memory_gb:
            options["memory"] = int(resources.memory_gb * 2**30)
        if resources.custom:
            options["resources"] = resources.custom
        return options
