"""What rows ask of a generating model, and its completions as their answers.

Two contracts come in: ``text`` and the lines of the OpenAI batch API.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sheaf_dagster.contracts import (
    OpenAIBatchRequest,
    OpenAIBatchResponse,
    TextRequest,
    TextResponse,
    row_identity,
)
from sheaf_dagster.contracts.openai_bodies import CHAT, COMPLETIONS, EMBEDDINGS

__all__ = ["Completion", "Prompt", "Sampling", "answer", "embeddings_body", "prompts_of"]

_HONOURED = frozenset(
    [
        "model",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "n",
        "stop",
        "seed",
        "presence_penalty",
        "frequency_penalty",
    ]
)
_OF_URL = {
    CHAT: frozenset({"messages", "max_completion_tokens"}),
    COMPLETIONS: frozenset({"prompt"}),
}
_NO_EFFECT = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "priority",
    ]
)
"""Fields of a body on which no answer depends."""
_AS_IF_NOT_GIVEN: dict[str, Any] = {
    "add_generation_prompt": True,
    "best_of": 1,
    "continue_final_message": False,
    "echo": False,
    "functions": [],
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "length_penalty": 1,
    "logit_bias": {},
    "min_p": 0,
    "min_tokens": 0,
    "parallel_tool_calls": True,
    "repetition_penalty": 1,
    "response_format": {"type": "text"},
    "skip_special_tokens": True,
    "stop_token_ids": [],
    "stream": False,
    "suffix": "",
    "tools": [],
    "top_logprobs": 0,
    "use_beam_search": False,
}
"""Values that ask for what is done anyway. Any other value of any other field is refused."""
_OF_MESSAGE = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})


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
    messages: list[dict[str, Any]] | None
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
    messages = request.messages and [_for_template(m.model_dump()) for m in request.messages]
    seeds = _seeds(request, request.seed, seed, 0, 1)
    return [Prompt(f"request {request.request_id}", request.text, messages, sampling, seeds)]


def answer(
    request: Any, completions: Sequence[Sequence[Completion]]
) -> TextResponse | OpenAIBatchResponse:
    """A row's response, from the completions of its prompts."""
    if not isinstance(request, OpenAIBatchRequest):
        one = completions[0][0]
        assert isinstance(request, TextRequest)
        response = TextResponse(
            request_id=request.request_id,
            model_name=request.model_name,
            text=one.text,
            finish_reason=one.finish_reason,
            prompt_tokens=one.prompt_tokens,
            completion_tokens=one.completion_tokens,
        )
        return response.deviates("ignored_field") if request.candidate_labels else response
    chat = request.url == CHAT
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
    request: OpenAIBatchRequest, vectors: Sequence[Sequence[float] | str], tokens: int
) -> dict[str, Any]:
    """The body of an answer from ``/v1/embeddings``."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": v if isinstance(v, str) else list(v)}
            for i, v in enumerate(vectors)
        ],
        "model": request.body.get("model"),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _of_openai(request: OpenAIBatchRequest, defaults: Sampling, seed: int) -> list[Prompt]:
    body, row = request.body, f"row {request.custom_id!r}"
    if request.url == EMBEDDINGS:
        raise ValueError(
            f"{row}: this model generates text and gives no embeddings; use the backend "
            "'sentence_transformers'"
        )
    if request.url not in _OF_URL:
        raise ValueError(f"{row}: this backend doesn't answer {request.url}; use 'vllm'")
    known = _HONOURED | _OF_URL[request.url] | _NO_EFFECT
    unsupported = [
        name
        for name, value in body.items()
        if name not in known and value is not None and not _is_as_if_not_given(name, value)
    ]
    if unsupported:
        raise ValueError(f"{row}: 'body' has {', '.join(unsupported)}, which isn't supported")
    given = {name: value for name, value in body.items() if value is not None}
    limit = given.get("max_completion_tokens", given.get("max_tokens", defaults.max_tokens))
    stop: Any = given.get("stop", ())
    top_k = _whole(given.get("top_k", 0))
    sampling = Sampling(
        max_tokens=None if limit is None else _whole(limit),
        temperature=float(given.get("temperature", 1.0)),  # type: ignore[arg-type]
        top_p=float(given.get("top_p", 1.0)),  # type: ignore[arg-type]
        top_k=max(0, top_k),
        n=_whole(given.get("n", 1)),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        presence_penalty=float(given.get("presence_penalty", 0.0)),  # type: ignore[arg-type]
        frequency_penalty=float(given.get("frequency_penalty", 0.0)),  # type: ignore[arg-type]
    )
    own = None if "seed" not in given else _whole(given["seed"])
    if request.url == CHAT:
        told: Any = body["messages"]
        messages = [_message(f"{row}: 'body.messages.{i}", m) for i, m in enumerate(told)]
        return [Prompt(row, None, messages, sampling, _seeds(request, own, seed, 0, sampling.n))]
    return [
        Prompt(row, text, None, sampling, _seeds(request, own, seed, i, sampling.n))
        for i, text in enumerate(request.texts)
    ]


def _is_as_if_not_given(name: str, value: Any) -> bool:
    if name == "logprobs":  # of completions, 0 asks for those of the tokens themselves
        return value is False
    return name in _AS_IF_NOT_GIVEN and bool(value == _AS_IF_NOT_GIVEN[name])


def _whole(value: Any) -> int:
    return int(value)


def _message(place: str, message: Any) -> dict[str, Any]:
    for name, value in message.items():
        if name not in _OF_MESSAGE and value is not None:
            raise ValueError(f"{place}.{name}' isn't supported")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and part.get("type") != "text":
                raise ValueError(
                    f"{place}.content' has a part that is not text: {part.get('type')}"
                )
        content = "".join(p if isinstance(p, str) else p["text"] for p in content)
    return _for_template({**message, "content": content})


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """A message as chat templates take it: arguments of tools as objects, not as JSON."""
    told = {name: value for name, value in message.items() if value is not None}
    calls = copy.deepcopy(told.get("tool_calls"))
    for call in calls or ():
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            with contextlib.suppress(json.JSONDecodeError):
                function["arguments"] = json.loads(function["arguments"])
    return {**told, "content": told.get("content", ""), **({"tool_calls": calls} if calls else {})}


def _seeds(request: Any, own: int | None, seed: int, prompt: int, n: int) -> tuple[int, ...]:
    """Of the row's own seed or identity: its draws depend on nothing that runs beside it."""
    base = f"{seed}:{own if own is not None else row_identity(request)}:{prompt}"
    hashes = (hashlib.sha256(f"{base}:{i}".encode()).digest() for i in range(n))
    return tuple(int.from_bytes(h[:8], "big") >> 1 for h in hashes)
