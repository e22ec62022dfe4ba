"""What a row is: typed requests and responses for each model type."""

from sheaf_dagster.contracts.base import (
    DEVIATIONS,
    BaseRequest,
    BaseResponse,
    Deviation,
    ModelType,
    deviations_of,
    row_identity,
)
from sheaf_dagster.contracts.embedding import EmbeddingRequest, EmbeddingResponse, Vector
from sheaf_dagster.contracts.features import FEATURES, FeaturesRequest, FeaturesResponse
from sheaf_dagster.contracts.openai_batch import (
    OPENAI_BATCH,
    OpenAIBatchRequest,
    OpenAIBatchResponse,
)
from sheaf_dagster.contracts.registry import (
    Contract,
    contract_for,
    known_model_types,
    register_contract,
)
from sheaf_dagster.contracts.schema import schema_of
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

register_contract(ModelType.TIME_SERIES, TimeSeriesRequest, TimeSeriesResponse)
register_contract(ModelType.TABULAR, TabularRequest, TabularResponse)
register_contract(ModelType.EMBEDDING, EmbeddingRequest, EmbeddingResponse)
register_contract(FEATURES, FeaturesRequest, FeaturesResponse)
register_contract(TENSORS, TensorsRequest, TensorsResponse)
register_contract(TEXT, TextRequest, TextResponse)
register_contract(OPENAI_BATCH, OpenAIBatchRequest, OpenAIBatchResponse)

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
