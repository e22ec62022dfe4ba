"""Arguments of the built-in backends, held against the types that their classes declare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from sheaf_dagster.backends.sheaf.arguments import declared_types
from sheaf_dagster.errors import SpecError

__all__ = ["check_arguments"]


def check_arguments(backend: type[Any], name: str, given: Mapping[str, Any]) -> None:
    """Raises where an argument is of another type than a built-in backend declares.

    Without, it would come to light at each row, or change answers without a word. Backends of
    others may convert what they are given, and are left alone.

    Args:
        backend: The class.
        name: Names the model in messages.
        given: Arguments, as the spec has them.

    Raises:
        SpecError: The first such argument is named.
    """
    if not backend.__module__.startswith("sheaf_dagster."):
        return
    hints = get_type_hints(backend.__init__)
    wrapped = getattr(backend, "theirs", None)
    if wrapped is not None:
        hints |= declared_types(wrapped)
    for argument, value in given.items():
        if argument not in hints or (isinstance(value, dict) and value.keys() == {"env"}):
            continue
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):  # of Python's own, such as a path
            continue
        try:
            TypeAdapter(hints[argument]).validate_json(text, strict=True)
        except ValidationError as e:
            first = e.errors(include_url=False)[0]
            raise SpecError(
                f"model {name!r}: backend_kwargs.{argument} is {value!r}: {first['msg']}"
            ) from e
