"""What a row is: typed requests and responses for each model type.

The built-in types are made when they are first used: a job uses one pair of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sheaf_dagster.contracts.base import (
    DEVIATIONS,
    BaseRequest,
    BaseResponse,
    Deviation,
    ModelType,
    deviations_of,
    row_identity,
)
from sheaf_dagster.contracts.registry import (
    Contract,
    contract_for,
    known_model_types,
    register_contract,
)
from sheaf_dagster.contracts.schema import schema_of

if TYPE_CHECKING:
    from sheaf_dagster.contracts.embedding import EmbeddingRequest, EmbeddingResponse, Vector
    from sheaf_dagster.contracts.features import FEATURES, FeaturesRequest, FeaturesResponse
    from sheaf_dagster.contracts.openai_batch import (
        OPENAI_BATCH,
        OpenAIBatchRequest,
        OpenAIBatchResponse,
    )
    from sheaf_dagster.contracts.tabular import TabularRequest, TabularResponse
    from sheaf_dagster.contracts.tensors import TENSORS, TensorsRequest, TensorsResponse
    from sheaf_dagster.contracts.text import TEXT, TextRequest, TextResponse
    from sheaf_dagster.contracts.time_series import (
        FeatureRef,
        Frequency,
        OutputMode,
        TimeSeriesRequest,
        TimeSeriesResponse,
    )
    from sheaf_dagster.contracts.union import AnyRequest, AnyResponse

_TYPES: dict[str, tuple[str, ...]] = {
    "embedding": ("EmbeddingRequest", "EmbeddingResponse", "Vector"),
    "features": ("FEATURES", "FeaturesRequest", "FeaturesResponse"),
    "openai_batch": ("OPENAI_BATCH", "OpenAIBatchRequest", "OpenAIBatchResponse"),
    "tabular": ("TabularRequest", "TabularResponse"),
    "tensors": ("TENSORS", "TensorsRequest", "TensorsResponse"),
    "text": ("TEXT", "TextRequest", "TextResponse"),
    "time_series": (
        "FeatureRef",
        "Frequency",
        "OutputMode",
        "TimeSeriesRequest",
        "TimeSeriesResponse",
    ),
    "union": ("AnyRequest", "AnyResponse"),
}
_MODULE_OF = {name: module for module, names in _TYPES.items() for name in names}

__all__ = [
    "DEVIATIONS",
    "FEATURES",
    "OPENAI_BATCH",
    "TENSORS",
    "TEXT",
    "AnyRequest",
    "AnyResponse",
    "BaseRequest",
    "BaseResponse",
    "Contract",
    "Deviation",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "FeatureRef",
    "FeaturesRequest",
    "FeaturesResponse",
    "Frequency",
    "ModelType",
    "OpenAIBatchRequest",
    "OpenAIBatchResponse",
    "OutputMode",
    "TabularRequest",
    "TabularResponse",
    "TensorsRequest",
    "TensorsResponse",
    "TextRequest",
    "TextResponse",
    "TimeSeriesRequest",
    "TimeSeriesResponse",
    "Vector",
    "contract_for",
    "deviations_of",
    "known_model_types",
    "register_contract",
    "row_identity",
    "schema_of",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value
