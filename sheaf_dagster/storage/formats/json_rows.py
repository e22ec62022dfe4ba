"""Rows of tables as lines of JSON: a column is a field of the same name.

=====================  ============================================================================
null                   the field isn't there: a table can't leave one out. In lists it stays null
NaN                    null, as JSON has no such number
integer                as it is, with all its digits
decimal                a number, with all its digits
timestamp, date, time  ISO 8601 text, with its zone where it has one
duration               seconds, with all their digits
binary                 base64 text
dictionary             the value that the code stands for
struct, map            an object; a null in a struct is left out, a key that is there twice refused
=====================  ============================================================================
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Sequence
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import orjson

from sheaf_dagster.storage.formats.fields import AS_THEY_ARE, FieldMap
from sheaf_dagster.storage.formats.meaning import Meaning

__all__ = ["json_rows"]


def json_rows(batch: Any, fields: FieldMap = AS_THEY_ARE) -> list[bytes]:
    """The rows of a record batch as lines of JSON, without newlines.

    Args:
        batch: The rows.
        fields: Which column is which field.
    """
    names, meaning = batch.schema.names, Meaning.of(batch.schema)
    columns = [_cells(column) for column in batch.columns]
    for i, field in enumerate(batch.schema):
        if (shape := _shape_of(field.type, nulls=meaning is not None)) is not None:
            columns[i] = [None if v is None else shape(v) for v in columns[i]]
    given: Callable[[dict[str, Any]], dict[str, Any]] = (
        _without_nulls if meaning is None else meaning.row
    )
    if fields:
        held = given
        given = lambda row: fields.row(held(row))  # noqa: E731
    rows = zip(*columns, strict=True) if columns else iter([()] * batch.num_rows)
    return [
        orjson.dumps(given(dict(zip(names, row, strict=True))), _as_json, _WITH_ARRAYS)
        for row in rows
    ]


_LARGEST_EXACT = 2**53

_WITH_ARRAYS = orjson.OPT_SERIALIZE_NUMPY


def _cells(column: Any) -> list[Any]:
    """The values of a column, ready for JSON.

    Lists of numbers without a null stay arrays, which are written in a fraction of the time.
    """
    import pyarrow as pa

    kind = column.type
    if pa.types.is_time64(kind) and kind.unit == "ns":
        # Python's times end at microseconds.
        texts = column.cast(pa.string()).to_pylist()
        pairs = zip(texts, column.to_pylist(), strict=True)
        return [text if text and not text.endswith("000") else value for text, value in pairs]
    numbers = (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) and (
        pa.types.is_float64(kind.value_type)
        or pa.types.is_float32(kind.value_type)
        or pa.types.is_int64(kind.value_type)
    )
    if not numbers:
        return column.to_pylist()  # type: ignore[no-any-return]
    flat = column.flatten()  # of what isn't null
    if flat.null_count:
        return column.to_pylist()  # type: ignore[no-any-return]
    values = np.from_dlpack(flat)  # ``to_numpy`` imports pandas
    if pa.types.is_float32(kind.value_type):
        values = values.astype("float64")  # JSON has the number that it is, not its shortest form
    sizes = [0 if n is None else n for n in column.value_lengths().to_pylist()]
    ends = itertools.accumulate(sizes)
    cells = [values[end - n : end] for n, end in zip(sizes, ends, strict=True)]
    return [
        cell if ok else None for cell, ok in zip(cells, column.is_valid().to_pylist(), strict=True)
    ]


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _shape_of(type: Any, nulls: bool) -> Callable[[Any], Any] | None:
    """What makes JSON's values of a column's structs, maps and times; None where there are none."""
    import pyarrow as pa

    if pa.types.is_time(type) or getattr(type, "tz", None) not in (None, "UTC"):
        return _iso
    if pa.types.is_struct(type):
        shapes = {field.name: _shape_of(field.type, nulls) for field in type}
        return lambda value: {
            name: v if v is None or (shape := shapes[name]) is None else shape(v)
            for name, v in value.items()
            if nulls or v is not None
        }
    if pa.types.is_map(type):
        item = _shape_of(type.item_type, nulls)
        return lambda value: _object(value, item)
    if hasattr(type, "value_type"):
        element = _shape_of(type.value_type, nulls)
        if element is not None:
            return lambda value: [None if v is None else element(v) for v in value]
    return None


def _object(pairs: Sequence[tuple[Any, Any]], item: Callable[[Any], Any] | None) -> dict[str, Any]:
    """A map, whose keys JSON has once each."""
    made: dict[str, Any] = {}
    for given, value in pairs:
        if (key := _key(given)) in made:
            raise ValueError(f"the key {key!r} is there twice")
        made[key] = value if item is None or value is None else item(value)
    return made


def _iso(value: Any) -> str:
    """A time, or one with a zone, as text; orjson drops a digit of some and seconds of old zones."""
    return value if isinstance(value, str) else value.isoformat()


def _key(value: Any) -> str:
    """A key of a map, written as a value of its type would be."""
    if isinstance(value, (str, time)):
        return _iso(value)
    return orjson.dumps(value, _as_json).decode().removeprefix('"').removesuffix('"')


def _seconds(value: timedelta) -> Any:
    nanoseconds = getattr(value, "value", None)  # of pandas' own, whose seconds have six digits
    ticks = value // timedelta(microseconds=1) if nanoseconds is None else nanoseconds
    digits = 6 if nanoseconds is None else 9
    if abs(ticks) < _LARGEST_EXACT:
        return ticks / 10**digits
    return orjson.Fragment(str(Decimal(ticks).scaleb(-digits)))


def _as_json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, timedelta):
        return _seconds(value)
    if isinstance(value, datetime):  # pandas' own, for nanoseconds
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} can't be written as JSON")
