"""Rows as an MLflow model wants them, by its signature.

MLflow checks a batch against the signature by the type that each column of it has, which depends
on what its rows happen to hold: ``[1, null]`` is a column of floats, ``[1, 2]`` one of integers.
Here each value is read by the signature alone, so its batch mates don't matter, and a value that
doesn't fit is its own row's error.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sheaf_dagster.backends.tables.casting import cast
from sheaf_dagster.backends.tables.dates import read_date
from sheaf_dagster.backends.tables.fitted import FittedColumn
from sheaf_dagster.backends.tables.records import values_of
from sheaf_dagster.backends.tables.table import array_of, frame_of
from sheaf_dagster.contracts import FeaturesRequest

__all__ = ["ColumnInputs", "TensorInputs", "UnsignedInputs"]

_NUMBERS = {"double": "float64", "float": "float32", "long": "int64", "integer": "int32"}
_NEVER_MISSING = frozenset({"long", "integer"})
"""Types of which MLflow takes no missing value: where the column is optional, it is left out."""


class ColumnInputs:
    """Inputs of a signature of columns.

    Args:
        schema: The signature's inputs.
        known: What the model inside knows of the columns, by position.
    """

    def __init__(self, schema: Any, known: Mapping[int, FittedColumn]) -> None:
        self._named = bool(schema.has_input_names())
        self._names = [str(name) for name in schema.input_names()]
        self._specs = [spec.type for spec in schema.inputs]
        self._types = [str(getattr(spec.type, "name", "")) for spec in schema.inputs]
        self._optional = frozenset(map(str, schema.optional_input_names()))
        self._none = {i for i, column in known.items() if column.none}

    def read(self, request: FeaturesRequest) -> tuple[tuple[int, ...], list[Any]]:
        """The positions of the columns that a row gives, and its values of these.

        Raises:
            ValueError: A value isn't what the signature says; it is named.
        """
        if not self._named and isinstance(request.features, dict):
            request = request.model_copy(update={"features": list(request.features.values())})
        present, values = [], []
        for i, value in enumerate(values_of(request, self._names, self._optional)):
            kind, name = self._types[i], self._names[i]
            if value is None and kind in _NEVER_MISSING:
                if name in self._optional:
                    continue
                raise _wrong(request, name, f"is missing, which a column of type {kind} can't be")
            try:
                values.append(value if value is None else _read(value, self._specs[i]))
            except (ValueError, OverflowError) as e:
                raise _wrong(request, name, str(e)) from e
            present.append(i)
        return tuple(present), values

    def ignores(self, request: FeaturesRequest) -> bool:
        """Whether a row lacks an optional column and has a further field, maybe one misspelt."""
        given = request.features
        return (
            self._named
            and isinstance(given, dict)
            and not self._optional <= given.keys()
            and not given.keys() <= set(self._names)
        )

    def table(self, present: Sequence[int], rows: Sequence[Sequence[Any]]) -> Any:
        """A data frame of rows that give the same columns, in the types of the signature.

        MLflow takes a missing flag beside others only, so where a column has none but missing
        ones the frame has one row more at its end.
        """
        import numpy as np
        import pandas as pd

        unknown = [
            at
            for at, i in enumerate(present)
            if self._types[i] == "boolean" and all(row[at] is None for row in rows)
        ]
        if unknown:
            filler = [True if at in unknown else value for at, value in enumerate(rows[-1])]
            rows = [*rows, filler]
        columns: dict[int, Any] = {}
        for at, i in enumerate(present):
            cells, kind = [row[at] for row in rows], self._types[i]
            if kind in _NUMBERS:
                columns[i] = pd.Series(cells, dtype=_NUMBERS[kind])
            elif kind == "datetime":
                columns[i] = pd.Series(cells, dtype="datetime64[ns]")
            else:
                missing = None if i in self._none else np.nan
                filled = [missing if v is None else v for v in cells]
                columns[i] = pd.Series(filled, dtype=object)
        frame = pd.DataFrame(columns, index=range(len(rows)))
        names = [self._names[i] for i in present] if self._named else list(present)
        return frame.set_axis(names, axis="columns")


class TensorInputs:
    """Inputs of a signature of arrays, with the batch as the first axis.

    Args:
        schema: The signature's inputs.
    """

    def __init__(self, schema: Any) -> None:
        self._named = bool(schema.has_input_names())
        self._specs = list(schema.inputs)
        self._names = [str(name) for name in schema.input_names()]

    def read(self, request: FeaturesRequest) -> tuple[tuple[Any, ...], list[Any]]:
        """The shapes of a row's arrays, and the arrays.

        Raises:
            ValueError: A value isn't what the signature says; it is named.
        """
        if self._named:
            values = values_of(request, self._names)
        else:
            given = request.features
            values = [list(given.values()) if isinstance(given, dict) else given]
        arrays = []
        for name, spec, value in zip(self._names, self._specs, values, strict=True):
            try:
                array = cast(value, spec.type)
                arrays.append(_shaped(array, spec.shape[1:]))
            except (ValueError, TypeError, OverflowError) as e:
                raise _wrong(request, name if self._named else None, str(e)) from e
        return tuple(array.shape for array in arrays), arrays

    def table(self, shapes: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Any:
        """The arrays of rows of the same shapes, stacked; by name where they have names."""
        import numpy as np

        stacked = [np.stack(arrays) for arrays in zip(*rows, strict=True)]
        return dict(zip(self._names, stacked, strict=True)) if self._named else stacked[0]


class UnsignedInputs:
    """Inputs of a model without a signature.

    Args:
        names: Columns that the model inside was fitted with. None where it knows none: then a row
            gives them in its own order, and a list is an array.
        known: What the model inside knows of the columns, by position.
    """

    def __init__(self, names: Sequence[str] | None, known: Mapping[int, FittedColumn]) -> None:
        self._names = None if names is None else tuple(names)
        self._known = known

    def read(self, request: FeaturesRequest) -> tuple[tuple[Any, ...], list[Any]]:
        """The columns of a row (none of a list that has no names), and its values.

        Raises:
            ValueError: The row lacks a column; it is named.
        """
        if self._names is not None:
            return self._names, values_of(request, self._names)
        given = request.features
        if isinstance(given, dict):
            return tuple(given), list(given.values())
        return (), list(given)

    def table(self, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
        """A data frame of rows that have the same columns, or an array of lists."""
        return frame_of(rows, names, self._known) if names else array_of(rows, self._known)


def _shaped(array: Any, wanted: Sequence[int]) -> Any:
    """A row's array in the shape of the signature, where that is a question of brackets."""
    import math

    fixed = -1 not in wanted
    return array.reshape(tuple(wanted)) if fixed and array.size == math.prod(wanted) else array


def _wrong(request: FeaturesRequest, name: str | None, why: str) -> ValueError:
    field = "features" if name is None else f"features.{name}"
    return ValueError(f"request {request.request_id}: '{field}': {why}, says the model's signature")


def _number(value: Any, kind: str) -> Any:
    if kind == "double" and type(value) is float:  # most cells, without an array for each
        return value
    if isinstance(value, (bool, list, dict)):
        raise ValueError(f"{value!r} is not a number but a {type(value).__name__} ({kind})")
    return cast(value, _NUMBERS[kind])[()]


def _flag(value: Any, kind: str) -> Any:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _bytes(value: Any, kind: str) -> Any:
    try:
        return base64.b64decode(_text(value, kind), validate=True)
    except ValueError as e:
        raise ValueError(f"the text is not base64-encoded bytes: {e}") from e


def _date(value: Any, kind: str) -> Any:
    return read_date(value)  # a signature's dates have no time zone


def _text(value: Any, kind: str) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text but a {type(value).__name__}")
    return value


def _read(value: Any, kind: Any) -> Any:
    """A value as a type of MLflow has it, also one of lists and objects.

    Raises:
        ValueError: It isn't of the type.
    """
    if hasattr(kind, "properties"):
        own = {p.name: p for p in kind.properties}
        given = _checked(value, dict, "object")
        return {
            name: _part(v, own[name].dtype, name) if name in own else v
            for name, v in given.items()
            if v is not None or name not in own or own[name].required
        }
    if hasattr(kind, "value_type"):
        given = _checked(value, dict, "object")
        return {name: _part(v, kind.value_type, name) for name, v in given.items()}
    if hasattr(kind, "dtype"):
        return [_part(v, kind.dtype, i) for i, v in enumerate(_checked(value, list, "list"))]
    name = str(getattr(kind, "name", ""))
    reader = _READERS.get(name)
    return value if reader is None else reader(value, name)


def _part(value: Any, kind: Any, place: int | str) -> Any:
    if value is None:  # MLflow knows where that may be
        return None
    try:
        return _read(value, kind)
    except (ValueError, OverflowError) as e:
        raise ValueError(f"at {place}: {e}") from e


def _checked(value: Any, wanted: type, what: str) -> Any:
    if not isinstance(value, wanted):
        raise ValueError(f"{value!r} is not a {what} but a {type(value).__name__}")
    return value


_READERS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(_NUMBERS, _number),
    "boolean": _flag,
    "string": _text,
    "binary": _bytes,
    "datetime": _date,
}
