"""Lines for a server that speaks the OpenAI API, and jobs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sheaf_dagster import ModelSpec
from sheaf_dagster.contracts import OpenAIBatchRequest


def line(i: int, text: str, **body: Any) -> OpenAIBatchRequest:
    """A chat of one message."""
    said = [{"role": "user", "content": text}]
    return OpenAIBatchRequest(
        custom_id=f"row-{i}", url="/v1/chat/completions", body={"messages": said, **body}
    )


def said(answer) -> str:
    """What a chat was answered."""
    return answer.response.body["choices"][0]["message"]["content"]


def spec(url: str, **kwargs: Any) -> ModelSpec:
    """The model that a server offers."""
    return ModelSpec(
        name="served",
        model_type="openai_batch",
        backend="openai_endpoint",
        backend_kwargs={"base_url": url, "max_retries": 1, **kwargs},
    )


def write(path: Path, rows: list[OpenAIBatchRequest]) -> str:
    """Writes a source; returns its path."""
    path.write_text("".join(r.model_dump_json() + "\n" for r in rows))
    return str(path)
