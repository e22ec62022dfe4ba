"""What rows ask of a generating model, and its completions as their answers.

Two contracts come in: ``text`` and the lines of the OpenAI batch API.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.contracts import OpenAIBatchRequest, TextRequest, TextResponse, row_identity

__all__ = ["Completion", "Prompt", "Sampling", "answer", "embeddings_body", "prompts_of"]

_CHAT = "/v1/chat/completions"
_NOT_HERE = ("tools", "functions", "logprobs", "top_logprobs", "logit_bias", "echo", "suffix")
"""Parts of a body that would change the answer and that no backend here understands."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: Length of an answer, at most; None for what the backend allows.
        temperature: 0 for the likeliest token each time.
        top_p: Mass of the tokens that are drawn among.
        top_k: Number of them; 0 for all.
        n: Answers to each prompt.
        stop: Texts that end an answer.
        presence_penalty: Taken from tokens that the answer has already.
        frequency_penalty: Taken from them for each time that it has them.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True)
class Prompt:
    """One prompt of a row: a text or a chat.

    Attributes:
        row: Names the row in messages.
        text: The text, or None.
        messages: The chat, or None.
        sampling: How its answers are drawn.
        seeds: One for each answer, of 63 bits.
    """

    row: str
    text: str | None
    messages: list[dict[str, str]] | None
    sampling: Sampling
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """One answer to a prompt; ``finish_reason`` is ``stop`` or ``length``."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def prompts_of(request: Any, defaults: Sampling, seed: int) -> list[Prompt]:
    """The prompts of a row; several where an OpenAI line lists them.

    Args:
        request: A ``TextRequest`` or an ``OpenAIBatchRequest``.
        defaults: What holds where a text row says nothing. (A batch API line that says nothing
            means that API's own defaults: temperature 1.)
        seed: Mixed into the seeds of all rows.

    Raises:
        ValueError: The row asks for what isn't supported.
    """
    if isinstance(request, OpenAIBatchRequest):
        return _of_openai(request, defaults, seed)
    given: dict[str, Any] = {
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": tuple(request.stop) or None,
    }
    sampling = replace(defaults, **{k: v for k, v in given.items() if v is not None})
    messages = request.messages and [m.model_dump() for m in request.messages]
    seeds = _seeds(request, request.seed, seed, 0, 1)
    return [Prompt(f"request {request.request_id}", request.text, messages, sampling, seeds)]


def answer(request: Any, completions: Sequence[Sequence[Completion]]) -> BaseModel:
    """A row's response, from the completions of its prompts."""
    if not isinstance(request, OpenAIBatchRequest):
        one = completions[0][0]
        assert isinstance(request, TextRequest)
        return TextResponse(
            request_id=request.request_id,
            model_name=request.model_name,
            text=one.text,
            finish_reason=one.finish_reason,
            prompt_tokens=one.prompt_tokens,
            completion_tokens=one.completion_tokens,
        )
    chat = request.url == _CHAT
    choices: list[dict[str, Any]] = []
    for one in (c for of_prompt in completions for c in of_prompt):
        said = (
            {"message": {"role": "assistant", "content": one.text}} if chat else {"text": one.text}
        )
        choices.append(
            {
                "index": len(choices),
                **said,
                "logprobs": None,
                "finish_reason": one.finish_reason,
            }
        )
    asked = sum(of_prompt[0].prompt_tokens for of_prompt in completions)
    made = sum(c.completion_tokens for of_prompt in completions for c in of_prompt)
    return request.answer(
        {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request.digest()}",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,  # the time would make each run another answer
            "model": request.body.get("model"),
            "choices": choices,
            "usage": {
                "prompt_tokens": asked,
                "completion_tokens": made,
                "total_tokens": asked + made,
            },
        }
    )


def embeddings_body(
    request: OpenAIBatchRequest, vectors: Sequence[Sequence[float]], tokens: int
) -> dict[str, Any]:
    """The body of an answer from ``/v1/embeddings``."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": list(v)} for i, v in enumerate(vectors)
        ],
        "model": request.body.get("model"),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _of_openai(request: OpenAIBatchRequest, defaults: Sampling, seed: int) -> list[Prompt]:
    body, row = request.body, f"row {request.custom_id!r}"
    if request.url == "/v1/embeddings":
        raise ValueError(
            f"{row}: this model generates text and gives no embeddings; use the backend "
            "'sentence_transformers'"
        )
    unsupported = [name for name in _NOT_HERE if body.get(name)]
    form = body.get("response_format")
    if form and form != {"type": "text"}:
        unsupported.append("response_format")
    if unsupported:
        raise ValueError(f"{row}: 'body' has {', '.join(unsupported)}, which isn't supported")
    stop = body.get("stop") or []
    sampling = Sampling(
        max_tokens=_number(
            row,
            body,
            "max_completion_tokens",
            _number(row, body, "max_tokens", defaults.max_tokens, int),
            int,
        ),
        temperature=_number(row, body, "temperature", 1.0, float),
        top_p=_number(row, body, "top_p", 1.0, float),
        top_k=_number(row, body, "top_k", 0, int),
        n=_number(row, body, "n", 1, int),
        stop=tuple(str(s) for s in ([stop] if isinstance(stop, str) else stop)),  # type: ignore[union-attr]
        presence_penalty=_number(row, body, "presence_penalty", 0.0, float),
        frequency_penalty=_number(row, body, "frequency_penalty", 0.0, float),
    )
    if sampling.n < 1 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        raise ValueError(f"{row}: needs n ≥ 1, temperature ≥ 0 and 0 < top_p ≤ 1")
    own = _number(row, body, "seed", None, int)
    if request.url == _CHAT:
        messages = [_message(row, m) for m in body["messages"]]  # type: ignore[union-attr]
        return [Prompt(row, None, messages, sampling, _seeds(request, own, seed, 0, sampling.n))]
    return [
        Prompt(row, text, None, sampling, _seeds(request, own, seed, i, sampling.n))
        for i, text in enumerate(request.texts)
    ]


def _number(row: str, body: dict[str, Any], name: str, default: Any, kind: type[Any]) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value:
        raise ValueError(f"{row}: 'body.{name}' must be a number, got {value!r}")
    return kind(value)


def _message(row: str, message: Any) -> dict[str, str]:
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            raise ValueError(f"{row}: a message holds parts that are no text")
        content = "".join(str(p.get("text", "")) for p in content)
    return {"role": str(message["role"]), "content": "" if content is None else str(content)}


def _seeds(request: Any, own: int | None, seed: int, prompt: int, n: int) -> tuple[int, ...]:
    """Of the row's own seed or identity: its draws depend on nothing that runs beside it."""
    base = f"{seed}:{own if own is not None else row_identity(request)}:{prompt}"
    hashes = (hashlib.sha256(f"{base}:{i}".encode()).digest() for i in range(n))
    return tuple(int.from_bytes(h[:8], "big") >> 1 for h in hashes)
