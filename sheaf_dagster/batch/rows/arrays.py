"""What is asked of Arrow's arrays, and turning rows into columns and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["all_finite", "at_fixed_width", "by_column", "by_row", "nulls", "of_type", "vectors"]

_pack = msgspec.msgpack.Encoder().encode
_FLOAT = 0xCB
"""What a float begins with in MessagePack; eight bytes follow, the highest first."""


def all_finite(array: pa.Array) -> bool:
    """Whether all numbers in an array are finite, at any depth; nulls don't count.

    Arrow's own ``to_numpy`` would import pandas.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(array.type):
        if not array.null_count:
            return bool(np.isfinite(np.from_dlpack(array)).all())
        return bool(pc.all(pc.is_finite(array), min_count=0).as_py())
    if pa.types.is_map(array.type):
        return all_finite(array.items)
    if pa.types.is_struct(array.type):
        return all(all_finite(array.field(i)) for i in range(array.type.num_fields))
    return all_finite(array.flatten()) if hasattr(array.type, "value_type") else True


def at_fixed_width(array: pa.Array, depth: int) -> pa.Array:
    """Lists of lists whose innermost ones have a fixed width where all of them have one.

    Where there is none at all, nobody knows the width: they are of type null.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if depth:
        inner = at_fixed_width(array.values, depth - 1)
        return pa.ListArray.from_arrays(array.offsets, inner, mask=array.is_null())
    widths: Iterable[int] = pc.unique(pc.list_value_length(array).drop_null()).to_pylist()
    if not widths:
        return pa.nulls(len(array))
    (width, *more) = widths
    if more or not width:
        return array
    return array.cast(pa.list_(array.type.value_type, width))


def by_column(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values of each field that a row has; None where another row has none."""
    names = rows[0].keys() if rows else ()
    if all(row.keys() == names for row in rows):  # the common case, in half the time
        return {name: [*map(itemgetter(name), rows)] for name in names}
    every = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in every}


def by_row(columns: Mapping[str, list[Any]], number: int, holes: bool) -> Iterator[dict[str, Any]]:
    """The values of each row, without those that are None where there are such."""
    names = tuple(columns)
    rows = zip(*columns.values(), strict=True) if names else repeat((), number)
    if holes:
        return ({n: v for n, v in zip(names, row, strict=True) if v is not None} for row in rows)
    return (dict(zip(names, row, strict=True)) for row in rows)


@lru_cache(maxsize=64)
def nulls(rows: int, type: pa.DataType) -> pa.Array:
    """So many nulls."""
    import pyarrow as pa

    return pa.nulls(rows, type)


def of_type(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """What ``pa.array`` makes of values, in less time where they are vectors."""
    import pyarrow as pa

    array = vectors(values, type_)
    return pa.array(values, type_) if array is None else array


def vectors(values: Sequence[Any], type_: pa.DataType) -> pa.Array | None:
    """Equally long lists of floats, or lists of such, as an array: what ``pa.array`` makes of them.

    It takes less time the wider they are. None where they are something else, or the type is.
    """
    import pyarrow as pa

    if not pa.types.is_list(type_) or {*map(type, values)} != {list}:
        return None
    if pa.types.is_list(type_.value_type):
        inner = vectors([*chain.from_iterable(values)], type_.value_type)
        ends = np.cumsum([0, *map(len, values)])
    else:
        numbers = _floats(values, type_.value_type)
        if numbers is None:
            return None
        inner = pa.Array.from_buffers(type_.value_type, numbers.size, [None, pa.py_buffer(numbers)])
        ends = np.arange(0, numbers.size + 1, len(values[0]))
    if inner is None or len(inner) >= 2**31:
        return None
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.Array.from_buffers(type_, len(values), [None, offsets], children=[inner])


def _floats(lists: Sequence[list[Any]], type: pa.DataType) -> NDArray[np.floating] | None:
    """The numbers in equally long lists of nothing but floats; None of others.

    MessagePack says of each value what it is and where the next begins, so that lists of which each
    byte that isn't of a number is as it should be are such lists.
    """
    width = len(lists[0])
    kind = {"double": "<f8", "float": "<f4"}.get(str(type))
    if not width or kind is None:
        return None
    try:
        packed = _pack(lists)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    before, between = (_pack([None] * n)[:-n] for n in (len(lists), width))
    if len(packed) != len(before) + len(lists) * (len(between) + 9 * width):
        return None
    number = [("is", "u1"), ("value", ">f8")]
    record = [("begin", "u1", (len(between),)), ("numbers", number, (width,))]
    found = np.frombuffer(packed, record, offset=len(before))
    begins = found["begin"] == np.frombuffer(between, "u1")
    if not (begins.all() and (found["numbers"]["is"] == _FLOAT).all()):
        return None
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is to Arrow
        return found["numbers"]["value"].astype(kind)
