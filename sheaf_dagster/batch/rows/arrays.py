"""What is asked of Arrow's arrays, and turning rows into columns and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["all_finite", "at_fixed_width", "by_column", "by_row", "nulls"]


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
