"""Fields of rows that travel into a table of answers, with the types of the table that they are from.

On their way they are JSON, as all fields of ``keep`` are; ``json_rows`` says which. Here they become
what they were. Of lines of JSON, and of types that have no one form in JSON, columns are as pyarrow
finds them: ``int64``, ``double``, ``bool``, ``string``, lists and structs of these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

from sheaf_dagster.errors import SinkError
from sheaf_dagster.storage import KeptTypes, NamedFile, kept_types
from sheaf_dagster.storage.formats import (
    FieldMap,
    column_of,
    is_table,
    needs_decimals,
    without_decimals,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from sheaf_dagster.batch.spec import BatchOptions

__all__ = ["KeptColumns", "in_table", "types_in_source"]

_MAY_BE_LONG = re.compile(rb"\d{19}")
"""What is in every integer beyond 64 bits, which orjson rounds to a float."""


def in_table(options: BatchOptions) -> Sequence[str]:
    """The fields of ``keep`` that become columns of a table; options of a job alone name no sink."""
    return options.keep if is_table(getattr(options, "sink", "")) else ()


def types_in_source(
    options: BatchOptions, fields: FieldMap, files: Sequence[NamedFile]
) -> KeptTypes:
    """The types that the fields of ``keep`` have in a sink that is a table; see ``kept_types``.

    Args:
        options: Of a file.
        fields: Which columns of the source are which fields.
        files: Of the source.
    """
    return kept_types(files, fields, in_table(options))


class KeptColumns:
    """Makes columns of the fields of some rows.

    Args:
        schema: Of the sink.
        names: Of the fields.
    """

    def __init__(self, schema: pa.Schema, names: Sequence[str]) -> None:
        self._names = names
        self._types: Mapping[str, pa.DataType] = {n: schema.field(n).type for n in names}
        self._exact = any(map(needs_decimals, self._types.values()))

    def read(self, text: bytes) -> dict[str, Any]:
        """The fields of a row, of a text that ``with_fields`` takes."""
        whole = b"{%b}" % text[1:]
        if self._exact:
            return json.loads(whole, parse_float=Decimal)  # type: ignore[no-any-return]
        if _MAY_BE_LONG.search(whole):
            return json.loads(whole, parse_int=_whole)  # type: ignore[no-any-return]
        return orjson.loads(whole)  # type: ignore[no-any-return]

    def taken_out(self, record: dict[str, Any], line: bytes) -> dict[str, Any]:
        """Takes the fields out of a row that has them, of which there is the line, too."""
        found = {name: record.pop(name) for name in self._names if name in record}
        if found and self._exact:
            exact = json.loads(line, parse_float=Decimal)
            found = {name: exact[name] for name in found}
        return found

    def fails(self, name: str, values: list[Any]) -> bool:
        """Whether some values of a field go into no column."""
        try:
            self.made(name, values)
        except SinkError:
            return True
        return False

    def made(self, name: str, values: list[Any]) -> pa.Array:
        """The column of a field.

        Raises:
            SinkError: The values are of several types.
        """
        import pyarrow as pa

        type = self._types[name]
        if self._exact and not needs_decimals(type):
            values = [without_decimals(v) for v in values]
        if not pa.types.is_null(type):
            try:
                return column_of(values, type)
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                pass  # a failed row, or another file, may have a field of another type
        try:
            return column_of(values, pa.infer_type(values))
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as e:
            raise SinkError(
                f"keep: field {name!r} can't be a column of a Parquet file, whose values are of one "
                f"type ({e}); give it one, or name the sink .jsonl"
            ) from e


def _whole(digits: str) -> int | float:
    """An integer as it is; as a double one that is beyond ``int64``, if it is one."""
    number = int(digits)
    if -(2**63) <= number < 2**63 or float(number) != number:
        return number
    return float(number)
