"""How a job is an asset: resources, the asset factory, checks and metadata."""

from dagster_shared.libraries import DagsterLibraryRegistry

from sheaf_dagster.definitions.asset import build_batch_inference_asset
from sheaf_dagster.definitions.capacity import check_definitions
from sheaf_dagster.definitions.component import BatchInferenceComponent
from sheaf_dagster.definitions.config import BatchConfig
from sheaf_dagster.definitions.io_manager import JsonlIOManager, RowsIOManager
from sheaf_dagster.definitions.model_asset import build_model_asset
from sheaf_dagster.definitions.options import ReportOptions, StepOptions
from sheaf_dagster.definitions.resources import (
    ModelResource,
    RayClusterResource,
    StorageResource,
)
from sheaf_dagster.definitions.row_views import RowStream
from sheaf_dagster.definitions.sensor import build_jsonl_arrival_sensor
from sheaf_dagster.definitions.sources import SourcePartitions
from sheaf_dagster.version import __version__

__all__ = [
    "BatchConfig",
    "BatchInferenceComponent",
    "JsonlIOManager",
    "ModelResource",
    "RayClusterResource",
    "ReportOptions",
    "RowStream",
    "RowsIOManager",
    "SourcePartitions",
    "StepOptions",
    "StorageResource",
    "build_batch_inference_asset",
    "build_jsonl_arrival_sensor",
    "build_model_asset",
    "check_definitions",
]

# The UI lists it among the libraries of a code location.
DagsterLibraryRegistry.register("sheaf_dagster", __version__, is_dagster_package=False)
