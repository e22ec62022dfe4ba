"""Fields of a row that its contract doesn't know, and would pass over without a word."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import BaseModel

from sheaf_dagster.batch.rows.inside import (
    NO_SCHEMAS,
    core_schema_of,
    extra_of,
    json_reader_of_schema,
    schemas_in,
)

__all__ = ["REST", "UnknownField", "count_rows", "observed", "observing", "unknown_fields"]

_MAX_NAMES = 100
"""Names of unknown fields that are told apart; the rows of a file may each have another one."""

REST = "…"
"""What the others are counted under, and all of them where rows are redacted."""


class UnknownField(NamedTuple):
    """A field of one row that is not a field of the contract.

    Attributes:
        path: Where it is: ``messages.0.contents``.
        name: The path, the same for all elements of a list: ``messages.*.contents``.
        model: The contract, or the part of it, that has no such field.
    """

    path: str
    name: str
    model: type[BaseModel]

    @property
    def meant(self) -> str | None:
        """The field that was probably meant."""
        return _closest(self.name.rpartition(".")[2], self.model)


@lru_cache(maxsize=1024)
def _closest(name: str, model: type[BaseModel]) -> str | None:
    close = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.75)
    return close[0] if close else None


@lru_cache(maxsize=64)
def observing(contract: type[BaseModel]) -> Callable[[bytes], Any] | None:
    """Reads a line as the contract does, but keeps what the contract would ignore.

    None where there is nothing to observe: the contract allows or forbids such fields, or can't
    be read otherwise than it is.
    """
    changed: list[type] = []
    try:
        schema = _keeping(core_schema_of(contract), changed)
        return json_reader_of_schema(schema) if changed else None
    except Exception:  # its types aren't all defined yet, or a plugin of pydantic's has its own
        return None


def _keeping(schema: Any, changed: list[type], model: Any = None) -> Any:
    """A schema of pydantic's in which each model that ignores unknown fields keeps them.

    Args:
        schema: Of a contract, or of a part of it.
        changed: Collects those models.
        model: The node of the model that it belongs to; validators may lie between it and its
            fields.
    """
    if isinstance(schema, (list, tuple)):
        return type(schema)(_keeping(part, changed) for part in schema)
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    model = schema if kind == "model" else model
    new = {
        k: v if k in NO_SCHEMAS else _keeping(v, changed, model if k == "schema" else None)
        for k, v in schema.items()
    }
    if kind == "model-fields" and model is not None and _ignores(model, schema):
        changed.append(model["cls"])
        new["extra_behavior"] = "allow"
    return new


def _ignores(model: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    extra = fields.get("extra_behavior") or model.get("config", {}).get("extra_fields_behavior")
    return extra in (None, "ignore")


def unknown_fields(request: BaseModel) -> list[UnknownField]:
    """The unknown fields of a row that was read by ``observing``."""
    kind = type(request)
    if not extra_of(request) and not _has_models(kind):
        return []
    return list(_found(request, (), ()))


def _found(value: Any, path: tuple[str, ...], name: tuple[str, ...]) -> Iterator[UnknownField]:
    if isinstance(value, BaseModel):
        if _ignores_extra(type(value)):
            for key in extra_of(value):
                yield UnknownField(".".join((*path, key)), ".".join((*name, key)), type(value))
        for key, part in value.__dict__.items():
            yield from _found(part, (*path, key), (*name, key))
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _found(part, (*path, str(key)), (*name, "*"))
    elif isinstance(value, (list, tuple)) and value and not isinstance(value[0], (float, str)):
        for i, part in enumerate(value):
            yield from _found(part, (*path, str(i)), (*name, "*"))


@lru_cache(maxsize=256)
def _ignores_extra(model: type[BaseModel]) -> bool:
    return model.model_config.get("extra", "ignore") == "ignore"


@lru_cache(maxsize=64)
def _has_models(contract: type[BaseModel]) -> bool:
    """Whether a contract has parts that are models themselves."""
    nodes = schemas_in(core_schema_of(contract))
    return sum(node["type"] in ("model", "definition-ref") for node in nodes) > 1


def count_rows(into: dict[str, int], rows: Mapping[str, int]) -> None:
    """Adds rows by name of field; from ``_MAX_NAMES`` on, new names are counted together."""
    for name, n in rows.items():
        known = name if name in into or len(into) < _MAX_NAMES else REST
        into[known] = into.get(known, 0) + n


def observed(
    line: bytes, observe: Callable[[bytes], Any], validate: Callable[[bytes], Any]
) -> tuple[Any, list[UnknownField]]:
    """A row, and its fields that the contract ignores; whether it is one, the contract says."""
    try:
        request = observe(line)
    except Exception:
        return validate(line), []
    return request, unknown_fields(request)
