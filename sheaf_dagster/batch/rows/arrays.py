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

__all__ = [
    "all_finite",
    "at_fixed_width",
    "by_column",
    "by_row",
    "nulls",
    "of_type",
    "stacked",
    "vectors",
]

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
        return None if inner is None else _lists(type_, inner, ends)
    numbers = _floats(values, type_.value_type)
    return None if numbers is None else stacked(numbers, type_)


def stacked(numbers: NDArray[np.floating], type_: pa.DataType) -> pa.Array | None:
    """An array of floats as lists, or lists of lists, which may share its memory.

    None where the type is another. What is too large for the type becomes infinite, as in Arrow.
    """
    import pyarrow as pa

    if numbers.ndim == 1:
        kind = _KINDS.get(str(type_))
        if kind is None:
            return None
        with np.errstate(over="ignore"):
            data = np.ascontiguousarray(numbers, dtype=kind)
        return pa.Array.from_buffers(type_, data.size, [None, pa.py_buffer(data)])
    if not pa.types.is_list(type_) or not numbers.size:
        return None
    rows, length, *inside = numbers.shape
    inner = stacked(numbers.reshape(rows * length, *inside), type_.value_type)
    return None if inner is None else _lists(type_, inner, np.arange(0, len(inner) + 1, length))


def _lists(type_: pa.DataType, inner: pa.Array, ends: NDArray[np.integer]) -> pa.Array | None:
    import pyarrow as pa

    if len(inner) >= 2**31:
        return None
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.Array.from_buffers(type_, len(ends) - 1, [None, offsets], children=[inner])


def packed_lists(numbers: NDArray[np.floating]) -> list[bytes]:
    """Lists of floats (shape: rows × length) in MessagePack, each by itself."""
    packed = np.empty(len(numbers), _packed_list(numbers.shape[1]))
    packed["begin"] = np.frombuffer(_begin_of(numbers.shape[1]), "u1")
    packed["numbers"]["is"] = _FLOAT
    packed["numbers"]["value"] = numbers
    size, data = packed.dtype.itemsize, packed.tobytes()
    return [data[start : start + size] for start in range(0, len(data), size)]


def _floats(lists: Sequence[list[Any]], type: pa.DataType) -> NDArray[np.floating] | None:
    """The numbers in equally long lists of nothing but floats; None of others.

    MessagePack says of each value what it is and where the next begins, so that lists of which each
    byte that isn't of a number is as it should be are such lists.
    """
    width = len(lists[0])
    if not width or str(type) not in _KINDS:
        return None
    try:
        packed = _pack(lists)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    before, record = _begin_of(len(lists)), _packed_list(width)
    if len(packed) != len(before) + len(lists) * record.itemsize:
        return None
    found = np.frombuffer(packed, record, offset=len(before))
    begins = found["begin"] == np.frombuffer(_begin_of(width), "u1")
    if not (begins.all() and (found["numbers"]["is"] == _FLOAT).all()):
        return None
    return found["numbers"]["value"]  # type: ignore[no-any-return]


def _packed_list(width: int) -> np.dtype[Any]:
    """A list of floats in MessagePack."""
    numbers = ("numbers", [("is", "u1"), ("value", ">f8")], (width,))
    return np.dtype([("begin", "u1", (len(_begin_of(width)),)), numbers])


def _begin_of(length: int) -> bytes:
    """What a list of a length begins with in MessagePack."""
    return _pack([None] * length)[:-length]


_KINDS = {"double": "<f8", "float": "<f4"}
"""Types of floats, as numpy has them."""
