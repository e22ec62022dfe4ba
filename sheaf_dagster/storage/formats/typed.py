"""Values of JSON as a column of a type: the way back from what ``json_rows`` writes."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "column_of",
    "exact_type",
    "fits",
    "has_one_form",
    "holds",
    "needs_decimals",
    "one_type",
    "plain_type",
    "without_decimals",
]

_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def has_one_form(type: pa.DataType) -> bool:
    """Whether each value of a type comes back from its JSON as it was, but for NaN and infinity."""
    import pyarrow as pa

    if _is_list(type):
        return has_one_form(type.value_type)
    if pa.types.is_struct(type):
        fields = list(type)
        return len({f.name for f in fields}) == len(fields) > 0 and all(
            has_one_form(f.type) for f in fields
        )
    if pa.types.is_map(type):
        return _is_key(type.key_type) and has_one_form(type.item_type)
    if pa.types.is_dictionary(type):
        return _is_number_or_text(type.value_type)
    return (
        _is_number_or_text(type)
        or _is_binary(type)
        or pa.types.is_temporal(type)
        or pa.types.is_decimal(type)
        or isinstance(type, (pa.UuidType, pa.JsonType))
    )


def plain_type(type: pa.DataType) -> pa.DataType:
    """A type with room for what other files hold: more codes, and nulls in structs.

    Views of texts, bytes and lists, which are a matter of memory, become these.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(type):
        return pa.dictionary(pa.int32(), plain_type(type.value_type))
    if pa.types.is_struct(type):
        return pa.struct([(field.name, plain_type(field.type)) for field in type])
    if pa.types.is_map(type):
        return pa.map_(plain_type(type.key_type), plain_type(type.item_type))
    if pa.types.is_fixed_size_list(type):
        return pa.list_(plain_type(type.value_type), type.list_size)
    if pa.types.is_large_list(type) or pa.types.is_large_list_view(type):
        return pa.large_list(plain_type(type.value_type))
    if pa.types.is_list(type) or pa.types.is_list_view(type):
        return pa.list_(plain_type(type.value_type))
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(type, type)


def one_type(type: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of two plain ones as they are; None where there is none.

    Some numbers and moments may lie beyond it: casting these to it fails.
    """
    import pyarrow as pa

    if type == other:
        return type
    if pa.types.is_dictionary(type) and pa.types.is_dictionary(other):
        found = one_type(type.value_type, other.value_type)
        return None if found is None else pa.dictionary(pa.int32(), found)
    if pa.types.is_dictionary(type) or pa.types.is_dictionary(other):
        if pa.types.is_null(type) or pa.types.is_null(other):
            return other if pa.types.is_null(type) else type
        return one_type(*(getattr(t, "value_type", t) for t in (type, other)))
    pair = (_as_decimal(type, other), _as_decimal(other, type))
    try:
        schemas = [pa.schema([("column", one)]) for one in pair]
        found = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None
    return None if any(_is_other_sort(one, found) for one in pair) else found


def exact_type(column: pa.Array) -> pa.DataType:
    """A column's type, at any depth with a decimal for integers that a double can't hold.

    It has 19 digits, or 20 where an ``int64`` can't hold them either.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    type = column.type
    if pa.types.is_struct(type):
        inner = zip(type, column.flatten(), strict=True)
        return pa.struct([field.with_type(exact_type(own)) for field, own in inner])
    if pa.types.is_map(type):
        return pa.map_(type.key_type, exact_type(column.items))
    if _is_list(type):
        return pa.list_(exact_type(column.flatten()))
    if pa.types.is_integer(type):
        ends = [end or 0 for end in pc.min_max(column).as_py().values()]
        if max(map(abs, ends)) > 2**53:
            return pa.decimal128(20 if max(ends) >= 2**63 else 19, 0)
    return type


def holds(whole: pa.DataType, exact: pa.DataType) -> bool:
    """Whether the type that ``one_type`` makes of a column's holds all that its ``exact_type`` tells."""
    return not _is_other_sort(exact, whole)


def _as_decimal(type: pa.DataType, other: pa.DataType) -> pa.DataType:
    """An integer beside a decimal as a decimal with room for all its digits."""
    import pyarrow as pa

    integer = pa.types.is_integer(type) and pa.types.is_decimal(other)
    return pa.decimal128(len(str(2**type.bit_width)), 0) if integer else type


def _is_other_sort(type: pa.DataType, whole: pa.DataType) -> bool:
    """Whether pyarrow takes texts for bytes, or decimals for floats or few digits, at any depth."""
    import pyarrow as pa

    if pa.types.is_struct(type):
        return any(_is_other_sort(field.type, whole.field(field.name).type) for field in type)
    if type.num_fields:
        inner = [(type.field(i).type, whole.field(i).type) for i in range(type.num_fields)]
        return any(_is_other_sort(*pair) for pair in inner)
    if pa.types.is_decimal(type):
        digits = type.precision - type.scale
        if pa.types.is_decimal(whole):
            return bool(digits > whole.precision - whole.scale)
        return bool(pa.types.is_floating(whole) or (pa.types.is_int64(whole) and digits > 19))
    return _is_text(type) and _is_binary(whole)


def fits(value: Any, type: pa.DataType) -> bool:
    """Whether a value of JSON can be one of a column of a type."""
    import pyarrow as pa

    try:
        column_of([value], type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return False
    return True


def needs_decimals(type: pa.DataType) -> bool:
    """Whether a type, or one inside of it, has more digits than a float, so that JSON's are read as decimals."""
    import pyarrow as pa

    inner = [type.field(i).type for i in range(type.num_fields)]
    exact = pa.types.is_decimal(type) or pa.types.is_duration(type)
    return exact or any(map(needs_decimals, inner))


def column_of(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    """A column of values of JSON, each as it is.

    Args:
        values: The values; those of a type that ``needs_decimals`` are ``Decimal``.
        type: A type of which ``has_one_form``.

    Raises:
        ArrowException, OverflowError, TypeError, ValueError: One isn't of the type, or the type can't
            hold all of it.
    """
    import pyarrow as pa

    if pa.types.is_struct(type):
        return _structs(values, type)
    if pa.types.is_map(type):
        return _maps(values, type)
    if _is_list(type) and (
        pa.types.is_float16(type.value_type) or not _is_number_or_text(type.value_type)
    ):
        return _lists(values, type)
    if _is_binary(type):
        return pa.array(
            [None if v is None else base64.b64decode(v, validate=True) for v in values], type
        )
    if isinstance(type, pa.UuidType):
        ids = [None if v is None else UUID(v).bytes for v in values]
        return pa.ExtensionArray.from_storage(type, pa.array(ids, type.storage_type))
    if isinstance(type, pa.JsonType):
        return pa.ExtensionArray.from_storage(type, column_of(values, type.storage_type))
    if pa.types.is_duration(type):
        return pa.array(
            [None if v is None else _ticks(v, type.unit) for v in values], pa.int64()
        ).cast(type)
    if pa.types.is_temporal(type):
        return _times(values, type)
    if pa.types.is_float16(type):
        return _halves(values, type)
    if _is_number(type) and _has_booleans(values):
        raise TypeError("true and false are no numbers")
    made = pa.array(values, type)
    if _may_round(type) and made.to_pylist() != list(values):
        raise ValueError("a number is beyond what the type can hold")
    return made


def without_decimals(value: Any) -> Any:
    """A value with floats in place of decimals, at any depth."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: without_decimals(v) for name, v in value.items()}
    return [without_decimals(v) for v in value] if isinstance(value, list) else value


def _structs(values: Sequence[Any], type: pa.StructType) -> pa.Array:
    import pyarrow as pa

    if not type.num_fields:
        return pa.array(values, type)
    fields = list(type)
    known = {field.name for field in fields}
    for value in values:
        if value is not None and not (isinstance(value, dict) and known.issuperset(value)):
            raise TypeError("a value isn't an object of the type's fields")
    columns = []
    for field in fields:
        own = [None if v is None else v.get(field.name) for v in values]
        if not needs_decimals(field.type):
            own = [without_decimals(v) for v in own]
        columns.append(column_of(own, field.type))
    missing = pa.array([v is None for v in values], pa.bool_())
    return pa.StructArray.from_arrays(columns, fields=fields, mask=missing)


def _maps(values: Sequence[Any], type: pa.MapType) -> pa.Array:
    import pyarrow as pa

    if not all(value is None or isinstance(value, dict) for value in values):
        raise TypeError("a value isn't an object")
    given = [value or {} for value in values]
    keys = _keys([*itertools.chain.from_iterable(given)], type.key_type)
    items = column_of([item for value in given for item in value.values()], type.item_type)
    return pa.MapArray.from_arrays(_offsets(values, pa.int32()), keys, items, type)


def _keys(texts: Sequence[str], type: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_integer(type) or pa.types.is_boolean(type):
        return pa.array(texts, pa.string()).cast(type)
    return column_of(texts, type)


def _lists(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if not all(value is None or isinstance(value, list) for value in values):
        raise TypeError("a value isn't a list")
    if pa.types.is_fixed_size_list(type):
        if any(v is not None and len(v) != type.list_size for v in values):
            raise ValueError("a list has another length")
        filled = [[None] * type.list_size if v is None else v for v in values]
        inner = column_of([*itertools.chain.from_iterable(filled)], type.value_type)
        missing = pa.array([v is None for v in values], pa.bool_())
        return pa.FixedSizeListArray.from_arrays(inner, type=type, mask=missing)
    large = pa.types.is_large_list(type)
    inner = column_of([one for value in values if value for one in value], type.value_type)
    offsets = _offsets(values, pa.int64() if large else pa.int32())
    made = pa.LargeListArray if large else pa.ListArray
    return made.from_arrays(offsets, inner, type=type)


def _offsets(values: Iterable[Any], type: pa.DataType) -> pa.Array:
    """Where the items of lists or objects begin; null where there is no list, and the end of all."""
    import pyarrow as pa

    begins: list[int | None] = []
    end = 0
    for value in values:
        begins.append(None if value is None else end)
        end += len(value or ())
    return pa.array([*begins, end], type)


def _ticks(seconds: Any, unit: str) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, Decimal)):
        raise TypeError("a duration is a number of seconds")
    ticks = seconds * _UNITS[unit]
    if ticks != int(ticks):
        raise ValueError("a duration has more digits than the type can hold")
    return int(ticks)


def _times(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    """Texts as dates or times."""
    import pyarrow as pa

    if pa.types.is_date(type):
        return pa.array(values, pa.string()).cast(type)
    if pa.types.is_time(type):  # which Arrow reads only behind a date
        values = [None if value is None else "1970-01-01T" + value for value in values]
    # Arrow reads as many digits as a unit has, and the texts may have those of microseconds.
    finest = pa.timestamp("ns" if type.unit == "ns" else "us", getattr(type, "tz", None))
    return pa.array(values, pa.string()).cast(finest).cast(type)


def _halves(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    if _has_booleans(values):
        raise TypeError("true and false are no numbers")
    made = np.array([0.0 if v is None else v for v in values], dtype=np.float16)
    if made.astype(float).tolist() != [0.0 if v is None else v for v in values]:
        raise ValueError("a number is beyond what the type can hold")
    return pa.array(made, type, mask=np.array([v is None for v in values], dtype=bool))


def _is_list(type: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)
    )


def _is_text(type: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def _is_key(type: pa.DataType) -> bool:
    """Whether keys of maps, which JSON has as texts, come back from these as they were."""
    import pyarrow as pa

    numbers = pa.types.is_integer(type) or pa.types.is_boolean(type)
    times = pa.types.is_temporal(type) and not pa.types.is_duration(type)
    return numbers or times or _is_text(type) or _is_binary(type)


def _is_binary(type: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_binary(type)
        or pa.types.is_large_binary(type)
        or pa.types.is_fixed_size_binary(type)
    )


def _is_number_or_text(type: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_integer(type)
        or pa.types.is_floating(type)
        or pa.types.is_boolean(type)
        or _is_text(type)
    )


def _is_number(type: pa.DataType) -> bool:
    """Whether Arrow takes true for 1 in a column of the type."""
    import pyarrow as pa

    inner = getattr(type, "value_type", type)
    return bool(
        pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_decimal(inner)
    )


def _has_booleans(values: Sequence[Any]) -> bool:
    types = set(map(type, values))  # at once: a vector has hundreds
    return bool in types or (
        list in types and any(type(v) is list and _has_booleans(v) for v in values)
    )


def _may_round(type: pa.DataType) -> bool:
    """Whether Arrow takes numbers for the type, or for what lists of it hold, that it can't represent."""
    import pyarrow as pa

    inner = getattr(type, "value_type", type)
    return inner == pa.float32() or bool(pa.types.is_integer(inner))
