"""Fields of rows that travel into a table of answers, with the types of the table that they are from.

On their way they are JSON, as all fields of ``keep`` are; ``json_rows`` says which. Here they become
what they were. Of lines of JSON, and of types that have no one form in JSON, columns are as pyarrow
finds them: ``int64``, ``double``, ``bool``, ``string``, lists and structs of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

from sheaf_dagster.errors import SheafError, SinkError
from sheaf_dagster.storage import files_of
from sheaf_dagster.storage.formats import (
    FieldMap,
    column_of,
    has_one_form,
    is_table,
    may_widen,
    needs_decimals,
    read_schema,
    without_decimals,
)
from sheaf_dagster.storage.location import Location

if TYPE_CHECKING:
    import pyarrow as pa

    from sheaf_dagster.batch.spec import BatchSpec

__all__ = ["KeptColumns", "typed_as_in_source"]


def typed_as_in_source(columns: pa.Schema, spec: BatchSpec) -> pa.Schema:
    """The columns of a sink, those of ``keep`` with the types that the source's first table has.

    Of types that don't widen, all tables must have the same one.

    Args:
        columns: Of the sink.
        spec: The file.
    """
    if not spec.keep:
        return columns
    fields = FieldMap(spec.columns or {}, spec.fields or {})
    try:
        files = files_of([Location.of(uri, spec.storage_options) for uri in spec.sources])
        types = _types_in(files[0].location, spec.keep, fields)
        for file in files[1:]:
            if all(map(may_widen, types.values())):
                break
            others = _types_in(file.location, spec.keep, fields)
            types = {n: t for n, t in types.items() if may_widen(t) or others.get(n) == t}
    except SheafError:
        return columns  # whoever reads the rows says what is wrong
    for name, type in types.items():
        i = columns.get_field_index(name)
        columns = columns.set(i, columns.field(i).with_type(type))
    return columns


def _types_in(location: Location, names: Sequence[str], fields: FieldMap) -> dict[str, pa.DataType]:
    """The types of a table's columns that come back from JSON as they are, by field."""
    import pyarrow as pa

    found: dict[str, pa.DataType] = {}
    if not is_table(location.uri):
        return found
    schema = read_schema(location)
    for name in names:
        if (at := schema.get_field_index(fields.column_of(name))) < 0:
            continue
        type = schema.field(at).type
        if pa.types.is_dictionary(type):
            # Each file of a folder may have other values, more than the first one's codes can name.
            type = pa.dictionary(pa.int32(), type.value_type)
        if has_one_form(type):
            found[name] = type
    return found


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
        return orjson.loads(whole)  # type: ignore[no-any-return]

    def taken_out(self, record: dict[str, Any], line: bytes) -> dict[str, Any]:
        """Takes the fields out of a row that has them, of which there is the line, too."""
        found = {name: record.pop(name) for name in self._names if name in record}
        if found and self._exact:
            exact = json.loads(line, parse_float=Decimal)
            found = {name: exact[name] for name in found}
        return found

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
            return pa.array(values)
        except (pa.ArrowException, OverflowError) as e:
            raise SinkError(
                f"keep: field {name!r} can't be a column of a Parquet file, whose values are of one "
                f"type ({e}); give it one, or name the sink .jsonl"
            ) from e
