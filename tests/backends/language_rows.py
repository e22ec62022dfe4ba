"""Rows for the tiny language models of ``weights.py``."""

from __future__ import annotations

from uuid import UUID

from sheaf_dagster.backends.transformers_text import TransformersPipelineBackend
from sheaf_dagster.contracts import OpenAIBatchRequest, TextRequest


def row(i: int, text: str | None = "a photo of a cat", **fields) -> TextRequest:
    """A text."""
    return TextRequest(request_id=UUID(int=i + 1), model_name="m", text=text, **fields)


def line(i: int, url: str = "completions", **body) -> OpenAIBatchRequest:
    """A line of the batch API."""
    name = "messages" if url.startswith("chat") else "prompt"
    given = {"messages": [{"role": "user", "content": "a cat"}], "prompt": "a red dog"}
    body = {"model": "tiny", name: given[name], **body}
    return OpenAIBatchRequest(custom_id=f"row-{i}", url=f"/v1/{url}", body=body)


def causal(models, **fields) -> TransformersPipelineBackend:
    """A backend that writes texts, not loaded."""
    options = {"device": "cpu", "dtype": "float32", "max_new_tokens": 8, "model_batch_size": 5}
    return TransformersPipelineBackend(models["causal"], **{**options, **fields})


TEXTS = [
    row(0),
    row(1, "dog", max_new_tokens=3),
    row(2, "the blue dog says a red cat a photo", temperature=1.0),
    row(3, "red", temperature=0.7, top_p=0.8, top_k=5, max_new_tokens=12),
    row(4, None, messages=[{"role": "user", "content": "a cat"}]),
    row(5, "blue", temperature=1.5, seed=7),
    row(6, "blue", temperature=1.5, seed=7),
]


LONG = " ".join(["the blue dog says a red cat"] * 12)
"""84 words; the models read 64 tokens."""
