"""Responses of embedders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.backends.columns import ResponseColumns
from sheaf_dagster.contracts import EmbeddingResponse

__all__ = ["embedding_responses", "normalized"]


def normalized(vectors: Any) -> Any:
    """Vectors of length 1; a vector of zeros stays one.

    Args:
        vectors: Some (shape: n × dim).
    """
    import numpy as np

    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def embedding_responses(
    requests: Sequence[Any], vectors: Sequence[Any], truncated: Sequence[bool]
) -> Sequence[BaseModel]:
    """The responses to rows, in columns where they are all alike.

    Args:
        requests: The rows.
        vectors: Of each row (shape: its inputs × dim).
        truncated: Whether the model has read only a part of a row.
    """
    import numpy as np

    if len({own.shape for own in vectors}) == 1 and not any(truncated):
        columns = {"embeddings": np.stack(vectors), "dim": int(vectors[0].shape[1])}
        return ResponseColumns(EmbeddingResponse, requests, columns)
    responses = []
    for request, own, is_cut in zip(requests, vectors, truncated, strict=True):
        response = EmbeddingResponse(
            request_id=request.request_id,
            model_name=request.model_name,
            embeddings=own.tolist(),
            dim=int(own.shape[1]),
        )
        responses.append(response.deviates("truncated") if is_cut else response)
    return responses
