"""Any built-in request or response, told apart by its ``model_type``."""

from __future__ import annotations

from typing import Annotated, Union

from pydantic import Field

from sheaf_dagster.contracts.embedding import EmbeddingRequest, EmbeddingResponse
from sheaf_dagster.contracts.features import FeaturesRequest, FeaturesResponse
from sheaf_dagster.contracts.tabular import TabularRequest, TabularResponse
from sheaf_dagster.contracts.tensors import TensorsRequest, TensorsResponse
from sheaf_dagster.contracts.text import TextRequest, TextResponse
from sheaf_dagster.contracts.time_series import TimeSeriesRequest, TimeSeriesResponse

__all__ = ["AnyRequest", "AnyResponse"]

AnyRequest = Annotated[
    Union[
        TimeSeriesRequest,
        TabularRequest,
        EmbeddingRequest,
        FeaturesRequest,
        TensorsRequest,
        TextRequest,
    ],
    Field(discriminator="model_type"),
]

AnyResponse = Annotated[
    Union[
        TimeSeriesResponse,
        TabularResponse,
        EmbeddingResponse,
        FeaturesResponse,
        TensorsResponse,
        TextResponse,
    ],
    Field(discriminator="model_type"),
]
