"""Fields of a body that vLLM takes, and that would change nothing in its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from sheaf_dagster.contracts.openai_bodies import RESPONSES

__all__ = ["unknown_fields", "without_effect"]

_FREE = frozenset({"messages", "input"})
"""Fields whose parts have models of many kinds, with keys of the models' own."""


def unknown_fields(parsed: Any, given: Any) -> list[str]:
    """Names that a body's model doesn't have, at any depth, from the body on.

    Args:
        parsed: What was made of the body, or of a part of it.
        given: The body, or the part, as the row has it.
    """
    return sorted(_unknown(parsed, given, ""))


def _unknown(parsed: Any, given: Any, place: str) -> Iterator[str]:
    if isinstance(parsed, list) and isinstance(given, list):
        for i, (one, own) in enumerate(zip(parsed, given, strict=False)):
            yield from _unknown(one, own, f"{place}{i}.")
    if not isinstance(given, Mapping):
        return
    names = _names_of(parsed)
    if names is None:
        return
    for name, value in given.items():
        if name not in names:
            yield place + name
        elif name not in _FREE or place:
            yield from _unknown(getattr(parsed, names[name]), value, f"{place}{name}.")


def _names_of(parsed: Any) -> dict[str, str] | None:
    """Attributes of a model by the names that a body may give them; None of what is no model."""
    if isinstance(parsed, BaseModel):
        fields = type(parsed).model_fields
        aliases = {field.alias: name for name, field in fields.items() if field.alias}
        return {**{name: name for name in fields}, **aliases}
    if dataclasses.is_dataclass(parsed):
        return {f.name: f.name for f in dataclasses.fields(parsed)}
    return None


def without_effect(url: str, body: Mapping[str, Any]) -> list[str]:
    """Names of fields that are known, and read by nothing that makes the answer.

    Args:
        url: Where the body goes.
        body: The body.
    """
    found = []
    if body.get("length_penalty", 1) != 1 and not body.get("use_beam_search"):
        found.append("length_penalty")  # of beams
    if url == RESPONSES:
        if body.get("max_tool_calls") is not None:
            found.append("max_tool_calls")
        text = body.get("text")
        if isinstance(text, Mapping) and text.get("verbosity") is not None:
            found.append("text.verbosity")
    return found
