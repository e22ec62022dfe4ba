"""Offline model inference as partitioned Dagster assets, on Ray Data.

Every public name is importable from here and resolved when it is first used: importing this
package loads neither ray, torch nor dagster.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sheaf_dagster.version import __version__

_EXPORTS: dict[str, tuple[str, ...]] = {
    "sheaf_dagster.contracts": (
        "AnyRequest",
        "AnyResponse",
        "BaseRequest",
        "BaseResponse",
        "ModelType",
        "register_contract",
    ),
    "sheaf_dagster.backends": (
        "ModelBackend",
        "ResponseColumns",
        "known_backends",
        "register_backend",
        "request_column",
        "weights_digest",
    ),
    "sheaf_dagster.batch.model_spec": ("ModelSpec", "ResourceConfig"),
    "sheaf_dagster.batch.ray.cluster": ("ray_session",),
    "sheaf_dagster.batch.ray.cluster_config": ("ClusterConfig",),
    "sheaf_dagster.batch.results": (
        "BatchOutcome",
        "BatchProgress",
        "BatchResult",
        "ValidationReport",
        "Violation",
    ),
    "sheaf_dagster.batch.runner": ("BatchRunner",),
    "sheaf_dagster.batch.spec": ("BatchOptions", "BatchSpec"),
    "sheaf_dagster.definitions": (
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
    ),
    "sheaf_dagster.errors": (
        "BackendError",
        "BackendLoadError",
        "BatchTimeoutError",
        "ClusterBusyError",
        "ClusterCapacityError",
        "ClusterError",
        "InputValidationError",
        "MissingDependencyError",
        "ModelChangedError",
        "PredictError",
        "PreviousOutputError",
        "ResponseMismatchError",
        "ServiceDownError",
        "SheafError",
        "SinkBusyError",
        "SinkError",
        "SourceChangedError",
        "SourceError",
        "SourceNotFoundError",
        "SpecError",
        "SpendingLimitError",
        "TooManyErrorsError",
        "UnknownBackendError",
        "UnknownContractError",
        "WorkerCrashError",
    ),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]

if TYPE_CHECKING:
    from sheaf_dagster.backends import (
        ModelBackend,
        ResponseColumns,
        known_backends,
        register_backend,
        request_column,
        weights_digest,
    )
    from sheaf_dagster.batch.model_spec import ModelSpec, ResourceConfig
    from sheaf_dagster.batch.ray.cluster import ray_session
    from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
    from sheaf_dagster.batch.results import (
        BatchOutcome,
        BatchProgress,
        BatchResult,
        ValidationReport,
        Violation,
    )
    from sheaf_dagster.batch.runner import BatchRunner
    from sheaf_dagster.batch.spec import BatchOptions, BatchSpec
    from sheaf_dagster.contracts import (
        AnyRequest,
        AnyResponse,
        BaseRequest,
        BaseResponse,
        ModelType,
        register_contract,
    )
    from sheaf_dagster.definitions import (
        BatchConfig,
        BatchInferenceComponent,
        JsonlIOManager,
        ModelResource,
        RayClusterResource,
        ReportOptions,
        RowsIOManager,
        RowStream,
        SourcePartitions,
        StepOptions,
        StorageResource,
        build_batch_inference_asset,
        build_jsonl_arrival_sensor,
        build_model_asset,
        check_definitions,
    )
    from sheaf_dagster.errors import *


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
