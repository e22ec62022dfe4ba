"""How a job is an asset: resources, the asset factory, checks and metadata."""

from sheaf_dagster.definitions.asset import build_batch_inference_asset
from sheaf_dagster.definitions.config import BatchConfig
from sheaf_dagster.definitions.model_asset import build_model_asset
from sheaf_dagster.definitions.resources import (
    ModelResource,
    RayClusterResource,
    StorageResource,
)
from sheaf_dagster.definitions.sensor import build_jsonl_arrival_sensor
from sheaf_dagster.definitions.sources import SourcePartitions

__all__ = [
    "BatchConfig",
    "ModelResource",
    "RayClusterResource",
    "SourcePartitions",
    "StorageResource",
    "build_batch_inference_asset",
    "build_jsonl_arrival_sensor",
    "build_model_asset",
]
