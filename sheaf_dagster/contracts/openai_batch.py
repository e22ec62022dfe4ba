"""Lines of a batch file as the OpenAI batch API takes and gives them."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from sheaf_dagster.contracts.base import Deviation
from sheaf_dagster.contracts.openai_bodies import COMPLETIONS, EMBEDDINGS, URLS, check_body

__all__ = ["OPENAI_BATCH", "OpenAIBatchError", "OpenAIBatchRequest", "OpenAIBatchResponse"]

OPENAI_BATCH = "openai_batch"
"""Model type under which the contract is registered."""

_MADE_OF = re.compile(rb'"id": ?"batch_req_([0-9a-f]{32})"')


class OpenAIBatchRequest(BaseModel):
    """One line of a batch input file; it has neither ``request_id`` nor ``model_type``.

    A field beside these is refused. A file names no ``custom_id`` twice.

    Attributes:
        custom_id: Identity of the row, copied into the answer.
        method: Always ``POST``.
        url: Where the body would be posted: chats, prompts, texts to embed, and what else some
            engines answer.
        body: What would be posted there. ``model`` is copied into the answer; the model that
            answers is the job's. What can be known of it without that model is checked.
    """

    model_config = ConfigDict(extra="forbid")
    unique_key: ClassVar[str] = "custom_id"

    custom_id: str = Field(min_length=1)
    method: Literal["POST"] = "POST"
    url: str
    body: dict[str, JsonValue]
    _occurrence: int | None = PrivateAttr(default=None)

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url not in URLS:
            raise PydanticCustomError("url", "must be one of {urls}", {"urls": ", ".join(URLS)})
        return url

    @field_validator("body")
    @classmethod
    def _check_body(cls, body: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        if "url" in info.data:
            check_body(info.data["url"], body)
        return body

    def placed(self, occurrence: int) -> None:
        """Notes how many equal rows are before it in its source, so that each has ids of its own."""
        self._occurrence = occurrence

    @property
    def texts(self) -> list[str]:
        """The prompts or the texts to embed; empty for a chat.

        Raises:
            ValueError: They are given as tokens, or as messages to embed.
        """
        if self.url not in (COMPLETIONS, EMBEDDINGS):
            return []
        name = "prompt" if self.url == COMPLETIONS else "input"
        text = self.body.get(name)
        texts = [text] if isinstance(text, str) else text
        if not (isinstance(texts, list) and all(isinstance(t, str) for t in texts)):
            raise ValueError(
                f"row {self.custom_id!r}: 'body.{name}' must be a text or a list of texts here; "
                "this backend takes no tokens"
            )
        return texts  # type: ignore[return-value]

    def digest(self) -> str:
        """Hash of what the row says (hex, 32 digits); ids of the answer are made from it."""
        return _digest_of(self.model_dump(mode="json"), self._occurrence)

    def renamed(self, line: bytes) -> bytes:
        """The line of a row that asks the same, with the ids of this row's own."""
        made = _MADE_OF.search(line)
        return line if made is None else line.replace(made[1], self.digest().encode())

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
        own = self.digest()
        kind = getattr(error, "kind", type(error).__name__)
        failure = OpenAIBatchError(code=str(kind), message=str(error)[:2000])
        line = OpenAIBatchResponse(id=f"batch_req_{own}", custom_id=self.custom_id, error=failure)
        status = getattr(error, "status_code", None)
        if status is not None:  # an engine or a server refused it
            said = {"message": failure.message, "type": failure.code, "code": status}
            line.response = _HttpResponse(
                status_code=status, request_id=f"req_{own}", body={"error": said}
            )
        return line.model_dump(mode="json")

    @classmethod
    def invalid_record(cls, row: Any, occurrence: int, error: BaseException) -> dict[str, Any]:
        """The line of a row that is no request."""
        own = _digest_of(row, occurrence)
        named = row.get("custom_id") if isinstance(row, dict) else None
        return OpenAIBatchResponse(
            id=f"batch_req_{own}",
            custom_id=named if isinstance(named, str) else "",
            error=OpenAIBatchError(code=type(error).__name__, message=str(error)[:2000]),
        ).model_dump(mode="json")


def _digest_of(row: Any, occurrence: int | None) -> str:
    text = json.dumps([occurrence, row], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


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
        response: Status code, request id and body. For a failed row None, or what the engine or
            the server answered that refused it.
        error: Why the row failed.
    """

    id: str
    custom_id: str
    response: _HttpResponse | None = None
    error: OpenAIBatchError | None = None
    _deviations: tuple[Deviation, ...] = PrivateAttr(default=())

    def deviates(self, *kinds: Deviation) -> Self:
        """Notes that the row is answered otherwise than asked; returns the response itself.

        Such rows are counted, as those of the other contracts are. The line doesn't show it: its
        form has no place for that.

        Args:
            kinds: In which ways.
        """
        self._deviations = tuple(dict.fromkeys((*self._deviations, *kinds)))
        return self

    def token_usage(self) -> Any:
        """Its tokens, as the answer's body says; None where it says nothing."""
        return None if self.response is None else self.response.body.get("usage")
