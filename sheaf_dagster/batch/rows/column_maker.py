"""Arrow arrays of what answers say in one field."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import NoneType
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import numpy as np
import orjson

from sheaf_dagster.batch.rows.answers import non_finite_in
from sheaf_dagster.batch.rows.arrays import all_finite, nulls, of_type, stacked

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["ColumnMaker"]


class ColumnMaker:
    """Makes arrays of one column of Python's values."""

    def __init__(self, field: pa.Field, holds_json: bool) -> None:
        self.name = field.name
        self._type = field.type
        self._json = holds_json
        self._convert = None if holds_json else _converter(field.type)
        self._is_text = self._convert is _text
        self._float_max = _float_max(field.type)

    def of(
        self, values: list[Any] | NDArray[np.floating] | None, rows: int
    ) -> tuple[pa.Array, int]:
        """The array, and how many numbers in it aren't finite and became ``null``.

        Args:
            values: Of the rows, or an array of lists of floats, or lists of such; None where none
                of them has the field.
            rows: How many they are.
        """
        import pyarrow as pa

        if isinstance(values, np.ndarray):
            made = stacked(values, self._type)
            if made is not None and all_finite(made):
                return made, 0
            return self.of(values.tolist(), rows)

        kinds = {NoneType} if values is None else {*map(type, values)}
        if values is None or kinds == {NoneType}:
            return nulls(rows, self._type), 0
        if self._json:
            texts = [None if v is None else orjson.dumps(v).decode() for v in values]
            bad = sum(
                non_finite_in(v)
                for v, text in zip(values, texts, strict=True)
                if text and "null" in text
            )
            return pa.array(texts, self._type), bad
        if self._is_text and kinds <= {str, UUID}:
            # Of ids this makes texts, in a fourth of the time that ``str`` takes.
            values = values if kinds == {str} else msgspec.to_builtins(values)
        elif self._convert is not None:
            values = [None if v is None else self._convert(v) for v in values]
        array = of_type(values, self._type)
        if self._float_max is None or all_finite(array):
            return array, 0
        finite = [_finite(v, self._float_max) for v in values]
        return pa.array([v for v, _ in finite], self._type), sum(n for _, n in finite)


def _converter(type: pa.DataType) -> Callable[[Any], Any] | None:
    """What makes of a value what pyarrow takes for the type; None where it takes it as it is."""
    import pyarrow as pa

    if pa.types.is_string(type):
        return _text
    if pa.types.is_map(type):
        item = _converter(type.item_type)
        if item is None:
            return lambda value: [*value.items()]
        return lambda value: [(k, None if v is None else item(v)) for k, v in value.items()]
    if pa.types.is_struct(type):
        inner = {f.name: convert for f in type if (convert := _converter(f.type)) is not None}
        return functools.partial(_struct, frozenset(f.name for f in type), inner)
    if hasattr(type, "value_type"):
        element = _converter(type.value_type)
        if element is not None:
            return lambda value: [None if v is None else element(v) for v in value]
    return None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not text")


def _struct(names: frozenset[str], inner: dict[str, Callable[[Any], Any]], value: Any) -> Any:
    if not value.keys() <= names:
        raise TypeError(f"field {min(value.keys() - names)!r} is not a field of the contract")
    return {
        name: inner[name](held) if name in inner and held is not None else held
        for name, held in value.items()
    }


def _float_max(type: pa.DataType) -> float | None:
    """The largest number of the floats within a type; None where there are none."""
    import pyarrow as pa

    if pa.types.is_float32(type):
        return float(2**128 - 2**103)  # halfway to the first that is none: rounded beyond it
    if pa.types.is_float64(type):
        return float("inf")
    inner = [type.field(i).type for i in range(type.num_fields)]
    return next((m for t in inner if (m := _float_max(t)) is not None), None)


def _finite(value: Any, most: float) -> tuple[Any, int]:
    """A value with null in place of numbers that aren't finite, and how many there were."""
    if isinstance(value, float):
        return (value, 0) if -most < value < most else (None, 1)
    if isinstance(value, dict):
        pairs = {name: _finite(held, most) for name, held in value.items()}
        return {k: v for k, (v, _) in pairs.items()}, sum(n for _, n in pairs.values())
    if isinstance(value, (list, tuple)):
        items = [_finite(held, most) for held in value]
        return type(value)(v for v, _ in items), sum(n for _, n in items)
    return value, 0
