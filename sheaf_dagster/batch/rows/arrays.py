"""Looks at Arrow's arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["all_finite"]


def all_finite(array: pa.Array) -> bool:
    """Whether all numbers in an array are finite, at any depth; nulls don't count."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(array.type):
        if not array.null_count:
            return bool(np.isfinite(array.to_numpy(zero_copy_only=False)).all())
        return bool(pc.all(pc.is_finite(array), min_count=0).as_py())
    if pa.types.is_map(array.type):
        return all_finite(array.items)
    if pa.types.is_struct(array.type):
        return all(all_finite(array.field(i)) for i in range(array.type.num_fields))
    return all_finite(array.flatten()) if hasattr(array.type, "value_type") else True
