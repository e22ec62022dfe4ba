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
from sheaf_dagster.storage.formats import FieldMap, is_table, read_schema
from sheaf_dagster.storage.location import Location

if TYPE_CHECKING:
    import pyarrow as pa

    from sheaf_dagster.batch.spec import BatchSpec

__all__ = ["KeptColumns", "typed_as_in_source"]


def typed_as_in_source(columns: pa.Schema, spec: BatchSpec) -> pa.Schema:
    """The columns of a sink, those of ``keep`` with the types that the source's first table has.

    Args:
        columns: Of the sink.
        spec: The file.
    """
    import pyarrow as pa

    if not spec.keep:
        return columns
    try:
        first = files_of([Location.of(spec.sources[0], spec.storage_options)])[0].location
        source = read_schema(first) if is_table(first.uri) else pa.schema([])
    except SheafError:
        return columns  # whoever reads the rows says what is wrong
    fields = FieldMap(spec.columns or {}, spec.fields or {})
    for name in spec.keep:
        i, j = columns.get_field_index(name), source.get_field_index(fields.column_of(name))
        type = source.field(j).type if j >= 0 else pa.null()
        if pa.types.is_dictionary(type):
            # Each file of a folder may have other values, more than the first one's codes can name.
            type = pa.dictionary(pa.int32(), type.value_type)
        if _has_one_form(type):
            columns = columns.set(i, columns.field(i).with_type(type))
    return columns


def _has_one_form(type: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return _is_number_or_text(type.value_type)
    return (
        _is_number_or_text(type)
        or pa.types.is_date32(type)
        or pa.types.is_timestamp(type)
        or pa.types.is_time(type)
        or pa.types.is_decimal(type)
        or (pa.types.is_dictionary(type) and _is_number_or_text(type.value_type))
    )


def _is_number_or_text(type: pa.DataType) -> bool:
    import pyarrow as pa

    return (
        pa.types.is_integer(type)
        or type in (pa.float32(), pa.float64(), pa.bool_(), pa.string())
        or pa.types.is_large_string(type)
    )


class KeptColumns:
    """Makes columns of the fields of some rows.

    Args:
        schema: Of the sink.
        names: Of the fields.
    """

    def __init__(self, schema: pa.Schema, names: Sequence[str]) -> None:
        import pyarrow as pa

        self._names = names
        self._types: Mapping[str, pa.DataType] = {n: schema.field(n).type for n in names}
        self._exact = any(map(pa.types.is_decimal, self._types.values()))

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
        if not pa.types.is_decimal(type):
            values = [_without_decimals(v) for v in values] if self._exact else values
        if not pa.types.is_null(type) and not (_is_number(type) and _has_booleans(values)):
            try:
                made = (
                    _times(values, type) if pa.types.is_temporal(type) else pa.array(values, type)
                )
                if not _may_round(type) or made.to_pylist() == values:
                    return made
            except (pa.ArrowException, OverflowError, TypeError):
                pass  # a failed row, or another file, may have a field of another type
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError) as e:
            raise SinkError(
                f"keep: field {name!r} can't be a column of a Parquet file, whose values are of one "
                f"type ({e}); give it one, or name the sink .jsonl"
            ) from e


def _times(values: list[Any], type: pa.DataType) -> pa.Array:
    """Texts as dates or times.

    Raises:
        ArrowException: One isn't of the type, or has more digits than it can hold.
        TypeError: One isn't a text.
    """
    import pyarrow as pa

    if pa.types.is_date(type):
        return pa.array(values, pa.string()).cast(type)
    if pa.types.is_time(type):  # which Arrow reads only behind a date
        values = [None if value is None else "1970-01-01T" + value for value in values]
    # Arrow reads as many digits as a unit has, and the texts may have those of microseconds.
    finest = pa.timestamp("ns" if type.unit == "ns" else "us", getattr(type, "tz", None))
    return pa.array(values, pa.string()).cast(finest).cast(type)


def _is_number(type: pa.DataType) -> bool:
    """Whether Arrow takes true for 1 in a column of the type."""
    import pyarrow as pa

    inner = getattr(type, "value_type", type)
    return bool(
        pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_decimal(inner)
    )


def _has_booleans(values: list[Any]) -> bool:
    return any(isinstance(v, bool) or (isinstance(v, list) and _has_booleans(v)) for v in values)


def _may_round(type: pa.DataType) -> bool:
    """Whether Arrow takes numbers for the type, or for what lists of it hold, that it can't represent."""
    import pyarrow as pa

    inner = getattr(type, "value_type", type)
    return inner == pa.float32() or bool(pa.types.is_integer(inner))


def _without_decimals(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: _without_decimals(v) for name, v in value.items()}
    return [_without_decimals(v) for v in value] if isinstance(value, list) else value
