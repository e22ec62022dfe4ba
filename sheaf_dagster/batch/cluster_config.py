"""Which Ray a job runs on, and how much of it a job may take. Imports no ray."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from sheaf_dagster.batch.spec import BatchSpec, ModelSpec
from sheaf_dagster.errors import ClusterCapacityError

__all__ = ["ClusterConfig", "check_limits"]


class ClusterConfig(BaseModel):
    """Where Ray is, and the limits that a job keeps to."""

    model_config = ConfigDict(extra="forbid")

    address: str | None = Field(
        default=None,
        description='None: the Ray of this process, or a local one; "auto" or "host:port" of a '
        "cluster's GCS.",
    )
    gpu_limit: float | None = Field(
        default=None, ge=0, description="GPUs that a job may reserve; None: what the cluster has."
    )
    cpu_limit: float | None = Field(
        default=None, gt=0, description="CPUs that a job may reserve; None: what the cluster has."
    )
    autoscaling: bool = Field(
        default=False,
        description="The cluster grows on demand: trust the limits beyond what is alive now.",
    )
    wait_for_capacity_s: float = Field(
        default=600.0,
        ge=0,
        description="How long to wait for busy or starting capacity before giving up (seconds).",
    )


def check_limits(model: ModelSpec, spec: BatchSpec, config: ClusterConfig) -> None:
    """Refuses a job that can't fit the configured limits; needs no cluster.

    Raises:
        ClusterCapacityError: With the sum spelled out.
    """
    if spec.compute == "local":
        return
    actors = spec.num_actors if spec.compute == "actors" else 1
    assert actors is not None  # BatchSpec guarantees it
    for unit, each, limit in (
        ("GPU", model.resources.num_gpus, config.gpu_limit),
        ("CPU", model.resources.num_cpus, config.cpu_limit),
    ):
        if limit is not None and each * actors > limit + 1e-9:
            raise ClusterCapacityError(
                f"{spell_demand(actors, each, unit, spec.compute)}, but the limit "
                f"({unit.lower()}_limit) is {limit:g}; lower num_actors or the model's "
                f"num_{unit.lower()}s, or raise {unit.lower()}_limit"
            )


def spell_demand(count: int, each: float, unit: str, compute: str) -> str:
    """``"3 actors × 1 GPU = 3 GPUs"``."""
    what = {"actors": "actor", "tasks": "task"}[compute] + ("" if count == 1 else "s")
    total = count * each
    return f"{count} {what} × {each:g} {unit} = {total:g} {unit}{'' if total == 1 else 's'}"
