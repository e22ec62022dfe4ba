"""What may stand under the ``ray_cluster`` key: our own resource, or one of dagster-ray's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from sheaf_dagster.definitions.credentials import named_variables
from sheaf_dagster.definitions.resources import RayClusterResource
from sheaf_dagster.environment import from_environment
from sheaf_dagster.errors import SpecError

__all__ = ["JobsAddress", "cluster_config", "cluster_limits", "jobs_address"]


@dataclass(frozen=True)
class JobsAddress:
    """Where Ray jobs are submitted.

    Attributes:
        url: Address of the cluster's dashboard.
        headers: HTTP headers of each request, such as those that a proxy asks for.
        runtime_env: Runtime environment of the jobs.
        within_s: How long to try to reach the dashboard (seconds).
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    within_s: float = 30.0


def cluster_config(resource: Any, holder: str) -> ClusterConfig:
    """Where a step that is a driver itself finds Ray, and its limits.

    Args:
        resource: A ``RayClusterResource``, or dagster-ray's ``LocalRay``: that has connected this
            process, or leaves it to us.
        holder: What the job is called in the messages of others that wait for its capacity.

    Raises:
        SpecError: It is a cluster that this process can only reach by Ray Client.
    """
    if isinstance(resource, RayClusterResource):
        return resource.to_config().model_copy(update={"holder": holder})
    address = _client_address(resource)
    if address is not None:
        raise SpecError(
            f"ray_cluster is a {type(resource).__name__} at {address}. From outside the cluster, only "
            "Ray Client reaches it, and Ray Data does not run over Ray Client; "
            'build the asset with launch="ray_job", and the resource with Lifecycle(connect=False)'
        )
    return ClusterConfig(holder=holder)


def cluster_limits(resource: Any, holder: str) -> ClusterConfig:
    """The limits of a step that runs as a Ray job; that finds its cluster by itself."""
    if isinstance(resource, RayClusterResource):
        return resource.to_config().model_copy(update={"holder": holder, "address": None})
    return ClusterConfig(holder=holder)


def jobs_address(resource: Any) -> JobsAddress:
    """Where the steps of an asset with ``launch="ray_job"`` are submitted.

    Raises:
        SpecError: The resource doesn't say.
    """
    if isinstance(resource, RayClusterResource):
        if resource.dashboard is None:
            raise SpecError(
                'launch="ray_job" submits the step to the cluster\'s dashboard; give '
                'RayClusterResource(dashboard="http://HEAD:8265")'
            )
        return JobsAddress(
            resource.dashboard,
            from_environment("ray_cluster: headers", named_variables(resource.headers)),
            resource.runtime_env,
            resource.connect_timeout_s,
        )
    _client_address(resource)
    options = getattr(resource, "ray_init_options", {}) or {}
    variables = resource.get_env_vars_to_inject()
    runtime_env = dict(options.get("runtime_env") or {})
    if variables:
        runtime_env["env_vars"] = {**runtime_env.get("env_vars", {}), **variables}
    return JobsAddress(resource.dashboard_url, runtime_env=runtime_env)


def _client_address(resource: Any) -> str | None:
    """The ``ray://`` address of one of dagster-ray's clusters; None for its ``LocalRay``."""
    # By what they offer, so that dagster-ray is needed by those alone who use it. (Asked of the
    # class: a cluster that isn't up has no address yet.)
    if not all(hasattr(type(resource), name) for name in ("ray_address", "dashboard_url")):
        raise SpecError(
            f"ray_cluster is a {type(resource).__name__}; give it a RayClusterResource, or a "
            "cluster of dagster-ray's"
        )
    try:
        return resource.ray_address  # type: ignore[no-any-return]
    except ValueError as e:
        raise SpecError(
            f"ray_cluster: {e}; let its lifecycle create the cluster and wait for it "
            "(Lifecycle(connect=False) is enough)"
        ) from e
