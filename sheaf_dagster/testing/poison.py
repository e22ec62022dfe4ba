"""Rows that may spoil the answers of their batch mates."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel

__all__ = ["poison_of"]

_BEYOND_FLOAT32 = 1e39
_TIMES = 40


def poison_of(request: Any) -> list[Any]:
    """Requests like a valid one, each with one field that may spoil its batch mates' answers.

    Numbers become infinite or larger than float32 holds, texts and lists empty or very long; what
    the contract refuses is left out.
    """
    if not isinstance(request, BaseModel):
        return []
    row = request.model_dump(mode="python")
    made: list[Any] = []
    for name in sorted(row.keys() - {"request_id", "model_type", "model_name", "custom_id"}):
        for spoil in (_infinite, _huge, _emptied, _lengthened):
            value = spoil(row[name])
            if value == row[name]:
                continue
            try:
                made.append(type(request).model_validate({**row, name: value}))
            except Exception:  # noqa: S112  (the contract doesn't let it in)
                continue
    return made


def _infinite(value: Any) -> Any:
    return _with_numbers(value, math.inf)


def _huge(value: Any) -> Any:
    return _with_numbers(value, _BEYOND_FLOAT32)


def _with_numbers(value: Any, number: float) -> Any:
    """The value with a number in place of one of its floats, or of each where it is not a list."""
    if isinstance(value, float):
        return number
    if isinstance(value, dict):
        return {key: _with_numbers(part, number) for key, part in value.items()}
    if isinstance(value, list) and value:
        middle = len(value) // 2
        return [*value[:middle], _with_numbers(value[middle], number), *value[middle + 1 :]]
    return value


def _emptied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _emptied(part) for key, part in value.items()}
    if isinstance(value, list) and value and type(value[0]) is str:
        return [_emptied(part) for part in value]
    return type(value)() if type(value) in (str, list) else value


def _lengthened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lengthened(part) for key, part in value.items()}
    if isinstance(value, list) and value and type(value[0]) is str:
        return [_lengthened(part) for part in value]
    return value * _TIMES if type(value) in (str, list) else value
