"""Lines of a batch file as the OpenAI batch API takes and gives them."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, Field, JsonValue, model_validator
from typing_extensions import Self

__all__ = ["OPENAI_BATCH", "OpenAIBatchError", "OpenAIBatchRequest", "OpenAIBatchResponse"]

OPENAI_BATCH = "openai_batch"
"""Model type under which the contract is registered."""

_ROLES = ("system", "developer", "user", "assistant", "tool")


class OpenAIBatchRequest(BaseModel):
    """One line of a batch input file; it has neither ``request_id`` nor ``model_type``.

    Attributes:
        custom_id: Identity of the row, copied into the answer.
        method: Always ``POST``.
        url: Chat messages, plain prompts, or texts to embed.
        body: What would be posted there. ``model`` is copied into the answer; the model that
            answers is the job's.
    """

    custom_id: str = Field(min_length=1)
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    body: dict[str, JsonValue]

    @model_validator(mode="after")
    def _check_body(self) -> Self:
        if self.body.get("stream"):
            raise ValueError("'body.stream' can't be true in a batch file")
        if self.url == "/v1/chat/completions":
            _check_messages(self.body.get("messages"))
            return self
        name = "prompt" if self.url == "/v1/completions" else "input"
        text = self.body.get(name)
        several = isinstance(text, list) and text and all(isinstance(t, str) for t in text)
        if not (isinstance(text, str) or several):
            raise ValueError(f"'body.{name}' must be a text or a list of texts")
        return self

    @property
    def texts(self) -> list[str]:
        """The prompts or the texts to embed; empty for a chat."""
        text = self.body.get("input" if self.url == "/v1/embeddings" else "prompt")
        return [text] if isinstance(text, str) else [str(t) for t in text or ()]  # type: ignore[union-attr]

    def digest(self) -> str:
        """Hash of the whole line (hex, 32 digits); ids of the answer are made from it."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def answer(self, body: dict[str, Any]) -> OpenAIBatchResponse:
        """The line that carries a response's body. Its ids are derived, so that they repeat."""
        own = self.digest()
        return OpenAIBatchResponse(
            id=f"batch_req_{own}",
            custom_id=self.custom_id,
            response=_HttpResponse(request_id=f"req_{own}", body=body),
        )

    def error_record(self, error: BaseException) -> dict[str, Any]:
        """The line of a row that failed."""
        failure = OpenAIBatchError(code=type(error).__name__, message=str(error)[:2000])
        return OpenAIBatchResponse(
            id=f"batch_req_{self.digest()}", custom_id=self.custom_id, error=failure
        ).model_dump(mode="json")


class OpenAIBatchError(BaseModel):
    """Why a row has no answer.

    Attributes:
        code: Kind of error.
        message: What was wrong.
    """

    code: str
    message: str


class _HttpResponse(BaseModel):
    status_code: int = 200
    request_id: str
    body: dict[str, Any]


class OpenAIBatchResponse(BaseModel):
    """One line of a batch output file.

    Attributes:
        id: Identity of the answer.
        custom_id: The request's own.
        response: Status code, request id and body; None for a failed row.
        error: Why the row failed.
    """

    id: str
    custom_id: str
    response: _HttpResponse | None = None
    error: OpenAIBatchError | None = None


def _check_messages(messages: JsonValue) -> None:
    if not (isinstance(messages, list) and messages):
        raise ValueError("'body.messages' must be a list of messages")
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise ValueError(f"'body.messages.{i}.role' must be one of {', '.join(_ROLES)}")
