"""Every reach into pydantic's inside, so that a new version of pydantic has one place to break.

``tests/batch/rows/test_inside.py`` says at once what is no longer as it was. What to do then: find
where pydantic has moved it, or leave the rows concerned to the general codec, which needs the least
of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import SchemaValidator, core_schema

__all__ = [
    "ERROR_TYPES",
    "NO_SCHEMAS",
    "core_schema_of",
    "extra_of",
    "given_fields",
    "json_reader",
    "json_reader_of_schema",
    "json_writer",
    "maker",
    "schemas_in",
]

ERROR_TYPES: frozenset[str] = frozenset(get_args(core_schema.ErrorType))
"""Names of the errors that pydantic itself may find."""

NO_SCHEMAS = frozenset({"config", "default", "expected", "function", "members", "metadata"})
"""Words of a core schema whose values are no schemas."""


def core_schema_of(model: type[BaseModel]) -> Any:
    """The core schema of a model; no dictionary as long as its types aren't all defined."""
    return model.__pydantic_core_schema__


def schemas_in(schema: Any) -> Iterator[dict[str, Any]]:
    """A core schema and all within it."""
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (list, tuple)):
            waiting += node
        elif isinstance(node, dict):
            if isinstance(node.get("type"), str):
                yield node
                waiting += [value for key, value in node.items() if key not in NO_SCHEMAS]
            else:  # fields or choices, by names of any kind
                waiting += node.values()


def json_reader(model: type[BaseModel]) -> Callable[[bytes], Any]:
    """What ``model_validate_json`` calls, without the arguments that it looks at first."""
    return model.__pydantic_validator__.validate_json


def json_reader_of_schema(schema: Any) -> Callable[[bytes], Any]:
    """Reads what a core schema describes, which may be none that a class has."""
    try:
        # Since 2.13 pydantic puts a class's own validator in place of what the schema says of it.
        return SchemaValidator(schema, _use_prebuilt=False).validate_json
    except TypeError:
        return SchemaValidator(schema).validate_json


def json_writer(model: type[BaseModel]) -> Callable[[BaseModel], bytes]:
    """What ``model_dump_json`` calls; gives bytes."""
    return model.__pydantic_serializer__.to_json


given_fields: Callable[[BaseModel], set[str]] = attrgetter("__pydantic_fields_set__")
"""The fields that a row itself has; a field of a contract may hide ``model_fields_set``."""


def extra_of(row: BaseModel) -> Mapping[str, Any]:
    """What a row has besides its fields, where that is kept."""
    return row.__pydantic_extra__ or {}


def maker(model: type[BaseModel]) -> Callable[[dict[str, Any], Iterable[str]], BaseModel]:
    """Makes a request of values that are known to be valid, as pydantic's validator would.

    It is given the values of all fields, in their order, and which of them the row itself has.
    ``model_construct`` takes four times as long.
    """
    new = object.__new__
    # Past the contract's own __setattr__, and in less time than by object's.
    set_values, set_given, set_extra, set_private = (
        BaseModel.__dict__[name].__set__
        for name in (
            "__dict__",
            "__pydantic_fields_set__",
            "__pydantic_extra__",
            "__pydantic_private__",
        )
    )

    def make(values: dict[str, Any], given: Iterable[str]) -> BaseModel:
        request = new(model)
        set_values(request, values)
        set_given(request, set(given))
        set_extra(request, None)
        set_private(request, None)
        return request

    return make
