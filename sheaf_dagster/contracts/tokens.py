"""Tokens that answers say they took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TOKEN_KINDS", "tokens_of"]

TOKEN_KINDS = ("prompt", "output", "hit")
"""Read, made, and those of the read ones that the engine had in its cache. They begin with letters
of their own, by which parts keep the counts."""

_NONE: Mapping[str, int] = {}


def tokens_of(response: Any) -> Mapping[str, int]:
    """Tokens of a response by kind, where its contract counts them.

    A response class does by a method ``token_usage`` that gives the ``usage`` of the OpenAI API.
    """
    usage = getattr(response, "token_usage", None)
    told = usage() if callable(usage) else None
    if not isinstance(told, Mapping):
        return _NONE
    details = told.get("prompt_tokens_details") or told.get("input_tokens_details") or _NONE
    return {
        "prompt": _number(told.get("prompt_tokens", told.get("input_tokens"))),
        "output": _number(told.get("completion_tokens", told.get("output_tokens"))),
        "hit": _number(details.get("cached_tokens")),
    }


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
