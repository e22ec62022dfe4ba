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
from itertools import repeat
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from pydantic import BaseModel

from sheaf_dagster.batch.rows.arrays import by_row
from sheaf_dagster.batch.rows.column_types import (
    FieldType,
    GivenFields,
    NotSureError,
    packed_vectors,
    values_of,
)
from sheaf_dagster.batch.rows.fast import IDENTITY
from sheaf_dagster.batch.rows.inside import maker
from sheaf_dagster.batch.rows.plain import PlainModel
from sheaf_dagster.storage import TableRows

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ColumnCodec", "HeldColumns", "column_codec", "content_of_line"]

DeriveId = Callable[[int, bytes], UUID]
"""Makes the id of a row, of its place among some rows and what it says."""

_pack = msgspec.msgpack.Encoder(order="deterministic").encode
_unpack = msgspec.msgpack.Decoder(dict[str, None]).decode
_parse = msgspec.json.Decoder().decode


def content_of_line(line: bytes) -> bytes:
    """What a row of a table says, by its line: the same bytes that ``ColumnCodec`` has of it."""
    try:
        return _pack(_parse(line))
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return line


class ColumnCodec:
    """Reads rows of one model out of the columns of tables.

    Attributes:
        plain: What the model's schema says of its fields.
        types: Their types.
        make: Makes a request.

    Raises:
        NotPlainError: The model isn't made of plain types.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self.plain = PlainModel(model)
        self.types = {name: FieldType(t) for name, t in self.plain.types.items()}
        passing = self.plain.passing()
        self._passing = (
            None if passing is None else {n: FieldType(t) for n, t in passing[0].items()}
        )
        self._required = frozenset(() if passing is None else passing[1])
        self.make = maker(model)
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
        types, given = self._passing, GivenFields.of(rows.batch.schema.names, rows.fields)
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
        except NotSureError:
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
        given = GivenFields.of(rows.batch.schema.names, rows.fields)
        if not self._has_id or IDENTITY not in given.names:
            return []
        if IDENTITY in given.constants:
            return [self.types[IDENTITY].one(given.constants[IDENTITY])] * rows.batch.num_rows
        array = rows.batch.column(given.columns[IDENTITY])
        return self.types[IDENTITY].of(array, values_of(array))

    def hold(self, rows: TableRows, derive_id: DeriveId) -> HeldColumns | None:
        """The fields of rows that are known to be such of the model; None: read them as lines.

        No request need be made of them where ``accepts`` takes the rows.

        Args:
            rows: The rows.
            derive_id: Makes the id of a row that has none.
        """
        types, held = self.types, HeldColumns(self, rows.batch.num_rows)
        given = GivenFields.of(rows.batch.schema.names, rows.fields)
        said: dict[str, pa.Array] = {}
        derives = self._has_id and IDENTITY not in given.constants
        if derives and IDENTITY in given.columns:
            derives = rows.batch.column(given.columns[IDENTITY]).null_count > 0
        try:
            for name, value in given.constants.items():
                if name in types:
                    held.constants[name] = types[name].one(value)
            for name, column in given.columns.items():
                array = rows.batch.column(column)
                if array.null_count and column in given.unsure:
                    return None
                held.holes = held.holes or array.null_count > 0
                said[name] = array
                if name in types:
                    held.add(name, array)
            if derives:
                contents = _contents(said, given.constants, held)
                held.ids = [None if c is None else derive_id(i, c) for i, c in enumerate(contents)]
        except NotSureError:
            return None
        return held


class HeldColumns:
    """The fields of some rows, and the requests that they are.

    Attributes:
        model: What the rows are.
        rows: How many they are.
        arrays: By field, the column that holds it.
        said: The values of such as JSON would have them, but for lists of floats.
        lists: The values of such as their types have them, as far as they are known.
        constants: Fields that are the same in every row.
        ids: Of rows that bring none; None for the others.
        holes: Whether some rows lack a field.
    """

    def __init__(self, codec: ColumnCodec, rows: int) -> None:
        self._codec = codec
        self.model = codec.plain.model
        self.rows = rows
        self.arrays: dict[str, pa.Array] = {}
        self.said: dict[str, list[Any]] = {}
        self.lists: dict[str, list[Any]] = {}
        self.constants: dict[str, Any] = {}
        self.ids: Sequence[UUID | None] = [None] * rows
        self.holes = False

    def add(self, name: str, array: pa.Array) -> None:
        """Takes the column of a field.

        Raises:
            NotSureError: Not all values are of the field's type for certain.
        """
        self.arrays[name] = array
        if self._codec.types[name].is_vector(array):
            self._codec.types[name].require(array)
        else:
            self.said[name] = values_of(array)
            self.lists[name] = self._codec.types[name].of(array, self.said[name])

    def has(self, name: str) -> bool:
        """Whether the requests have a field, or an attribute of their class, of this name."""
        return name in self._codec.plain.defaults or hasattr(self.model, name)

    def values(self, name: str) -> list[Any] | None:
        """The values of a field; None: look at the requests."""
        plain = self._codec.plain
        if name in self.arrays:
            return None if self.arrays[name].null_count else self._list(name)
        if name == IDENTITY and None not in self.ids:
            return [*self.ids]
        value = self.constants.get(name, plain.defaults.get(name))
        made = name not in self.constants and any(name == n for n, _ in plain.factories)
        if made or name not in plain.defaults or isinstance(value, (list, dict)):
            return None
        return [value] * self.rows

    def vectors(self, name: str) -> pa.Array | None:
        """The column of a field, where it is one of lists of floats in the place of any values."""
        array = self.arrays.get(name)
        if array is None or not self._codec.types[name].is_vector(array):
            return None
        return array

    def requests(self) -> list[BaseModel] | None:
        """The requests; None: read the rows as lines."""
        try:
            return self._made()
        except Exception:
            return None  # pydantic will meet it, too, and say it as it does

    def _list(self, name: str) -> list[Any]:
        if name not in self.lists:
            self.lists[name] = values_of(self.arrays[name])
        return self.lists[name]

    def _made(self) -> list[BaseModel]:
        """Requests of the rows' own fields, beside those that all rows have."""
        plain, make = self._codec.plain, self._codec.make
        columns, constants = {name: self._list(name) for name in self.arrays}, dict(self.constants)
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
        rows = by_row(columns, self.rows, self.holes)
        for row, id in zip(rows, self.ids, strict=True):
            values = {**base, **row}
            if self.holes:
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


def _contents(
    columns: Mapping[str, pa.Array], constants: Mapping[str, Any], held: HeldColumns
) -> Sequence[bytes | None]:
    """What rows say that bring no id; None of the others.

    Raises:
        NotSureError: Some numbers aren't finite, which JSON doesn't have.
    """
    if held.holes:
        said = {name: held.said.get(name) or values_of(array) for name, array in columns.items()}
        rows = by_row(said, held.rows, holes=True)
        return [None if IDENTITY in row else _pack({**row, **constants}) for row in rows]
    # The same bytes, a column at a time.
    packed: dict[str, Iterable[bytes]] = {
        name: repeat(_pack(value), held.rows) for name, value in constants.items()
    }
    for name, array in columns.items():
        vectors = packed_vectors(array)
        packed[name] = (
            map(_pack, held.said.get(name) or values_of(array)) if vectors is None else vectors
        )
    whole = _pack(dict.fromkeys(packed))
    begin = whole[: len(whole) - sum(len(_pack(name)) + 1 for name in packed)]
    parts: list[Iterable[bytes]] = [repeat(begin, held.rows)]
    for name in _unpack(whole):
        parts += [repeat(_pack(name)), packed[name]]
    return [*map(b"".join, zip(*parts, strict=False))]
