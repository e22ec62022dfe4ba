"""A short cut from the columns of a table to requests, past JSON.

What a row of a table means is said by its line of JSON (``json_rows``), and whether that is a row of
the contract by pydantic. For plain columns and models of plain types (``plain.py``) both are known a
column at a time: msgspec converts a column's values to the field's type at once. Where it isn't sure
of one of them, the rows are read as lines.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import msgspec
import numpy as np
from msgspec import inspect
from pydantic import BaseModel

from sheaf_dagster.batch.rows.arrays import all_finite, by_row
from sheaf_dagster.batch.rows.fast import IDENTITY
from sheaf_dagster.batch.rows.inside import maker
from sheaf_dagster.batch.rows.plain import PlainModel
from sheaf_dagster.storage import TableRows
from sheaf_dagster.storage.formats import FieldMap

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ColumnCodec", "column_codec", "content_of_line"]

DeriveId = Callable[[int, bytes], UUID]
"""Makes the id of a row, of its place among some rows and what it says."""

_pack = msgspec.msgpack.Encoder(order="deterministic").encode
_parse = msgspec.json.Decoder().decode


def content_of_line(line: bytes) -> bytes:
    """What a row of a table says, by its line: the same bytes that ``ColumnCodec`` has of it."""
    try:
        return _pack(_parse(line))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return line


class _NotSureError(Exception):
    """Some rows must be read as lines."""


class ColumnCodec:
    """Reads rows of one model out of the columns of tables.

    Raises:
        NotPlainError: The model isn't made of plain types.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._plain = PlainModel(model)
        self._types = {name: _Type(t) for name, t in self._plain.types.items()}
        passing = self._plain.passing()
        self._passing = None if passing is None else {n: _Type(t) for n, t in passing[0].items()}
        self._required = frozenset(() if passing is None else passing[1])
        self._make = maker(model)
        self._forbids = model.model_config.get("extra") == "forbid"
        self._has_id = IDENTITY in model.model_fields

    def accepts(self, rows: TableRows, known: Sequence[str] = ()) -> dict[str, int] | None:
        """Whether all rows are such of the model for certain: then what they have besides.

        Args:
            rows: The rows.
            known: Fields that they may have though the model doesn't know them.

        Returns:
            How many rows have which other field. None: read them as lines.
        """
        if self._passing is None:
            return None
        types, given = self._passing, _Given.of(rows.batch.schema.names, rows.fields)
        if not self._required <= given.names:
            return None
        try:
            for name, value in given.constants.items():
                if name in types:
                    types[name].one(value)
            for name, column in given.columns.items():
                array = rows.batch.column(column)
                if array.null_count and (name in self._required or column in given.unsure):
                    return None
                if name in types:
                    types[name].require(array)
        except _NotSureError:
            return None
        others = given.names.difference(types, known)
        if others and self._forbids:
            return None
        number = dict.fromkeys(others, rows.batch.num_rows)
        for name in others.intersection(given.columns):
            number[name] -= rows.batch.column(given.columns[name]).null_count
        return {name: n for name, n in number.items() if n}

    def ids(self, rows: TableRows) -> list[Any]:
        """The ``request_id`` of each of the rows that ``accepts`` took, None where it gives none."""
        given = _Given.of(rows.batch.schema.names, rows.fields)
        if not self._has_id or IDENTITY not in given.names:
            return []
        if IDENTITY in given.constants:
            return [self._types[IDENTITY].one(given.constants[IDENTITY])] * rows.batch.num_rows
        array = rows.batch.column(given.columns[IDENTITY])
        return self._types[IDENTITY].of(array, _values(array))

    def read(self, rows: TableRows, derive_id: DeriveId) -> list[Any] | None:
        """The requests of rows that are known to be such of the model; None: read them as lines.

        Args:
            rows: The rows.
            derive_id: Makes the id of a row that has none.
        """
        types, number = self._types, rows.batch.num_rows
        given = _Given.of(rows.batch.schema.names, rows.fields)
        said: dict[str, list[Any]] = {}
        meant: dict[str, list[Any]] = {}
        holes = False
        derives = self._has_id and IDENTITY not in given.constants
        if derives and IDENTITY in given.columns:
            derives = rows.batch.column(given.columns[IDENTITY]).null_count > 0
        try:
            constants = {
                name: types[name].one(value)
                for name, value in given.constants.items()
                if name in types
            }
            for name, column in given.columns.items():
                array = rows.batch.column(column)
                if array.null_count and column in given.unsure:
                    return None
                holes = holes or array.null_count > 0
                if name in types:
                    said[name] = _values(array)
                    meant[name] = types[name].of(array, said[name])
                elif derives:
                    said[name] = _values(array)
        except _NotSureError:
            return None
        ids: Sequence[UUID | None] = [None] * number
        if derives:
            ids = _derived_ids(by_row(said, number, holes), given.constants, derive_id)
        try:
            return self._made(meant, constants, ids, holes)
        except Exception:
            return None  # pydantic will meet it, too, and say it as it does

    def _made(
        self,
        columns: dict[str, list[Any]],
        constants: Mapping[str, Any],
        ids: Sequence[UUID | None],
        holes: bool,
    ) -> list[BaseModel]:
        """Requests of the rows' own fields, beside those that all rows have."""
        plain, make, constants = self._plain, self._make, dict(constants)
        for name, by_value in plain.members:
            if name in constants:
                constants[name] = by_value[constants[name]]
            if name in columns:
                columns[name] = [None if v is None else by_value[v] for v in columns[name]]
        anew = [(n, v) for n, v in constants.items() if isinstance(v, (list, dict))]
        base = {**plain.defaults, **constants}
        # Without holes all rows have the same fields.
        given = {*columns, *constants}
        lacking = [(n, f) for n, f in plain.factories if n not in given]
        requests = []
        for row, id in zip(by_row(columns, len(ids), holes), ids, strict=True):
            values = {**base, **row}
            if holes:
                given = {*row, *constants}
                lacking = [(n, f) for n, f in plain.factories if n not in given]
            for name, value in anew:
                values[name] = copy.deepcopy(value)
            for name, default in lacking:
                values[name] = id if name == IDENTITY and id is not None else default()
            if id is not None:
                values[IDENTITY] = id
            request = make(values, given)
            for validate in plain.validators:
                request = validate(request)
            requests.append(request)
        return requests


@lru_cache(maxsize=64)
def column_codec(model: type[BaseModel]) -> ColumnCodec | None:
    """The codec of a model; None where it isn't made of plain types."""
    try:
        return ColumnCodec(model)
    except Exception:
        return None


class _Given(NamedTuple):
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
    def of(cls, names: Sequence[str], fields: FieldMap) -> _Given:
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


class _Type:
    """A field's type."""

    def __init__(self, type_: Any) -> None:
        self._all = list[type_]  # type: ignore[valid-type]
        self._lengths = _lengths_of_vector(type_)

    def one(self, value: Any) -> Any:
        """A value that all rows have, as the type has it.

        Raises:
            _NotSureError: It isn't of the type for certain.
        """
        return self._converted([value])[0]

    def of(self, array: pa.Array, values: list[Any]) -> list[Any]:
        """A column's values as the type has them; None stays where a row has no such field.

        Args:
            array: The column.
            values: Its values as JSON would have them.

        Raises:
            _NotSureError: One isn't of the type for certain.
        """
        if self._is_vector(array):
            return values
        if not array.null_count:
            return self._converted(values)
        left = iter(self._converted([v for v in values if v is not None]))
        return [None if v is None else next(left) for v in values]

    def require(self, array: pa.Array) -> None:
        """Raises ``_NotSureError`` where a column isn't of the type for certain."""
        if not self._is_vector(array):
            self.of(array, _values(array))
        elif not all_finite(array):
            raise _NotSureError

    def _converted(self, values: list[Any]) -> list[Any]:
        try:
            return msgspec.convert(values, self._all)  # type: ignore[no-any-return]
        except _REFUSED:
            raise _NotSureError from None

    def _is_vector(self, array: pa.Array) -> bool:
        """Whether lists of floats are of the type as they are."""
        if self._lengths is None or _numbers_in(array) is None:
            return False
        least, most = self._lengths
        lengths = np.from_dlpack(array.value_lengths())
        return not len(lengths) or bool(lengths.min() >= least and lengths.max() <= most)


def _lengths_of_vector(type_: Any) -> tuple[float, float] | None:
    """How long lists of floats may be, where a type allows any such; None where it doesn't."""
    node = inspect.type_info(type_)
    for choice in node.types if isinstance(node, inspect.UnionType) else (node,):
        if isinstance(choice, inspect.ListType):
            item = choice.item_type
            items = item.types if isinstance(item, inspect.UnionType) else (item,)
            if inspect.FloatType() in items:
                most = float("inf") if choice.max_length is None else choice.max_length
                return choice.min_length or 0, most
    return None


def _derived_ids(
    contents: Iterable[dict[str, Any]], constants: Mapping[str, Any], derive_id: DeriveId
) -> list[UUID | None]:
    """The ids of rows that have none, by what they say; None for the others."""
    return [
        None if IDENTITY in content else derive_id(i, _pack({**content, **constants}))
        for i, content in enumerate(contents)
    ]


def _values(array: pa.Array) -> list[Any]:
    """The values of an array as JSON would have them.

    Raises:
        _NotSureError: Some numbers aren't finite, which JSON doesn't have.
    """
    import pyarrow as pa

    if not all_finite(array):
        raise _NotSureError
    flat = _numbers_in(array)
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


def _numbers_in(array: pa.Array) -> pa.Array | None:
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


_REFUSED = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
