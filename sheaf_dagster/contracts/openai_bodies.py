"""What can be known of a batch API line's body without the model that will answer it.

Each URL has a model of its body here. It is looked at and not kept: the backend gets the body as
the file has it. Fields that aren't listed pass, for engines have many of their own; a backend
refuses those that it doesn't know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = ["CHAT", "COMPLETIONS", "EMBEDDINGS", "RESPONSES", "URLS", "check_body"]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"


def _whole(value: Any) -> Any:
    """``16.0`` is a whole number of JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_stop(stop: Any) -> Any:
    texts = [stop] if isinstance(stop, str) else stop
    if texts is not None and not (isinstance(texts, list) and all(_is_text(t) for t in texts)):
        raise ValueError("must be a text or a list of texts, none of them empty")
    return stop


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _check_content(content: Any) -> Any:
    if content is None or isinstance(content, str):
        return content
    if not (isinstance(content, list) and content):
        raise ValueError("must be a text or a list of parts")
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not (isinstance(part, str) or isinstance(kind, str)):
            raise ValueError(f"part {i} must be an object with a 'type'")
        if kind == "text" and not isinstance(part.get("text"), str):
            raise ValueError(f"part {i} must have 'text', a text")
    return content


Whole = Annotated[int, BeforeValidator(_whole)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
"""Engines hold other values to these limits without a word."""
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    model: str | None = None
    stream: Literal[False] | None = None


class _Sampling(_Body):
    """How tokens are drawn; the limits are those that hold for every engine."""

    max_tokens: Annotated[Whole, Field(gt=0)] | None = None
    temperature: Annotated[Finite, Field(ge=0)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1)] | None = None
    n: Annotated[Whole, Field(gt=0)] | None = None
    stop: Annotated[Any, AfterValidator(_check_stop)] = None
    seed: Whole | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    stop_token_ids: list[Whole] | None = None
    min_tokens: Annotated[Whole, Field(ge=0)] | None = None
    ignore_eos: bool | None = None


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Any, AfterValidator(_check_content)] = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check_said(self) -> Self:
        says = self.role == "assistant" and (self.tool_calls or self.model_extra)
        if self.content is None and not says:
            raise ValueError("has no 'content'; it must be a text or a list of parts")
        return self


class _ChatBody(_Sampling):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[Whole, Field(gt=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=-1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        return self


class _CompletionBody(_Sampling):
    prompt: Any
    max_tokens: Annotated[Whole, Field(ge=0)] | None = None
    logprobs: Annotated[Whole, Field(ge=-1)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[Whole, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("'max_tokens' is 0, which leaves no answer; give 1 or more")
        return self


class _EmbeddingBody(_Body):
    dimensions: Annotated[Whole, Field(gt=0)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class _ResponsesBody(_Body):
    """A response that runs in the background has no answer yet when its request is answered."""

    background: Literal[False] | None = None
    max_output_tokens: Annotated[Whole, Field(gt=0)] | None = None
    temperature: Annotated[Finite, Field(ge=0)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


class _RankingBody(_Body):
    query: str | dict[str, Any]
    documents: Annotated[list[Any], Field(min_length=1)] | str | dict[str, Any]
    top_n: Annotated[Whole, Field(ge=0)] | None = None


_BODIES: Mapping[str, type[_Body]] = {
    CHAT: _ChatBody,
    COMPLETIONS: _CompletionBody,
    EMBEDDINGS: _EmbeddingBody,
    RESPONSES: _ResponsesBody,
    "/v1/score": _Body,
    "/score": _Body,
    "/v1/rerank": _RankingBody,
    "/v2/rerank": _RankingBody,
    "/rerank": _RankingBody,
}
URLS = tuple(_BODIES)
"""Every URL that a line may name; which of them a job answers is its backend's to say."""


def check_body(url: str, body: Mapping[str, Any]) -> None:
    """Looks at a body.

    Raises:
        ValidationError: A field is wrong; its place is named from the body on.
        ValueError: The messages, the prompt or the input is missing, or no such thing.
    """
    if body.get("stream"):
        raise ValueError("'body.stream' can't be true in a batch file")
    if url == CHAT and not _is_list(body.get("messages")):
        raise ValueError("'body.messages' must be a list of messages")
    if url == COMPLETIONS or (url == EMBEDDINGS and "messages" not in body):
        name = "prompt" if url == COMPLETIONS else "input"
        if not _is_prompt(body.get(name)):
            raise ValueError(f"'body.{name}' must be a text or a list of texts (or of tokens)")
    _BODIES[url].model_validate(body)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_prompt(value: Any) -> bool:
    """A text, texts, tokens, or lists of tokens."""
    if isinstance(value, str):
        return True
    if not _is_list(value):
        return False
    if all(isinstance(v, str) for v in value) or _are_tokens(value):
        return True
    return all(_is_list(v) and _are_tokens(v) for v in value)


def _are_tokens(values: list[Any]) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
