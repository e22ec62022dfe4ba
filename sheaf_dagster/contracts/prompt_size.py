"""About how many tokens a row will take, without the tokenizer of the model that answers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sheaf_dagster.contracts.openai_batch import OpenAIBatchRequest
from sheaf_dagster.contracts.text import TextRequest

__all__ = ["asked_tokens", "prompt_tokens"]

_CHARACTERS = 4
"""Of a token, in English; other languages have fewer."""

_OF_A_PICTURE = 1000
_SAID_IN = ("messages", "prompt", "input", "tools", "instructions", "documents", "query", "queries",
            "text_1", "text_2", "data_1", "data_2")  # fmt: skip


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """About how many tokens a body of the OpenAI API has to be read.

    A token is four characters of a text, and one of a prompt that is given as tokens. A picture, or
    what else is not text, counts a thousand.
    """
    return sum(_size(body.get(name)) for name in _SAID_IN)


def _size(said: Any) -> int:
    if isinstance(said, str):
        return -(-len(said) // _CHARACTERS)
    if isinstance(said, Mapping):
        kind = said.get("type")
        if isinstance(kind, str) and kind.endswith(("image_url", "image", "audio", "file")):
            return _OF_A_PICTURE
        return sum(_size(value) for name, value in said.items() if name not in ("role", "type"))
    if isinstance(said, list):
        return sum(map(_size, said))
    return int(isinstance(said, int))


def asked_tokens(request: Any) -> tuple[int, int | None] | None:
    """About how many tokens a row has, and how many its answer may have at most.

    Returns:
        Both, the second None where the row doesn't say; None for other rows than those of language
        models.
    """
    if isinstance(request, TextRequest):
        said = request.text if request.messages is None else [m.content for m in request.messages]
        return _size(said), request.max_new_tokens
    if not isinstance(request, OpenAIBatchRequest):
        return None
    body = request.body
    limits = (body.get(n) for n in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    limit = next((x for x in limits if isinstance(x, int)), None)
    if request.url not in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        limit = 0
    choices = body.get("n")
    return prompt_tokens(body), limit and limit * (choices if isinstance(choices, int) else 1)
