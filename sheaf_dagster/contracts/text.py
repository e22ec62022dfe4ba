"""Rows and answers of language models: texts or chats in, texts or labels out."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sheaf_dagster.contracts.base import BaseRequest, BaseResponse

__all__ = ["TEXT", "ChatMessage", "Label", "MaskLabel", "TextRequest", "TextResponse"]

TEXT = "text"
"""Model type under which the contract is registered."""


class ChatMessage(BaseModel):
    """One turn of a chat. Its fields reach the model's chat template; others are refused.

    Attributes:
        role: Who speaks.
        content: What is said; only an assistant that calls tools may say nothing.
        name: Name of the speaker.
        tool_calls: Tools that the assistant called, in the form of the OpenAI API.
        tool_call_id: The call that a message of a tool answers.
    """

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check_said(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("has no 'content'")
        return self


class TextRequest(BaseRequest):
    """A text to continue, rewrite or classify, or a chat to answer.

    Fields that are left out take their values from the backend's arguments.

    Attributes:
        text: The text.
        messages: The chat so far. Exactly one of text and messages is given.
        candidate_labels: Classes, for zero-shot classification.
        max_new_tokens: Length of the answer in tokens, at most.
        temperature: 0 always takes the likeliest token; more draws more freely.
        top_p: Draw among the likeliest tokens that have this much probability together.
        top_k: Draw among this many likeliest tokens; 0 for all.
        stop: Texts at which the answer ends, themselves left out.
        seed: Seed of the draws. By default derived from ``request_id``.
    """

    model_type: Literal["text"] = "text"

    text: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    candidate_labels: list[str] | None = Field(default=None, min_length=1)
    max_new_tokens: int | None = Field(default=None, gt=0)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    seed: int | None = None

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("needs 'text' or 'messages', and not both")
        return self


class Label(BaseModel):
    """A class and its score."""

    label: str
    score: float


class MaskLabel(Label):
    """What may stand in a text's mask.

    Attributes:
        mask: Which of the text's masks, from 0.
    """

    mask: int


class TextResponse(BaseResponse):
    """What a language model made of a row.

    Attributes:
        text: The generated text.
        finish_reason: ``stop`` where the model or a stop text ended it, ``length`` where the
            number of tokens did.
        labels: Classes, the likeliest first; of a text with masks what may stand in each, mask by
            mask.
        entities: What was found in the text, as the library describes it.
        prompt_tokens: Length of the row in tokens.
        completion_tokens: Length of the answer in tokens.
    """

    model_type: Literal["text"] = "text"

    text: str | None = None
    finish_reason: str | None = None
    labels: list[MaskLabel] | list[Label] | None = None
    entities: list[dict[str, Any]] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def token_usage(self) -> dict[str, int | None]:
        """Its tokens, as the OpenAI API names them."""
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
