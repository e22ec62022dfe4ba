"""Which of a file's columns is which field of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import orjson

__all__ = ["AS_THEY_ARE", "FieldMap"]

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode


@dataclass(frozen=True)
class FieldMap:
    """How the rows of a file become requests: all other columns are fields of the same name.

    Attributes:
        columns: By field, the column that holds it; that column is not a field of its own name then.
        constants: Fields that are the same in every row, whatever the row itself says.
        defaults: Fields of rows that have none of the name: what the folders say that hold a file,
            such as ``day=5/``.
        implied: The same of the rows of tables alone: who writes a table doesn't think of model
            types, and a line needn't be looked at for it.
        kept: Columns that stay fields of their own names, though other fields are read from them.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)
    kept: Sequence[str] = ()

    def __bool__(self) -> bool:
        """Whether it changes a row that isn't a table's."""
        return bool(self.columns or self.constants or self.defaults)

    def beside(self, defaults: Mapping[str, Any]) -> FieldMap:
        """The same with further fields of rows that have none of the name."""
        return replace(self, defaults={**self.defaults, **defaults})

    def row(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a row, by the values of its columns."""
        held = {**self.defaults, **values}
        taken = {*self.columns.values()}.difference(self.kept).union(self.columns)
        fields = {name: value for name, value in held.items() if name not in taken}
        fields |= {name: held[column] for name, column in self.columns.items() if column in held}
        return {**fields, **self.constants}

    def line(self, line: bytes) -> bytes:
        """The same of a line of JSON; what is not an object stays as it is, for validation to name.

        Values are copied as they are written, numbers with all their digits.
        """
        try:
            values: dict[str, Any] = _decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._lenient_line(line)
        return _encode({n: _raw(v) for n, v in self.row(values).items()})

    def _lenient_line(self, line: bytes) -> bytes:
        """Of a line with NaN, which some contracts allow."""
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            return line
        if not isinstance(values, dict):
            return line
        return json.dumps(self.row(values), ensure_ascii=False).encode("utf-8", "surrogatepass")

    def column_of(self, path: str) -> str:
        """The column that a field's path, such as ``history.3``, lies in; empty where there is none."""
        name, dot, rest = path.partition(".")
        if name in self.constants:
            return ""
        return f"{self.columns.get(name, name)}{dot}{rest}"


AS_THEY_ARE = FieldMap()
"""Each column is the field of its name."""


def _raw(value: Any) -> msgspec.Raw:
    return value if isinstance(value, msgspec.Raw) else msgspec.Raw(orjson.dumps(value))
