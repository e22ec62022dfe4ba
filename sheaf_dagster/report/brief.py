"""Values in a few words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["brief", "middle_out"]

_TEXT = 80
_ITEMS = 3
_PATH = 250
"""Up to here, a word is taken for a path or URI, and keeps its end; else its length is told."""


def middle_out(word: str, most: int) -> str:
    """A word without its middle where it is too long: a path's end says more than its start."""
    return word if len(word) <= most else f"{word[: most // 4]}…{word[1 + most // 4 - most :]}"


def brief(value: Any, text: int = _TEXT, numbers: int = 4) -> str:
    """A value in a few words: the first numbers of a list, the start of a text.

    Long lists say how long they are, so that an embedding reads
    ``[0.0123, -0.4, 0.07, 0.2, … 384]``.
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        flat = " ".join(value.split())
        if " " not in flat and len(flat) <= _PATH:
            return middle_out(flat, text)
        return flat if len(flat) <= text else f"{flat[: text - 1]}… {len(value):,} characters"
    if isinstance(value, (list, tuple)):
        plain = all(isinstance(v, (int, float, type(None))) for v in value)
        shown = numbers if plain else _ITEMS
        parts = [brief(v, text // 2, numbers) for v in value[:shown]]
        if len(value) > shown:
            parts.append(f"… {len(value):,}")
        return f"[{', '.join(parts)}]"
    if isinstance(value, Mapping):
        items = list(value.items())[:_ITEMS]
        parts = [f"{k}: {brief(v, text // 2, numbers)}" for k, v in items]
        if len(value) > _ITEMS:
            parts.append(f"… {len(value):,}")
        return f"{{{', '.join(parts)}}}"
    return json.dumps(value, ensure_ascii=False, default=str)
