"""Rows as bodies of the OpenAI API, and its answers as responses.

For backends that pass a body on to an engine or a server that speaks that API.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from sheaf_dagster.backends.language.refusal import RefusedError
from sheaf_dagster.contracts import (
    OpenAIBatchRequest,
    OpenAIBatchResponse,
    TextRequest,
    TextResponse,
    row_identity,
)
from sheaf_dagster.contracts.openai_bodies import CHAT, COMPLETIONS

__all__ = ["body_of", "key_of", "response_of", "seeded"]


def body_of(request: Any, defaults: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """URL and body of a row.

    Args:
        request: A ``TextRequest`` or an ``OpenAIBatchRequest``.
        defaults: ``max_tokens``, ``temperature``, ``top_p`` and ``top_k`` of a text row that
            doesn't say. Of a line's, ``max_tokens`` alone: one that says nothing else means that
            API's own defaults.
    """
    if isinstance(request, OpenAIBatchRequest):
        body: dict[str, Any] = dict(request.body)
        limits = {"max_tokens", "max_completion_tokens"}
        given = any(body.get(name) is not None for name in limits)
        limit = defaults.get("max_tokens")
        if limit is not None and not given and request.url in (CHAT, COMPLETIONS):
            body["max_tokens"] = limit
        return request.url, body
    assert isinstance(request, TextRequest)
    asked = {
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "seed": request.seed,
        "stop": request.stop or None,
    }
    body = {**defaults, **{name: v for name, v in asked.items() if v is not None}}
    if body.get("top_k") == 0:  # all: not every server knows the field
        del body["top_k"]
    body = {name: v for name, v in body.items() if v is not None}
    body["model"] = request.model_name
    if request.messages is None:
        return COMPLETIONS, {**body, "prompt": request.text}
    told = [message.model_dump(exclude_none=True) for message in request.messages]
    return CHAT, {**body, "messages": told}


def key_of(request: Any, url: str, body: Mapping[str, Any]) -> str:
    """Names a row within its job, at each run alike (hex, 32 digits)."""
    own = request.digest() if isinstance(request, OpenAIBatchRequest) else str(request.request_id)
    text = json.dumps([own, url, body], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def seeded(
    url: str,
    body: Mapping[str, Any],
    request: Any,
    seed: int,
    urls: Collection[str] = (CHAT, COMPLETIONS),
) -> dict[str, Any]:
    """The body with a seed of its own where it draws and gives none.

    It is made of the row's identity: a row draws the same whatever runs beside it.

    Args:
        url: Where the body goes.
        body: The body.
        request: The row.
        seed: Mixed in.
        urls: Where a body may have a seed.
    """
    if url not in urls or body.get("seed") is not None or not _draws(body):
        return dict(body)
    digest = hashlib.sha256(f"{seed}:{row_identity(request)}".encode()).digest()
    return {**body, "seed": int.from_bytes(digest[:8], "big") >> 1}


def _draws(body: Mapping[str, Any]) -> bool:
    return body.get("temperature") != 0


def response_of(
    request: Any, url: str, body: Mapping[str, Any]
) -> TextResponse | OpenAIBatchResponse:
    """A row's response.

    Ids and times that a server made up are replaced by derived ones: the same file gives the same
    answers.

    Raises:
        RefusedError: A row of a text has an answer without one.
    """
    if isinstance(request, OpenAIBatchRequest):
        return request.answer(_repeatable(body, request.digest()))
    choice = body["choices"][0]
    said = choice["message"] if url == CHAT else {"content": choice["text"]}
    text = said.get("content")
    if not isinstance(text, str):
        reason = said.get("refusal") or f"finish_reason is {choice.get('finish_reason')!r}"
        raise RefusedError(f"the answer has no text: {reason}", 502, "NoText")
    usage = body.get("usage") or {}
    response = TextResponse(
        request_id=request.request_id,
        model_name=request.model_name,
        text=text,
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )
    return response.deviates("ignored_field") if request.candidate_labels else response


def _repeatable(body: Mapping[str, Any], digest: str) -> dict[str, Any]:
    made = dict(body)
    if isinstance(made.get("id"), str):
        made["id"] = f"{made['id'].split('-')[0].split('_')[0]}-{digest}"
    for time in ("created", "created_at"):
        if time in made:
            made[time] = 0
    calls = [
        call
        for choice in made.get("choices") or ()
        for call in (choice.get("message") or {}).get("tool_calls") or ()
    ]
    for i, item in enumerate([*calls, *(made.get("output") or ())]):
        for name in ("id", "call_id"):
            if isinstance(item.get(name), str):
                kind = "call" if name == "call_id" or item in calls else "item"
                item[name] = f"{kind}_{digest}_{i}"
    return made
