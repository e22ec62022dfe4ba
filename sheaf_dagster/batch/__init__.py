"""How a job runs: specs, the runner, and the engines on Ray Data."""

from sheaf_dagster.batch.cluster_config import ClusterConfig
from sheaf_dagster.batch.results import (
    BatchOutcome,
    BatchProgress,
    BatchResult,
    ValidationReport,
    Violation,
)
from sheaf_dagster.batch.runner import BatchRunner
from sheaf_dagster.batch.spec import BatchSpec, ModelSpec, ResourceConfig

__all__ = [
    "BatchOutcome",
    "BatchProgress",
    "BatchResult",
    "BatchRunner",
    "BatchSpec",
    "ClusterConfig",
    "ModelSpec",
    "ResourceConfig",
    "ValidationReport",
    "Violation",
]
