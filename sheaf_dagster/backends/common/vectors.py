"""Responses of embedders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.backends.columns import ResponseColumns
from sheaf_dagster.contracts import Deviation, EmbeddingResponse

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
    """The responses to rows.

    Args:
        requests: The rows.
        vectors: Of each row (shape: its inputs × dim).
        truncated: Whether the model has read only a part of a row.
    """
    import numpy as np

    deviations: list[list[Deviation]] = [["truncated"] if is_cut else [] for is_cut in truncated]
    if len({own.shape for own in vectors}) == 1:
        columns = {"embeddings": np.stack(vectors), "dim": int(vectors[0].shape[1])}
    else:
        columns = {
            "embeddings": [own.tolist() for own in vectors],
            "dim": [int(own.shape[1]) for own in vectors],
        }
    return ResponseColumns(EmbeddingResponse, requests, columns, deviations=deviations)
