"""Rows and answers of models that take arrays: named fields in, named fields out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator

from sheaf_dagster.contracts.base import BaseRequest, BaseResponse

__all__ = ["TENSORS", "TensorsRequest", "TensorsResponse"]

TENSORS = "tensors"
"""Model type under which the contract is registered."""


class TensorsRequest(BaseRequest):
    """One example, without a batch axis.

    Attributes:
        inputs: Each of the model's inputs by name: a number, a text, or nested lists of them, of
            equal lengths at each depth. ``null`` is a missing value.
    """

    model_type: Literal["tensors"] = "tensors"

    inputs: dict[str, JsonValue] = Field(min_length=1)

    @field_validator("inputs")
    @classmethod
    def _check_shapes(cls, inputs: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name, value in inputs.items():
            if isinstance(value, dict):
                raise ValueError(f"{name!r} must be a number, a text or nested lists of them")
            if isinstance(value, list):
                _shape(value, name)
        return inputs


class TensorsResponse(BaseResponse):
    """The answer to one example.

    Attributes:
        outputs: Each of the model's outputs by name, without a batch axis.
    """

    model_type: Literal["tensors"] = "tensors"

    outputs: dict[str, Any]


def _shape(value: list[JsonValue], name: str) -> tuple[int, ...]:
    if not any(isinstance(v, (list, dict)) for v in value):
        return (len(value),)
    shapes = {_shape(v, name) if isinstance(v, list) else () for v in value}
    if len(shapes) > 1 or () in shapes:
        raise ValueError(f"{name!r} is ragged: its lists have different shapes")
    return (len(value), *shapes.pop())
