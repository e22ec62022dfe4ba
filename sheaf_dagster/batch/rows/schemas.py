"""Walking through the core schemas that pydantic makes of contracts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["NO_SCHEMAS", "schemas_in"]

NO_SCHEMAS = frozenset({"config", "default", "expected", "function", "members", "metadata"})
"""Words of a schema whose values are no schemas."""


def schemas_in(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema of pydantic's and all within it."""
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (list, tuple)):
            waiting += node
        elif isinstance(node, dict):
            if isinstance(node.get("type"), str):
                yield node
                waiting += [value for key, value in node.items() if key not in NO_SCHEMAS]
            else:  # fields or choices, by names of any kind
                waiting += node.values()
