"""Whether assets fit their cluster's limits, as far as that is known before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from sheaf_dagster.batch.model_spec import ResourceConfig
from sheaf_dagster.batch.ray.capacity import WorkerPlan
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig, verify_limits
from sheaf_dagster.batch.spec import BatchOptions
from sheaf_dagster.definitions.resources import ModelResource, RayClusterResource
from sheaf_dagster.errors import ClusterCapacityError

__all__ = ["BUILT_METADATA", "built_metadata", "check_definitions"]

BUILT_METADATA = "sheaf_dagster/built"
"""Metadata of a batch inference asset: what it was built with, and its resources' keys."""


def built_metadata(options: BatchOptions, model: str, ray_cluster: str) -> dg.MetadataValue[Any]:
    """What ``check_definitions`` needs to know of an asset."""
    return dg.MetadataValue.json(
        {
            **options.model_dump(include={"compute", "num_actors"}),
            "model": model,
            "ray_cluster": ray_cluster,
        }
    )


def check_definitions(defs: dg.Definitions) -> dg.Definitions:
    """Refuses definitions with an asset that can't fit its cluster's limits. Otherwise returns them.

    ::

        defs = sd.check_definitions(dg.Definitions(assets=[...], resources={...}))

    If an asset's ``num_actors * num_gpus`` exceeds ``gpu_limit``, ``dg check defs`` and the code
    location in the UI fail, instead of tonight's run. Limits that only a run knows (run config, a
    cluster of dagster-ray) are checked when the step begins.

    Raises:
        ClusterCapacityError: An asset exceeds a limit. The message names it and spells out the sum.
    """
    resources = defs.resources or {}
    for spec in defs.resolve_all_asset_specs():
        built = spec.metadata.get(BUILT_METADATA)
        if built is not None:
            _check(spec.key.to_user_string(), getattr(built, "value", built), resources)
    return defs


def _check(asset: str, built: Mapping[str, Any], resources: Mapping[str, Any]) -> None:
    model, cluster = (resources.get(built[what]) for what in ("model", "ray_cluster"))
    if not (isinstance(model, ModelResource) and isinstance(cluster, RayClusterResource)):
        return
    options = BatchOptions(compute=built["compute"], num_actors=built["num_actors"])
    try:
        verify_limits(
            WorkerPlan.of(
                ResourceConfig(num_cpus=model.num_cpus, num_gpus=model.num_gpus), options
            ),
            ClusterConfig(
                gpu_limit=cluster.gpu_limit,
                shared_gpu_limit=cluster.shared_gpu_limit,
                cpu_limit=cluster.cpu_limit,
            ),
        )
    except ClusterCapacityError as e:
        raise ClusterCapacityError(f"asset {asset}: {e}") from e
