"""The columns of a table of answers, by what their contract says is written."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from sheaf_dagster.contracts import schema_of
from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage.formats import ERROR_COLUMNS, REST_COLUMN, Meaning, is_table

if TYPE_CHECKING:
    import pyarrow as pa

    from sheaf_dagster.batch.spec import BatchOptions, FloatType

__all__ = ["check_float_type", "columns_of"]

_FIRST = ("request_id", "custom_id")


def check_float_type(options: BatchOptions, sink: str) -> None:
    """Refuses a type of numbers where the sink is no table.

    Args:
        options: With the type.
        sink: The sink, or the template of one.

    Raises:
        SpecError: JSON has numbers of one kind.
    """
    if options.float_type != "float64" and not is_table(sink):
        raise SpecError(
            f"float_type={options.float_type!r} works only with a Parquet sink, and {sink} is not a "
            "Parquet file; leave float_type out, or name the sink .parquet"
        )


@lru_cache(maxsize=64)
def columns_of(
    model: type[BaseModel], floats: FloatType = "float64", keep: tuple[str, ...] = ()
) -> pa.Schema:
    """The Arrow schema of a contract's responses, with a column for each field.

    ======================  ======================================================================
    number, integer         ``double`` (or ``float``), ``int64``
    text, id, date, enum    ``string``, as in JSON
    list, model, ``dict``   ``list``, ``struct``, ``map`` from text, of what is in them
    anything else           ``string``: JSON, where the contract leaves open what it is
    ======================  ======================================================================

    What the rows of failed requests say stands in columns of its own, unless the contract has a
    field ``error`` for it.

    Args:
        model: The response.
        floats: The type of numbers that aren't integers.
        keep: Fields of the rows themselves that are added; of the types that their values have.

    Raises:
        SpecError: The contract has no fields, or one that is named like a column of our own.
    """
    import pyarrow as pa

    schema = schema_of(model, written=True)
    defs = schema.get("$defs", {})
    if "$ref" in schema:  # a model that holds others of its own kind
        schema = defs[schema["$ref"].rpartition("/")[2]]
    if schema.get("type") != "object":
        raise SpecError(
            f"{model.__name__} has no fields, so its answers have no columns; name the sink .jsonl"
        )
    types = _Types(defs, pa.float32() if floats == "float32" else pa.float64())
    properties: dict[str, Any] = schema.get("properties", {})
    fields: dict[str, pa.DataType | None] = {
        name: types.of(properties[name])
        for name in sorted(properties, key=lambda n: n not in _FIRST)
    }
    if schema.get("additionalProperties"):
        _require_free(model, fields, REST_COLUMN)
        fields[REST_COLUMN] = None
    texts = frozenset(name for name, type in fields.items() if type is None)
    vectors = {n: depth for n, p in properties.items() if (depth := _vector_depth(p)) is not None}
    columns = [pa.field(name, type or pa.string()) for name, type in fields.items()]
    if "error" not in fields:
        for name in ERROR_COLUMNS:
            _require_free(model, fields, name)
            columns.append(pa.field(name, pa.int64() if name.endswith("_code") else pa.string()))
    for name in keep:
        _require_free(model, {f.name: f for f in columns}, name)
        columns.append(pa.field(name, pa.null()))
    return Meaning(texts, vectors, keep).noted(pa.schema(columns))


def _require_free(model: type[BaseModel], fields: dict[str, Any], name: str) -> None:
    if name in fields:
        raise SpecError(
            f"{model.__name__} has a field {name!r}, and a Parquet sink has a column of this name "
            "for failed rows and further fields; rename the field, or name the sink .jsonl"
        )


class _Types:
    """Arrow's types of JSON schemas; None where a schema leaves open what there is."""

    def __init__(self, defs: dict[str, Any], float_type: pa.DataType) -> None:
        self._defs = defs
        self._float = float_type

    def of(self, node: Any, within: tuple[str, ...] = ()) -> pa.DataType | None:
        import pyarrow as pa

        if not isinstance(node, dict):
            return None
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            return None if name in within else self.of(self._defs[name], (*within, name))
        choices = node.get("anyOf") or node.get("oneOf")
        if choices:
            return self._one_of([c for c in choices if c.get("type") != "null"], within)
        kind = node.get("type")
        if kind == "number":
            return self._float
        if kind == "array":
            return self._list(node, within)
        if kind == "object":
            return self._object(node, within)
        known = {"string": pa.string(), "integer": pa.int64(), "boolean": pa.bool_()}
        return known.get(kind) if isinstance(kind, str) else None

    def _one_of(self, choices: list[Any], within: tuple[str, ...]) -> pa.DataType | None:
        import pyarrow as pa

        types = [self.of(choice, within) for choice in choices]
        if len(set(types)) == 1:
            return types[0]
        if types and set(types) == {self._float, pa.int64()}:
            return self._float
        return None

    def _list(self, node: dict[str, Any], within: tuple[str, ...]) -> pa.DataType | None:
        import pyarrow as pa

        if "prefixItems" in node:
            item = self._one_of(node["prefixItems"], within)
        else:
            item = self.of(node.get("items"), within)
        if item is None:
            return None
        width = node.get("minItems")
        return pa.list_(item, width) if width and width == node.get("maxItems") else pa.list_(item)

    def _object(self, node: dict[str, Any], within: tuple[str, ...]) -> pa.DataType | None:
        import pyarrow as pa

        properties, more = node.get("properties"), node.get("additionalProperties")
        if properties and not more:
            types = {name: self.of(held, within) for name, held in properties.items()}
            if None in types.values():
                return None
            return pa.struct([pa.field(name, type) for name, type in types.items()])
        item = None if properties else self.of(more, within)
        return None if item is None else pa.map_(pa.string(), item)


def _vector_depth(node: Any) -> int | None:
    """How many lists deep a field's vectors lie, where they are such."""
    depth = 0
    while isinstance(node, dict):
        if (choices := node.get("anyOf")) is not None:
            kept = [c for c in choices if c.get("type") != "null"]
            node = kept[0] if len(kept) == 1 else None
            continue
        if node.get("type") != "array":
            return None
        if node.get("format") == "vector":
            return depth
        node, depth = node.get("items"), depth + 1
    return None
