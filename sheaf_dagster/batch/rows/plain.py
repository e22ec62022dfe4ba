"""Models of plain types: what their core schemas say, and the types by which msgspec reads it.

Most rows use little of what a contract allows: a string is a string, a number is a number, no field
is unknown. What a schema may hold is listed here kind by kind, with every word that may qualify it;
the types are stricter than pydantic's (no conversions, no NaN). A model with anything else, such as
what a new version of pydantic adds, isn't plain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import msgspec
from pydantic import BaseModel

from sheaf_dagster.batch.rows.inside import core_schema_of
from sheaf_dagster.contracts.base import PASSES

__all__ = ["NOTHING", "NotPlainError", "PlainModel"]


class NotPlainError(Exception):
    """The schema holds something that isn't known here to mean the same to both."""


class PlainModel:
    """What a model's schema says of its fields.

    Raises:
        NotPlainError: It holds something that isn't known here.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model
        self.validators: list[Callable[[Any], Any]] = []
        self.types: dict[str, Any] = {}
        """Of each field, as far as a plain row may have it."""
        self.required: set[str] = set()
        self.defaults: dict[str, Any] = {}
        """Of all fields, in order; None stands where there is none, or a factory."""
        self.factories: list[tuple[str, Callable[[], Any]]] = []
        self.members: list[tuple[str, dict[Any, Enum]]] = []
        """Fields whose value stands for an enum's member."""
        for name, field in self._fields().items():
            self._add(name, field)

    def passing(self) -> tuple[dict[str, Any], set[str]] | None:
        """Types of fields, and those that are required, with which a row passes the validators.

        None where a validator of the model's own must see each row.
        """
        types, required = dict(self.types), set(self.required)
        for validator in self.validators:
            passed: Mapping[str, Any] | None = getattr(validator, PASSES, None)
            if passed is None:
                return None
            for name, type_ in passed.items():
                if not _includes(types.get(name, NOTHING), type_):
                    return None  # a subclass has narrowed the field
                types[name] = type_
                if type_ is not None:
                    required.add(name)
        return types, required

    def _fields(self) -> Mapping[str, Any]:
        model = self.model
        schema: Any = core_schema_of(model)
        if not isinstance(schema, dict):  # its types aren't all defined yet
            raise NotPlainError
        while schema["type"] == "function-after":
            _allow(schema, "function", "schema")
            if schema["function"]["type"] != "no-info":
                raise NotPlainError
            self.validators.insert(0, schema["function"]["function"])
            schema = schema["schema"]
        _allow(schema, "cls", "schema", "config", "custom_init", "root_model", "frozen")
        plain = schema["type"] == "model" and schema["cls"] is model
        if not plain or schema.get("custom_init") or schema.get("root_model"):
            raise NotPlainError
        if model.__new__ is not object.__new__:
            raise NotPlainError
        config = schema.get("config", {})
        if not _HARMLESS.issuperset(config):
            raise NotPlainError
        if config.get("extra_fields_behavior", "ignore") == "allow":
            raise NotPlainError
        inner = schema["schema"]
        _allow(inner, "fields", "computed_fields", "model_name")
        if inner["type"] != "model-fields":
            raise NotPlainError
        return inner["fields"]  # type: ignore[no-any-return]

    def _add(self, name: str, field: Any) -> None:
        _allow(field, "schema", "frozen", *_SERIALIZING)
        schema = field["schema"]
        has_default = schema["type"] == "default"
        self.defaults[name] = None
        if has_default:
            _allow(schema, "schema", "default", "default_factory", "default_factory_takes_data")
            self._add_default(name, schema)
            schema = schema["schema"]
        if schema["type"] == "literal" and isinstance(schema["expected"][0], Enum):
            self.members.append((name, {m.value: m for m in schema["expected"]}))
            schema = {**schema, "expected": [_value(m) for m in schema["expected"]]}
        try:
            self.types[name] = _type_of(schema)
        except NotPlainError:
            # A row without this field, or with a null in it, may still be a plain one.
            if schema["type"] == "nullable":
                _allow(schema, "schema")
                self.types[name] = None
            elif has_default:
                self.types[name] = NOTHING
            else:
                raise
        if not has_default:
            self.required.add(name)

    def _add_default(self, name: str, schema: Any) -> None:
        if "default_factory" in schema:
            if schema.get("default_factory_takes_data"):
                raise NotPlainError
            self.factories.append((name, schema["default_factory"]))
        elif isinstance(schema["default"], (str, int, float, bytes, UUID, Enum, type(None))):
            self.defaults[name] = schema["default"]
        elif type(schema["default"]) in (list, dict, set, tuple):
            self.factories.append((name, lambda: copy.deepcopy(schema["default"])))
        else:
            raise NotPlainError


def _includes(own: Any, type_: Any) -> bool:
    """Whether a field's own type is this one, or has it as a choice."""
    choices = get_args(own) if get_origin(own) in (Union, UnionType) else (own,)
    return (type(None) if type_ is None else type_) in (
        type(None) if choice is None else choice for choice in choices
    )


_COMMON = frozenset({"type", "ref", "metadata", "serialization"})
_SERIALIZING = ("serialization_alias", "serialization_exclude", "serialization_exclude_if")

_HARMLESS = frozenset(
    {
        "allow_inf_nan",
        "cache_strings",
        "extra_fields_behavior",
        "from_attributes",
        "hide_input_in_errors",
        "revalidate_instances",
        "ser_json_bytes",
        "ser_json_inf_nan",
        "ser_json_temporal",
        "ser_json_timedelta",
        "title",
        "validation_error_cause",
    }
)
"""Settings of a model that change nothing about a row that the decoders take."""


def _allow(schema: Any, *words: str) -> None:
    """Raises where a schema has a word that isn't known."""
    if not _COMMON.union(words).issuperset(schema):
        raise NotPlainError


def _type_of(schema: Any) -> Any:
    """The type by which msgspec reads what a schema describes, or less than that."""
    make = _KINDS.get(schema["type"])
    if make is None:
        raise NotPlainError
    return make(schema)


def _number(schema: Any) -> Any:
    _allow(schema, "gt", "ge", "lt", "le", "allow_inf_nan")
    return _limited(int if schema["type"] == "int" else float, schema, "gt", "ge", "lt", "le")


def _string(schema: Any) -> Any:
    _allow(schema, "min_length", "max_length")
    return _limited(str, schema, "min_length", "max_length")


def _list(schema: Any) -> Any:
    _allow(schema, "items_schema", "min_length", "max_length", "fail_fast")
    items = _type_of(schema.get("items_schema", _ANY))
    return _limited(list[items], schema, "min_length", "max_length")  # type: ignore[valid-type]


def _dict(schema: Any) -> Any:
    _allow(schema, "keys_schema", "values_schema", "min_length", "max_length", "fail_fast")
    keys = schema.get("keys_schema", _ANY)
    if keys["type"] != "str" or not _COMMON.issuperset(keys):
        raise NotPlainError
    values = _type_of(schema.get("values_schema", _ANY))
    return _limited(dict[str, values], schema, "min_length", "max_length")  # type: ignore[valid-type]


def _limited(type_: Any, schema: Any, *words: str) -> Any:
    limits = {word: schema[word] for word in words if schema.get(word) is not None}
    return Annotated[type_, msgspec.Meta(**limits)] if limits else type_


def _nullable(schema: Any) -> Any:
    _allow(schema, "schema")
    return _type_of(schema["schema"]) | None


def _literal(schema: Any) -> Any:
    _allow(schema, "expected")
    values = schema["expected"]
    if {type(v) for v in values} not in ({str}, {int}):
        raise NotPlainError
    return Literal[tuple(values)]


def _enum(schema: Any) -> Any:
    _allow(schema, "cls", "members", "sub_type")
    if {type(m.value) for m in schema["members"]} not in ({str}, {int}):
        raise NotPlainError
    return schema["cls"]


def _union(schema: Any) -> Any:
    """The choices that JSON itself tells apart; of lists the first."""
    _allow(schema, "choices")
    choices: Sequence[Any] = schema["choices"]
    if any(not isinstance(c, dict) for c in choices):  # labelled
        raise NotPlainError
    if all(c["type"] == "list" for c in choices):
        # A list of numbers is not a list of lists to pydantic, and the empty one is the same in all.
        inner = [_items_of(c) for c in choices]
        if inner[0] not in ("str", "float", "int") or set(inner[1:]) != {"list"}:
            raise NotPlainError
        return _type_of(choices[0])
    if any(c["type"] not in _SCALARS or not _COMMON.issuperset(c) for c in choices):
        raise NotPlainError
    return reduce(or_, map(_type_of, choices))


def _items_of(schema: Any) -> Any:
    """The kind of a list's items, of those that may be null that of the others."""
    items = schema.get("items_schema", _ANY)
    return (items["schema"] if items["type"] == "nullable" else items)["type"]


def _exactly(type_: Any) -> Callable[[Any], Any]:
    def make(schema: Any) -> Any:
        _allow(schema)
        return type_

    return make


def _value(member: Any) -> Any:
    if not isinstance(member, Enum):
        raise NotPlainError
    return member.value


NOTHING = Annotated[int, msgspec.Meta(gt=0, lt=0)]
"""The type of no value: a decoder that didn't know the field would pass it over."""

_ANY = {"type": "any"}
_SCALARS = ("str", "float", "int", "bool", "none")
_KINDS: dict[str, Callable[[Any], Any]] = {
    "bool": _exactly(bool),
    "dict": _dict,
    "enum": _enum,
    "float": _number,
    "int": _number,
    "list": _list,
    "literal": _literal,
    "none": _exactly(None),
    "nullable": _nullable,
    "str": _string,
    "union": _union,
    "uuid": _exactly(UUID),
}
