"""What a column of a table says, by the type of the field that it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import inspect

from sheaf_dagster.batch.rows.arrays import all_finite, packed_lists
from sheaf_dagster.storage.formats import FieldMap

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FieldType", "GivenFields", "NotSureError", "numbers_in", "packed_vectors", "values_of"]


class NotSureError(Exception):
    """Some rows must be read as lines."""


class GivenFields(NamedTuple):
    """Where the fields of a table's rows come from.

    Attributes:
        columns: By field, the column that holds it.
        constants: Fields that are the same in every row.
        unsure: Columns in whose place, where they are null, something else stands.
    """

    columns: Mapping[str, str]
    constants: Mapping[str, Any]
    unsure: frozenset[str]

    @classmethod
    def of(cls, names: Sequence[str], fields: FieldMap) -> GivenFields:
        """What ``FieldMap.row`` makes of columns of these names."""
        from_columns = fields.row({name: _Column(name) for name in names})
        columns = {n: c.name for n, c in from_columns.items() if isinstance(c, _Column)}
        constants = {n: c for n, c in from_columns.items() if n not in columns}
        return cls(columns, constants, frozenset(fields.defaults).intersection(names))

    @property
    def names(self) -> set[str]:
        """Of all fields."""
        return {*self.columns, *self.constants}


class _Column(NamedTuple):
    name: str


class FieldType:
    """A field's type."""

    def __init__(self, type_: Any) -> None:
        self._all = list[type_]  # type: ignore[valid-type]
        self._lengths = _lengths_of_lists(inspect.type_info(type_))

    def one(self, value: Any) -> Any:
        """A value that all rows have, as the type has it.

        Raises:
            NotSureError: It isn't of the type for certain.
        """
        return self.converted([value])[0]

    def of(self, array: pa.Array, values: list[Any]) -> list[Any]:
        """A column's values as the type has them; None stays where a row has no such field.

        Args:
            array: The column.
            values: Its values as JSON would have them.

        Raises:
            NotSureError: One isn't of the type for certain.
        """
        if self.is_vector(array):
            return values
        if not array.null_count:
            return self.converted(values)
        left = iter(self.converted([v for v in values if v is not None]))
        return [None if v is None else next(left) for v in values]

    def require(self, array: pa.Array) -> None:
        """Raises ``NotSureError`` where a column isn't of the type for certain."""
        if not self.is_vector(array):
            self.of(array, values_of(array))
        elif not all_finite(array):
            raise NotSureError

    def converted(self, values: list[Any]) -> list[Any]:
        """Values as the type has them.

        Raises:
            NotSureError: One isn't of the type for certain.
        """
        try:
            return msgspec.convert(values, self._all)  # type: ignore[no-any-return]
        except Exception:  # of objects that aren't JSON's msgspec raises whatever they do
            raise NotSureError from None

    def is_vector(self, array: pa.Array) -> bool:
        """Whether lists of floats are of the type as they are."""
        if len(self._lengths) != 1 or numbers_in(array) is None:
            return False
        lengths = np.from_dlpack(array.value_lengths())
        return not len(lengths) or (self.takes(lengths.min()) and self.takes(lengths.max()))

    def takes(self, *lengths: int) -> bool:
        """Whether lists of finite floats, or lists of such, are of the type.

        Args:
            lengths: Of all lists, then of all lists in them, and so on.
        """
        return len(lengths) == len(self._lengths) and all(
            least <= n <= most for n, (least, most) in zip(lengths, self._lengths, strict=True)
        )


def _lengths_of_lists(node: inspect.Type) -> tuple[tuple[float, float], ...]:
    """How long lists of floats, or lists of such, may be; none where a type doesn't allow any such."""
    for choice in _choices(node):
        if isinstance(choice, inspect.ListType):
            most = float("inf") if choice.max_length is None else choice.max_length
            own = (choice.min_length or 0, most)
            if inspect.FloatType() in _choices(choice.item_type):
                return (own,)
            inner = _lengths_of_lists(choice.item_type)
            return (own, *inner) if inner else ()
    return ()


def _choices(node: inspect.Type) -> tuple[inspect.Type, ...]:
    return node.types if isinstance(node, inspect.UnionType) else (node,)


def values_of(array: pa.Array) -> list[Any]:
    """The values of an array as JSON would have them.

    Raises:
        NotSureError: Some numbers aren't finite, which JSON doesn't have.
    """
    import pyarrow as pa

    if not all_finite(array):
        raise NotSureError
    flat = numbers_in(array)
    if flat is None:
        return array.to_pylist()  # type: ignore[no-any-return]
    numbers = np.from_dlpack(flat).astype("float64", copy=False)
    if pa.types.is_fixed_size_list(array.type) and array.type.list_size:
        return numbers.reshape(len(array), array.type.list_size).tolist()  # type: ignore[no-any-return]
    values, start = numbers.tolist(), 0
    lists = []
    for n in array.value_lengths().to_pylist():
        lists.append(values[start : start + n])
        start += n
    return lists


def packed_vectors(array: pa.Array) -> list[bytes] | None:
    """Equally long lists of floats in MessagePack; None of anything else.

    Raises:
        NotSureError: Some numbers aren't finite, which JSON doesn't have.
    """
    numbers: Any = numbers_in(array)
    if numbers is None or not len(numbers):
        return None
    if not all_finite(numbers):
        raise NotSureError
    lengths = np.from_dlpack(array.value_lengths())
    if (lengths != lengths[0]).any():
        return None
    floats = np.from_dlpack(numbers).astype(np.float64, copy=False)
    return packed_lists(floats.reshape(len(array), lengths[0]))


def numbers_in(array: pa.Array) -> pa.Array | None:
    """The numbers in lists of floats; None where it holds something else, or nulls."""
    import pyarrow as pa

    kind = array.type
    lists = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    if not lists or not pa.types.is_floating(kind.value_type) or array.null_count:
        return None
    flat = array.flatten()
    return None if flat.null_count else flat
