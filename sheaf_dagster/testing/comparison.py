"""Whether two answers are the same, and where they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

__all__ = ["difference", "plain", "require_same", "shown"]


def plain(row: Any) -> Any:
    """A row as plain values."""
    return row.model_dump(mode="python") if isinstance(row, BaseModel) else row


def require_same(first: Sequence[Any], second: Sequence[Any], what: str) -> None:
    """Asserts that answers are equal; ``what`` begins the message."""
    assert len(first) == len(second), f"{what}: {len(first)} and {len(second)} responses"
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        found = difference(plain(a), plain(b), 0.0)
        assert found is None, f"{what}: response {i}, {found}"


def difference(a: Any, b: Any, tolerance: float, where: str = "") -> str | None:
    """Where two values differ, and by what; None where they don't."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where or 'fields'}: {sorted(map(str, a))} and {sorted(map(str, b))}"
        pairs = [(f"{where}.{key}" if where else str(key), a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} values"
        pairs = [(f"{where}.{i}", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, float) and isinstance(b, float):
        same = math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) or (a != a and b != b)
        return None if same else f"{where}: {a} and {b}"
    else:
        return None if a == b else f"{where}: {a!r} and {b!r}"
    found = (difference(x, y, tolerance, at) for at, x, y in pairs)
    return next((one for one in found if one is not None), None)


def shown(request: Any) -> str:
    """A request in a message, cut where it is long."""
    text = repr(request)
    return text if len(text) <= 200 else f"{text[:200]}…"
