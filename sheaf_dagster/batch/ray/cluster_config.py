"""Which Ray a job runs on, and how much of it a job may take. Imports no ray."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sheaf_dagster.batch.ray.capacity import WorkerPlan, spell_demand
from sheaf_dagster.errors import ClusterCapacityError, SpecError

__all__ = ["ClusterConfig", "refuse_ray_client", "verify_limits"]


class ClusterConfig(BaseModel):
    """Where Ray runs, and the limits that a job keeps to."""

    model_config = ConfigDict(extra="forbid")

    address: str | None = Field(
        default=None,
        description='None: the Ray of this process, or a local one. "auto" or "host:port": the GCS of a '
        "running cluster.",
    )
    connect_timeout_s: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds to try to reach the cluster before the job fails.",
    )
    gpu_limit: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that one job may reserve. None: as many as the cluster has.",
    )
    shared_gpu_limit: float | None = Field(
        default=None,
        gt=0,
        description="GPUs that all jobs of this library on the cluster may reserve together. A job that "
        "would exceed the limit waits for its turn. None: no such limit.",
    )
    cpu_limit: float | None = Field(
        default=None,
        gt=0,
        description="CPUs that one job may reserve. None: as many as the cluster has.",
    )
    autoscaling: bool = Field(
        default=False,
        description="Set this if the cluster grows on demand: the job asks for machines that aren't alive "
        "yet, and waits for them.",
    )
    wait_for_capacity_s: float = Field(
        default=600.0,
        ge=0,
        description="Seconds to wait for capacity that is busy or starting, both at the start and "
        "whenever no task can be placed any more. Then the job fails.",
    )
    engine: Literal["auto", "ray_data", "ray_core"] = Field(
        default="auto",
        description="What starts the workers. ray_data: Ray Data. ray_core: plain Ray, which saves about "
        "four CPU seconds at the start. auto: ray_core for jobs with less than 2 GiB of input "
        "on a cluster of fixed size, ray_data otherwise. The output is the same.",
    )
    holder: str = Field(
        default="",
        description="Name of the job in the messages of other jobs that wait for its capacity. By "
        "default: its model, host and process.",
    )

    @field_validator("address")
    @classmethod
    def _no_ray_client(cls, value: str | None) -> str | None:
        refuse_ray_client(value)
        return value


def refuse_ray_client(address: str | None) -> None:
    """Refuses an address over which Ray Data can't run.

    Raises:
        SpecError: The address is a Ray Client address. The message names what works instead.
    """
    if address and address.strip().lower().startswith("ray://"):
        raise SpecError(
            f"address {address!r} is a Ray Client address, and Ray Data does not run over Ray Client. "
            'Use "auto" or the GCS address "host:6379" where the driver runs on a machine of the '
            'cluster; or run the step as a Ray job (launch="ray_job") or the whole run as one '
            "(dagster-ray's RayRunLauncher), which need only the cluster's dashboard address"
        )


def verify_limits(plan: WorkerPlan, config: ClusterConfig) -> None:
    """Refuses a job that can't fit the configured limits; needs no cluster.

    Raises:
        ClusterCapacityError: The job reserves more than a limit. The message spells out the sum.
    """
    if plan.compute == "local":
        return
    for unit, name, limit in (
        ("GPU", "gpu_limit", config.gpu_limit),
        ("GPU", "shared_gpu_limit", config.shared_gpu_limit),
        ("CPU", "cpu_limit", config.cpu_limit),
    ):
        each = plan.demand.get(unit, 0.0)
        if limit is not None and each * plan.workers > limit + 1e-9:
            raise ClusterCapacityError(
                f"{spell_demand(plan.workers, each, unit, plan.compute)}, but the limit "
                f"({name}) is {limit:g}; lower num_actors or the model's "
                f"num_{unit.lower()}s, or raise {name}"
            )
