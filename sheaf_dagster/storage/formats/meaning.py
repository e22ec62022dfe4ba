"""What the columns of a sink stand for in JSON, kept in the file's own metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ERROR_COLUMNS", "REST_COLUMN", "Meaning", "without_kept"]

_KEY = b"sheaf_dagster"

ERROR_COLUMNS = {
    "error_type": "type",
    "error_message": "message",
    "error_status_code": "status_code",
}
"""Columns of failed rows, and what each is called in an error row of JSON."""

REST_COLUMN = "other_fields"
"""Holds, as JSON, what a response of a contract that allows further fields has of them."""


@dataclass(frozen=True)
class Meaning:
    """How rows of a sink are read as the JSON that a file of lines would hold.

    Attributes:
        texts: Columns that hold JSON as text, since their contract leaves open what is in them.
        vectors: Columns of vectors that may all have one width: by name, how many lists deep.
        kept: Fields of the requests themselves, which failed rows have too.
    """

    texts: frozenset[str] = frozenset()
    vectors: Mapping[str, int] = field(default_factory=dict)
    kept: tuple[str, ...] = ()

    @classmethod
    def of(cls, schema: pa.Schema) -> Meaning | None:
        """What a schema says of itself; None where it is of another writer."""
        said = (schema.metadata or {}).get(_KEY)
        if said is None:
            return None
        held = orjson.loads(said)
        return cls(frozenset(held["texts"]), held["vectors"], tuple(held["kept"]))

    def noted(self, schema: pa.Schema) -> pa.Schema:
        """The schema with this in its metadata."""
        said = {
            "texts": sorted(self.texts),
            "vectors": dict(self.vectors),
            "kept": list(self.kept),
        }
        return schema.with_metadata({_KEY: orjson.dumps(said, option=orjson.OPT_SORT_KEYS)})

    def row(self, values: dict[str, Any]) -> dict[str, Any]:
        """A row of columns as JSON has it: an answer with all its fields, or an error row."""
        if REST_COLUMN in self.texts and (rest := values.pop(REST_COLUMN, None)) is not None:
            values |= orjson.loads(rest)
        for name in self.texts:
            if (text := values.get(name)) is not None:
                values[name] = orjson.Fragment(text)
        error = {short: values.pop(name, None) for name, short in ERROR_COLUMNS.items()}
        if error["message"] is None and error["type"] is None:
            return values
        said = {n: v for n, v in values.items() if v is not None or n in self.kept}
        if error["type"] is None:  # a form of the request's own, as its line has it
            own = orjson.loads(error["message"])
            kept = {n: v for n, v in said.items() if n in self.kept}
            return {**kept, **own} if isinstance(own, dict) else own
        if error["status_code"] is None:
            del error["status_code"]
        return {**said, "error": error}


def without_kept(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of a sink without the fields of the requests themselves."""
    meaning = Meaning.of(batch.schema)
    kept = () if meaning is None else meaning.kept
    return batch.select([name for name in batch.schema.names if name not in kept])
